"""Make models of known shapes with random weights, which are fine for time and for nothing else."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.initialization import no_init_weights

BLOCK = 1 << 20
"""Random numbers that are drawn; weights repeat them."""


def _llama(
    layers: int, hidden: int, inner: int, heads: tuple[int, int], **more: Any
) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        **{"vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 5e5, **more},
    )


SHAPES: dict[str, PretrainedConfig] = {
    "llama-3.1-8b": _llama(32, 4096, 14336, (32, 8), head_dim=128),
    "llama-3.2-1b": _llama(16, 2048, 8192, (32, 8), head_dim=64, tie_word_embeddings=True),
    "qwen2.5-7b": Qwen2Config(
        num_hidden_layers=28,
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        max_position_embeddings=32768,
    ),
    "0.5b": _llama(
        24, 1280, 3456, (20, 5), head_dim=64, vocab_size=32000, max_position_embeddings=8192
    ),
}
"""Sizes as published; `0.5b` is a Llama of 0.5 billion parameters over the Llama-2 vocabulary."""


@torch.no_grad()
def random_model(
    shape: str, dtype: torch.dtype, device: str, *, full: bool = False
) -> PreTrainedModel:
    """Return a model of a shape, in evaluation mode, with weights that keep logits finite.

    Args:
        shape: One of `SHAPES`.
        dtype: Of the weights.
        device: Where they are made.
        full: Whether weights have all bits of a wider dtype; else they are numbers that bfloat16
            holds, as those of published checkpoints of these sizes are.

    Raises:
        ValueError: If the shape is unknown.
    """
    if shape not in SHAPES:
        raise ValueError(f"`--shape` must be among {', '.join(SHAPES)}, got {shape!r}.")
    with torch.device(device), no_init_weights():
        family: Any = AutoModelForCausalLM
        model = family.from_config(SHAPES[shape], dtype=dtype)
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    numbers = (numbers if full else numbers.to(torch.bfloat16)).to(device, dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1)
        else:
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), BLOCK):
                part = flat[start : start + BLOCK]
                part.copy_(numbers[: part.numel()])
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    made: PreTrainedModel = model.eval()
    return made
