"""Attend to a slab of keys and values without repeating or masking what needs neither."""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface

from llma_rag.engine.cpu.onednn_product import lacks_products

PACKED = "llma_packed"
"""Name under which `packed_attention` is registered with transformers; no mask function goes with
it, so that transformers builds no masks at all."""

MAX_PACKED_ROWS = 64
"""Widest pass whose query heads are packed; wider ones repeat the keys, which costs less there."""

WINDOWED_ROWS = 512
"""Rows that attend at once where windows limit what they see: masks stay as small as they are."""


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with grouped heads laid out as further rows of one head, so that nothing is repeated.

    Without a mask the rows are the last tokens of the keys, each seeing what stands before it.
    float16 is computed in float32 on a CPU that has no products of it: torch's own way is slow.

    Args:
        module: The model's attention module; not looked at.
        query: [batch, heads, rows, head_dim].
        key: [batch, kv_heads, tokens, head_dim].
        value: [batch, kv_heads, tokens, head_dim].
        attention_mask: [batch or 1, 1, rows, tokens], True where a row sees; None if causal.
        scaling: Factor of the scores; None for one over the root of head_dim.
        sliding_window: Tokens that a row sees, itself included; only used without a mask.
        softcap: Bound of the scores, applied as a hyperbolic tangent before the mask.

    Returns:
        [batch, rows, heads, head_dim], and no weights.
    """
    if _is_slow(query):
        output, nothing = packed_attention(
            module, query.float(), key.float(), value.float(), attention_mask, scaling=scaling,
            sliding_window=sliding_window, softcap=softcap,
        )  # fmt: skip
        return output.to(query.dtype), nothing
    if attention_mask is not None:
        bias = _bias_of(attention_mask, query.dtype)
        return _packed(query, key, value, bias, scaling, softcap), None
    if sliding_window is None or sliding_window >= key.shape[2]:
        return _causal(query, key, value, None, scaling, softcap), None
    outputs, end = [], key.shape[2] - query.shape[2]
    for part in torch.split(query, WINDOWED_ROWS, dim=2):
        end += part.shape[2]
        start = max(0, end - part.shape[2] - sliding_window + 1)
        keys, values = key[:, :, start:end], value[:, :, start:end]
        outputs.append(_causal(part, keys, values, sliding_window, scaling, softcap))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


AttentionInterface.register(PACKED, packed_attention)


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attend from the last tokens of the keys, each to what stands before it."""
    rows, tokens = query.shape[2], key.shape[2]
    limited = window is not None and window < tokens
    if rows == tokens and rows > 1 and softcap is None and not limited:
        output = _prefill(query, key, value, query.shape[1] // key.shape[1], scaling)
        return output.transpose(1, 2).contiguous()
    bias: torch.Tensor | None = None
    if rows > 1:
        bias = _causal_bias(rows, tokens, window, query.dtype, query.device)
    return _packed(query, key, value, bias, scaling, softcap)


def _packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    batch, heads, rows, width = query.shape
    group = heads // key.shape[1]
    if rows > MAX_PACKED_ROWS:
        key, value, group = _repeated(key, group), _repeated(value, group), 1
    packed = query.reshape(batch, key.shape[1], group * rows, width)
    if bias is not None and group > 1:
        bias = _bias_for_group(bias, group)
    output = _attend(packed, key, value, bias, scaling, softcap)
    output = output.reshape(batch, heads, rows, value.shape[-1])
    return output.transpose(1, 2).contiguous()


def forget_biases() -> None:
    """Forget what was added to the scores of a pass: that of a prompt is as large as its square."""
    for made in (_causal_bias, _bias_of, _bias_for_group):
        made.cache_clear()


def _is_slow(query: torch.Tensor) -> bool:
    """Return whether torch attends in a dtype that the processor has no products of, slowly."""
    on_cpu = query.device.type == "cpu"
    return on_cpu and query.dtype is torch.float16 and lacks_products(query.dtype)


def _prefill(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: int, scaling: float | None
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, _repeated(key, group), _repeated(value, group), is_causal=True, scale=scaling
    )


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    weights: torch.Tensor = softmax(scores, dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


def _repeated(states: torch.Tensor, group: int) -> torch.Tensor:
    if group == 1:
        return states
    batch, heads, tokens, width = states.shape
    repeated = states[:, :, None].expand(batch, heads, group, tokens, width)
    return repeated.reshape(batch, heads * group, tokens, width)


@lru_cache(maxsize=4)
def _causal_bias(
    rows: int, tokens: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return what is added to the scores; one pass needs it once per kind of layer."""
    visible = torch.ones((rows, tokens), dtype=torch.bool, device=device).tril(tokens - rows)
    if window is not None:
        visible = visible.triu(tokens - rows - window + 1)
    return _as_bias(visible[None, None], dtype)


@lru_cache(maxsize=4)
def _bias_of(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a given mask as a bias; tensors hash by identity, so each is turned once per pass."""
    return _as_bias(mask, dtype) if mask.dtype == torch.bool else mask.to(dtype)


@lru_cache(maxsize=4)
def _bias_for_group(bias: torch.Tensor, group: int) -> torch.Tensor:
    return bias.repeat(1, 1, group, 1)


def _as_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf"))
