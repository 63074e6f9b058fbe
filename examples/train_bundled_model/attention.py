"""Attention for training on CPU: plain matrix products in bf16.

torch's fused CPU kernel takes three times as long backward. A batch here fits in memory, so the
scores are written out, a quarter of the queries at a time and without the keys after them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

NAME = "train_bundled_model"
PARTS = 4


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with an additive mask that hides at least every later token.

    Args:
        module: The attention layer; its group size tells how many heads share keys.
        query: Shape (batch, heads, length, size).
        key: Shape (batch, key heads, length, size).
        value: Shape (batch, key heads, length, size).
        attention_mask: Zero or a large negative number, shape (batch, 1, length, length).
        scaling: Factor of the scores.
        **_: What other implementations use.

    Returns:
        The attended values, shape (batch, length, heads, size), and no weights.
    """
    group = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group, dim=1).transpose(-1, -2)
    value = value.repeat_interleave(group, dim=1)
    query, length = query * scaling, query.shape[2]
    parts = []
    for part in range(PARTS):
        start, stop = part * length // PARTS, (part + 1) * length // PARTS
        scores = query[:, :, start:stop] @ key[..., :stop]
        weights = (scores + attention_mask[:, :, start:stop, :stop]).softmax(-1)
        parts.append(weights @ value[:, :, :stop])
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, causal_attention)
