"""Tiny random models of many architectures, over the vocabulary of the character tokenizer."""

from functools import cache

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from llma_rag import Decoder
from tests.models import VOCAB, character_tokenizer
from tests.stateful import HYBRID, RECURRENT

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
_GROUPED = {"num_key_value_heads": 2}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ATTENTION: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", dict(_GROUPED, sliding_window=None, head_dim=8)),
    "mistral_window": ("mistral", dict(_GROUPED, sliding_window=8, head_dim=8)),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", dict(_GROUPED, head_dim=8)),
    "qwen2_moe": (
        "qwen2_moe",
        dict(
            _GROUPED,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
    ),
    "qwen3_moe": (
        "qwen3_moe",
        dict(_GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    ),
    "mixtral": ("mixtral", dict(_GROUPED, **_EXPERTS)),
    "gpt_oss": (
        "gpt_oss",
        dict(
            _GROUPED,
            **_EXPERTS,
            head_dim=8,
            sliding_window=8,
            rope_scaling=None,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
    ),
    "gemma": ("gemma", dict(_GROUPED, head_dim=8)),
    "gemma2": (
        "gemma2",
        dict(_GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    ),
    "gemma3": (
        "gemma3_text",
        dict(
            _GROUPED,
            head_dim=8,
            sliding_window=8,
            query_pre_attn_scalar=8,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "phi3": ("phi3", dict(_GROUPED)),
    "gpt2": ("gpt2", {"n_positions": 512}),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gptj": (
        "gptj",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 512},
    ),
    "gpt_bigcode": ("gpt_bigcode", {"n_positions": 512}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "alibi": False}),
    "falcon_alibi": ("falcon", {"multi_query": True, "alibi": True}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    "stablelm": ("stablelm", _GROUPED),
    "cohere": ("cohere", _GROUPED),
    "cohere2": ("cohere2", dict(_GROUPED, sliding_window=8)),
    "olmo": ("olmo", _GROUPED),
    "olmo2": ("olmo2", _GROUPED),
    "starcoder2": ("starcoder2", dict(_GROUPED, sliding_window=8)),
    "granite": ("granite", _GROUPED),
    "granitemoe": ("granitemoe", dict(_GROUPED, **_EXPERTS)),
    "glm": ("glm", dict(_GROUPED, head_dim=8)),
    "glm4": ("glm4", dict(_GROUPED, head_dim=8)),
    "deepseek_v2": ("deepseek_v2", dict(_LATENT, topk_method="greedy", head_dim=8)),
    "deepseek_v3": ("deepseek_v3", dict(_LATENT)),
    "smollm3": ("smollm3", dict(_GROUPED)),
    "codegen": (
        "codegen",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 512},
    ),
    "persimmon": ("persimmon", {}),
    "exaone4": ("exaone4", dict(_GROUPED, sliding_window=8, sliding_window_pattern=2)),
}
"""Families whose state is keys and values: name to model type and settings."""

MASKED: dict[str, tuple[str, dict]] = {
    "phimoe": ("phimoe", dict(_GROUPED, **_EXPERTS, sliding_window=64)),
    "qwen2_moe_window": (
        "qwen2_moe",
        dict(ATTENTION["qwen2_moe"][1], use_sliding_window=True, sliding_window=64,
             max_window_layers=1),
    ),
    "llama4_text": (
        "llama4_text",
        dict(_GROUPED, num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=48,
             head_dim=8, attention_chunk_size=64, no_rope_layers=[1, 1]),
    ),
}  # fmt: skip
"""Families that limit what a layer sees by the mask alone, here to more tokens than are probed."""

INDEXED: dict[str, tuple[str, dict]] = {
    "deepseek_v32": (
        "deepseek_v32", dict(_LATENT, index_topk=64, index_head_dim=16, index_n_heads=2)
    ),
}  # fmt: skip
"""Families that select the tokens they look at."""

UNWINDOWED: dict[str, tuple[str, dict]] = {"moshi": ("moshi", {"sliding_window": 64})}
"""Families that see beyond the window that their configuration names."""

FAMILIES = {**ATTENTION, **HYBRID, **RECURRENT, **MASKED, **UNWINDOWED, **INDEXED}


def config_of(family: str, **changes) -> PretrainedConfig:
    kind, settings = FAMILIES[family]
    merged = {**_COMMON, **settings, **changes}
    if "n_positions" in merged:
        del merged["max_position_embeddings"]
    return AutoConfig.for_model(kind, **merged)


def attentions(family: str) -> list[str]:
    """The attention implementations that transformers has for a family."""
    supported = MODEL_FOR_CAUSAL_LM_MAPPING[type(config_of(family))]._supports_sdpa
    return ["eager", "sdpa"] if supported else ["eager"]


def build(family: str, attention: str = "eager", *, seed=0, dtype=torch.float32, **changes):
    """A model whose random weights are large enough for its answers to depend on the prompt."""
    torch.manual_seed(seed)
    config = config_of(family, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.25)
    model.generation_config.update(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return model.to(dtype).eval()


@cache
def model_of(family: str, attention: str = "eager") -> PreTrainedModel:
    return build(family, attention)


@cache
def decoder_of(family: str, attention: str = "eager") -> Decoder:
    return Decoder(model_of(family, attention), character_tokenizer())
