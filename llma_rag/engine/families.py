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
    """Return whether a layer is one of `LAYERS`, activates by SiLU and rotates whole heads.

    False where a module was exchanged for another kind, or its class was given another `forward`.
    """
    if type(layer).__name__ not in LAYERS or rotary is None:
        return False
    own, torchs = type(layer).__module__, "torch.nn.modules.activation"
    attention, mlp = layer.self_attn, layer.mlp
    family = [layer, attention, mlp, layer.input_layernorm, layer.post_attention_layernorm]
    if any(type(one).__module__ != own or type(one).forward.__module__ != own for one in family):
        return False
    activation = type(mlp.act_fn)
    return (
        activation.__name__ in ("SiLU", "SiLUActivation")
        and activation.forward.__module__ in (torchs, "transformers.activations")
        and 2 * len(rotary.inv_freq) == attention.head_dim
    )
