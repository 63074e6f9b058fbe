"""Multiply by a model's own weights of 16 bits where the processor has no products of such."""

from functools import cache

import torch
from torch import nn

from llma_rag.engine.cpu.half_product import can_keep, can_multiply_rows, multiply_rows
from llma_rag.engine.cpu.onednn_product import lacks_products
from llma_rag.engine.cpu.prepack import can_exchange


class SharedLinear(nn.Linear):
    """A linear layer that is another one in all but how it computes: see `shared_linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # as nn.Linear has it
        """Return [..., out_features] of [..., in_features]."""
        weight, bias = self.weight, self.bias
        if not (type(weight) is nn.Parameter and _gains(weight, bias, input)):
            return super().forward(input)
        rows = input.reshape(-1, weight.shape[1])
        return multiply_rows(rows, weight, bias).view(*input.shape[:-1], weight.shape[0])


def shared_linear(layer: nn.Module) -> nn.Module | None:
    """Return a layer's second, over the same weights, for a twin; None where nothing is gained.

    Hooks and parameters are those of the layer, whatever is done to them later.
    """
    if type(layer) is not nn.Linear or not can_exchange(layer):
        return None
    if not can_share(layer.weight.dtype) or not can_multiply_rows(layer.weight):
        return None
    other = object.__new__(SharedLinear)
    vars(other).update(vars(layer))
    return other


@cache
def can_share(dtype: torch.dtype) -> bool:
    """Return whether several rows take less time by our kernel than by torch."""
    return lacks_products(dtype) and can_keep(dtype)


def _gains(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> bool:
    """Return whether the kernel multiplies by a weight, and sooner than torch.

    Anything may have been done to a model since its twin was made. Torch's own way takes less time
    for a single row.
    """
    dtype = states.dtype
    return (
        states.numel() > weight.shape[-1]
        and weight.dtype is dtype
        and can_share(dtype)
        and type(states) is torch.Tensor
        and states.dim() > 1
        and can_multiply_rows(weight)
        and states.shape[-1] == weight.shape[1]
        and (bias is None or bias.dtype is dtype)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
