"""Lay weights out once for oneDNN, which otherwise does so at every call."""

from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear

from llma_rag.engine.machine import is_intel, is_x86

LAYOUT_ROWS = 16
"""Rows of a pass for which oneDNN is asked to choose a layout; others run in it as well."""

LEAST_ROWS = 1 if is_intel() else 4
"""Rows that a narrower pass is filled up to with its own. On the AMD processor that was tried,
oneDNN's kernels for one, two and three rows read the same weights in up to 1.5 times the time; on
the Intel one, whose memory was slower, the kernel for one row is the quickest."""


class OneDnnProduct:
    """Multiplies by a weight that is kept in oneDNN's own layout, by operators private to torch."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Pack a copy of a weight, [outputs, inputs]; the bias is [outputs] or None."""
        self._outputs = weight.shape[0]
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS)
        self.bias = bias
        self.nbytes = weight.nbytes

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return [rows, outputs] of [rows, inputs]; both of the weight's dtype."""
        rows = states.shape[0]
        if 0 < rows < LEAST_ROWS:
            states = torch.cat([states] * -(-LEAST_ROWS // rows))[:LEAST_ROWS]
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._packed, self.bias, "none", [], ""
        )
        return output[:rows]

    def dense(self) -> torch.Tensor:
        """Return a copy of the weight, [outputs, inputs]."""
        weight: torch.Tensor = self._packed.to_dense()
        return weight


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's private operators are there and give what `linear` gives."""
    if dtype not in (torch.float32, torch.bfloat16) or not _has_onednn():
        return False
    generator = torch.Generator().manual_seed(0)
    plain: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    weight = torch.randn((48, 32), **plain).to(dtype)
    bias = torch.randn(48, **plain).to(dtype)
    states = torch.randn((3, 32), **plain).to(dtype)
    try:
        found = OneDnnProduct(weight, bias)(states)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    expected = linear(states, weight, bias)
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=10 * tolerance)


@cache
def lacks_products(dtype: torch.dtype) -> bool:
    """Return whether an x86 processor has no products of 16-bit numbers that torch makes use of.

    Then torch widens each number anew for every row. Others than x86 were not tried.
    """
    asked = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    if dtype not in asked or not is_x86():
        return False
    try:
        return not (_has_onednn() and getattr(torch.ops.mkldnn, asked[dtype])())
    except (AttributeError, RuntimeError):
        return True


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # untyped in torch
