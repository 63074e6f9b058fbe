"""Settings of tiny models that keep recurrent state, which prompt lookup refuses."""

_GROUPED = {"num_key_value_heads": 2}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SHARED_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_token": 2,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}

HYBRID: dict[str, tuple[str, dict]] = {
    "qwen3_next": (
        "qwen3_next",
        dict(
            _GROUPED,
            **_LINEAR,
            **_SHARED_EXPERTS,
            head_dim=8,
        ),
    ),
    "qwen3_5": (
        "qwen3_5_text",
        dict(
            _GROUPED,
            **_LINEAR,
            head_dim=8,
        ),
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        dict(
            _GROUPED,
            **_MAMBA,
            **_EXPERTS,
            shared_intermediate_size=16,
            layer_types=["mamba", "attention"],
        ),
    ),
    "nemotron_h": (
        "nemotron_h",
        dict(
            _GROUPED,
            head_dim=8,
            mamba_num_heads=4,
            mamba_head_dim=16,
            ssm_state_size=8,
            n_groups=1,
            layers_block_type=["mamba", "attention"],
        ),
    ),
    "falcon_h1": ("falcon_h1", dict(_GROUPED, **_MAMBA, mamba_d_ssm=64, head_dim=8)),
    "lfm2": ("lfm2", dict(_GROUPED, layer_types=["conv", "full_attention"], block_ff_dim=48)),
    "qwen3_5_moe": ("qwen3_5_moe_text", dict(_GROUPED, **_LINEAR, **_SHARED_EXPERTS, head_dim=8)),
    "qwen4_exp": (
        "qwen4_exp_text",
        dict(
            _GROUPED,
            **_LINEAR,
            **_SHARED_EXPERTS,
            head_dim=8,
            hc_count=2,
            hc_lowrank=8,
            ple_embed_dim=16,
            indexer_n_heads=2,
            indexer_kv_heads=1,
            indexer_head_dim=8,
            indexer_budget=8,
            indexer_compress_ratio=2,
            ngram_vocab_size_base=64,
            split_ngram_parts=1,
            make_ngram_vocab_size_divisible_by=8,
            heads_per_ngram=2,
        ),
    ),
    "olmo_hybrid": ("olmo_hybrid", dict(_GROUPED, **_LINEAR)),
    "kimi_linear": ("kimi_linear", dict(_LATENT, q_lora_rank=None)),
    "bailing_hybrid": (
        "bailing_hybrid",
        dict(_LATENT, num_expert_group=1, topk_group=1, first_k_dense_replace=1, head_dim=8),
    ),
    "deepseek_v4": (
        "deepseek_v4",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "q_lora_rank": 16,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "hc_mult": 2,
            "o_groups": 2,
            "o_lora_rank": 8,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 64,
            "qk_rope_head_dim": 8,
        },
    ),
    "zaya": (
        "zaya",
        dict(_GROUPED, head_dim=8, num_experts=4, moe_intermediate_size=16, router_hidden_size=16),
    ),
    "zamba2": (
        "zamba2",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "kv_channels": 8,
            "use_mamba_kernels": False,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "hybrid_layer_ids": [1, 3],
            "adapter_rank": 8,
            "chunk_size": 16,
        },
    ),
    "xlstm": (
        "xlstm",
        {
            "embedding_dim": 128,
            "hidden_size": 128,
            "num_blocks": 2,
            "num_heads": 2,
            "chunk_size": 16,
        },
    ),
}
"""Families with recurrent state that drafts can be verified on."""

RECURRENT: dict[str, tuple[str, dict]] = {
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": (
        "mamba2",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2},
    ),
    "jamba": (
        "jamba",
        dict(
            _GROUPED,
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
    ),
    "bamba": ("bamba", dict(_GROUPED, **_MAMBA, attn_layer_indices=[1])),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 512}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "lru_width": 32,
            "num_key_value_heads": 1,
            "attention_window_size": 16,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "zamba": (
        "zamba",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "n_mamba_heads": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
        },
    ),
    "minimax": (
        "minimax",
        dict(
            _GROUPED,
            **_EXPERTS,
            head_dim=8,
            block_size=8,
            layer_types=["linear_attention", "full_attention"],
        ),
    ),
}
"""Families in which a pass over several tokens is itself wrong, or whose state is out of reach."""
