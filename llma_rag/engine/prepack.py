"""Lay linear weights out once for oneDNN, which otherwise does so at every call on a CPU."""

from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear, pad

ROWS = 16
"""Rows of a pass for which oneDNN is asked to choose a layout; others run in it as well."""

LEAST_ROWS = 4
"""Rows that a narrower pass is filled up to: oneDNN's kernels for one, two and three rows read the
same weights in up to 1.5 times the time."""


class PrepackedLinear(nn.Module):
    """A linear layer whose weight is kept in oneDNN's own layout and in no other."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.bias = layer.bias
        self._packed = _pack(layer.weight.detach())

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight, [out_features, in_features]; writing to it changes nothing."""
        return self._packed.to_dense()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] of [..., in_features]."""
        return _linear(states, self._packed, self.bias, self.out_features)

    def extra_repr(self) -> str:
        """Return the sizes, as `nn.Linear` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def prepacked(module: nn.Module) -> nn.Module | None:
    """Return the prepacked form of a plain linear layer on a CPU; None for all else.

    The original keeps its weight, so that its memory is taken twice while both live.
    """
    if type(module) is not nn.Linear or module.weight.device.type != "cpu":
        return None
    if vars(module).get("forward") or module._forward_hooks or module._forward_pre_hooks:
        return None
    return PrepackedLinear(module) if can_prepack(module.weight.dtype) else None


def prepack_in_place(model: nn.Module) -> int:
    """Exchange the linear layers of a model that is ours, and release their weights one by one.

    An output layer whose weight is also the embedding's takes that memory once more.

    Returns:
        How many layers were exchanged.
    """
    exchanged = 0
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            other = None if child is None else prepacked(child)
            if other is not None:
                parent._modules[name] = other
                exchanged += 1
    return exchanged


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's private operators are there and give what `linear` gives."""
    if dtype not in (torch.float32, torch.bfloat16) or not _has_onednn():
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((48, 32), generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    states = torch.randn((1, 3, 32), generator=generator).to(dtype)
    try:
        found = _linear(states, _pack(weight), bias, 48)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    expected = linear(states, weight, bias)
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=10 * tolerance)


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # untyped in torch


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return packed


def _linear(
    states: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    flat = states.reshape(-1, states.shape[-1])
    rows = flat.shape[0]
    if rows < LEAST_ROWS:
        flat = pad(flat, (0, 0, 0, LEAST_ROWS - rows))
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(flat, packed, bias, "none", [], "")
    return output[:rows].view(*states.shape[:-1], out_features)
