"""Multiply by a model's own weights of 16 bits where the processor has no products of such."""

import platform
from functools import cache

import torch
from torch import nn

from llma_rag.engine.half_product import INPUTS, can_keep, multiply_rows
from llma_rag.engine.onednn_product import has_products
from llma_rag.engine.prepack import can_exchange


class SharedLinear(nn.Linear):
    """A linear layer that is another one in all but how it computes: see `shared_linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # as nn.Linear has it
        """Return [..., out_features] of [..., in_features]."""
        weight = self.weight
        if not (type(weight) is nn.Parameter and weight.is_contiguous() and _knows(weight, input)):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        return multiply_rows(rows, weight, self.bias).view(*input.shape[:-1], weight.shape[0])


def shared_linear(layer: nn.Module) -> nn.Module | None:
    """Return a layer's second, over the same weights, for a twin; None where nothing is gained.

    Hooks and parameters are those of the layer, whatever is done to them later.
    """
    if type(layer) is not nn.Linear or not can_exchange(layer):
        return None
    if not can_share(layer.weight.dtype) or layer.in_features % INPUTS:
        return None
    other = object.__new__(SharedLinear)
    vars(other).update(vars(layer))
    return other


@cache
def can_share(dtype: torch.dtype) -> bool:
    """Return whether our kernel is quicker than torch's products of weights that lie as they do.

    It was timed on processors with AVX2 alone.
    """
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    return on_x86 and not has_products(dtype) and can_keep(dtype)


def _knows(weight: torch.Tensor, states: torch.Tensor) -> bool:
    """Return whether the kernel multiplies by a weight; models may be cast or moved at any time."""
    return (
        weight.dtype is states.dtype
        and weight.device.type == states.device.type == "cpu"
        and states.shape[-1] == weight.shape[1]
        and states.numel() > 0
        and can_share(weight.dtype)
    )
