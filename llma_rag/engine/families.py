"""What kernels of our own must know of a model's family."""

from typing import Any

from transformers import PretrainedConfig

LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""Layers of transformers that do what the kernels do, and nothing else."""


def head_dim(config: PretrainedConfig) -> int:
    """Return the numbers of a head of attention."""
    text: Any = config.get_text_config(decoder=True)
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def is_llama_layer(layer: Any, rotary: Any) -> bool:
    """Return whether a layer is one of `LAYERS`, activates by SiLU and rotates whole heads."""
    return (
        type(layer).__name__ in LAYERS
        and type(getattr(layer.mlp, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
        and rotary is not None
        and 2 * len(rotary.inv_freq) == layer.self_attn.head_dim
    )
