"""Multiply by weights of 16 bits in float32, which loses no bit of them and reads half as much.

Published checkpoints mostly hold bfloat16 or float16. In float32 their weights are the same numbers
with zeros behind each; a pass that waits for memory need not read those. Processors with AVX2
have no products of such numbers at all, and torch's own ways are slow there.
"""

from collections.abc import Callable
from ctypes import Structure, addressof, c_int64
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch.nn.functional import linear

from llma_rag.engine.cpu.threads import run_in_parallel

F = TypeVar("F", bound=Callable[..., Any])

HALVES = (torch.bfloat16, torch.float16)
"""Dtypes of weights; of two that hold a weight the first is taken."""

LINE = 32
"""Weights of a cache line; `multiply_rows` reads whole lines."""

CACHE = 256 << 10
"""Bytes of rows that are computed while a block of weights is at hand: they stay in most second
caches."""

ALONE = 1 << 17
"""Most multiplications that one thread does alone, since waking others takes longer."""

_opaque = cast(Callable[[F], F], torch.compiler.disable)
"""Have `torch.compile` call a function as it is: it drops tensors whose addresses are in use."""


class Arguments(Structure):
    """What `half_kernel.multiply` reads at the address that it is given.

    Attributes:
        task: The next task to be taken, 0 at first; threads count it up.
        states: Address of the rows, float32 [rows, inner].
        weights: Address of [outputs, inner], or of what `in_blocks` returned.
        output: Address of the outcome, float32 [rows, width]; `width` is `outputs`, filled up to
            whole blocks.
        rows: Rows.
        outputs: Outputs.
        inner: Inner dimension.
        together: Rows that are computed while a block of weights is at hand.
        half: Whether weights are float16, else bfloat16.
        blocked: Whether weights are what `in_blocks` returned.
    """

    _fields_ = [
        (name, c_int64)
        for name in (
            "task", "states", "weights", "output", "rows", "outputs", "inner", "together", "half",
            "blocked",
        )
    ]  # fmt: skip


class HalfProduct:
    """Multiplies by a weight that it keeps in 16 bits, and adds in float32."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Keep a weight.

        Args:
            weight: bfloat16 or float16, or float32 that one of them holds (`kept_dtype`);
                [outputs, inputs].
            bias: [outputs]; None for none.
            dtype: What rows come in and go out as; they are computed in float32.
        """
        kept = kept_dtype(weight)
        assert kept is not None
        self._outputs, self._inputs = weight.shape
        self._blocks = in_blocks(weight.to(kept))
        self._kept, self._dtype = kept, dtype
        self.nbytes = 2 * weight.numel()
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return [rows, outputs] of [rows, inputs], of the dtype given at first.

        Raises:
            RuntimeError: If the states are of another dtype, or rows of another length.
        """
        if states.dtype is not self._dtype or states.device.type != "cpu":
            raise RuntimeError(f"expected {self._dtype} on the CPU, got {states.dtype}")
        if states.shape[1] != self._inputs:
            raise RuntimeError(f"expected {self._inputs} numbers in a row, got {states.shape[1]}")
        return _product(states, self._blocks, self._outputs, self._kept, True, self.bias)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copies and pickles, maybe for another processor, lay the weight out anew."""
        return HalfProduct, (self._weight(), self.bias, self._dtype)

    def dense(self) -> torch.Tensor:
        """Return a copy of the weight, [outputs, inputs]."""
        return self._weight().to(self._dtype)

    def _weight(self) -> torch.Tensor:
        blocks = self._blocks
        if self._kept is torch.bfloat16:
            blocks = blocks.transpose(2, 3)
        weight = blocks.permute(0, 2, 3, 1).reshape(-1, self._inputs)
        return weight[: self._outputs].view(self._kept)


def can_multiply_rows(weight: torch.Tensor) -> bool:
    """Return whether `multiply_rows` reads a weight of this shape, layout and device."""
    return (
        weight.dtype in HALVES
        and weight.device.type == "cpu"
        and weight.layout is torch.strided
        and weight.dim() == 2
        and weight.shape[1] % LINE == 0
        and weight.numel() > 0
        and weight.is_contiguous()
        and not weight.is_neg()
    )


def multiply_rows(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return what `linear` returns, of a weight of 16 bits that lies as torch holds it.

    Gives the bits that `HalfProduct` gives. Each pass lays the weight out anew, piece by piece,
    which takes a few rows' time.

    Args:
        states: [rows, inputs], on the CPU.
        weight: [outputs, inputs]; `can_multiply_rows` holds.
        bias: [outputs]; None for none.

    Returns:
        [rows, outputs], of the states' dtype.

    Raises:
        RuntimeError: If the weight is another, or rows are of another length.
    """
    if not can_multiply_rows(weight) or states.shape[1] != weight.shape[1]:
        raise RuntimeError(f"cannot multiply {list(states.shape)} by {list(weight.shape)}")
    return _product(states, weight, weight.shape[0], weight.dtype, False, bias)


@_opaque
def _product(
    states: torch.Tensor,
    weights: torch.Tensor,
    outputs: int,
    kept: torch.dtype,
    blocked: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    from llma_rag.engine.cpu.half_kernel import multiply
    from llma_rag.engine.cpu.vectors import LANES, ROWS

    (rows, inputs), dtype = states.shape, states.dtype
    states = states.float().contiguous().resolve_neg()
    width = -(-outputs // (2 * LANES)) * 2 * LANES
    output = states.new_empty((rows, width))
    given = Arguments(
        task=0,
        states=states.data_ptr(),
        weights=weights.data_ptr(),
        output=output.data_ptr(),
        rows=rows,
        outputs=outputs,
        inner=inputs,
        together=max(1, CACHE // (4 * ROWS * max(1, inputs))) * ROWS,
        half=kept is torch.float16,
        blocked=blocked,
    )
    alone = rows * width * inputs <= ALONE
    run_in_parallel(multiply.address, addressof(given), 1 if alone else None)
    if outputs < width:
        output = output[:, :outputs]
    return (output if bias is None else output.add_(bias)).to(dtype)


def in_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as the kernel reads it.

    Args:
        weight: bfloat16 or float16, [outputs, inputs].

    Returns:
        Bits, int16. Of bfloat16 [blocks, inputs, lanes, 2]: of a block's outputs the first half
        stands in the lower part of a word, the second half in the upper. Of float16
        [blocks, inputs, 2, lanes]: first one half, then the other. Missing outputs are zero.
    """
    from llma_rag.engine.cpu.vectors import LANES

    outputs, inputs = weight.shape
    blocks = -(-outputs // (2 * LANES))
    bits = weight.new_zeros((blocks * 2 * LANES, inputs), dtype=torch.int16)
    bits[:outputs] = weight.view(torch.int16)
    order = (0, 3, 2, 1) if weight.dtype is torch.bfloat16 else (0, 3, 1, 2)
    return bits.view(blocks, 2, LANES, inputs).permute(order).contiguous()


def kept_dtype(weight: torch.Tensor) -> torch.dtype | None:
    """Return which dtype of 16 bits holds every number of a weight exactly; None for none."""
    if weight.dtype in HALVES:
        return weight.dtype
    if weight.dtype is not torch.float32:
        return None
    holding = (dtype for dtype in HALVES if torch.equal(weight.to(dtype).float(), weight))
    return next(holding, None)


@cache
def can_keep(dtype: torch.dtype) -> bool:
    """Return whether kernels for weights of a dtype compile, can use torch's threads, are right."""
    try:
        from llma_rag.engine.cpu.vectors import ROWS, TILE

        if TILE is None or dtype not in HALVES:
            return False
        source = torch.Generator().manual_seed(0)
        plain: dict[str, Any] = {"generator": source, "dtype": torch.float32, "device": "cpu"}
        weight = torch.randn((300, 544), **plain).to(dtype)
        bias = torch.randn(300, **plain)
        product = HalfProduct(weight, bias)
        for rows in (*range(1, ROWS + 2), 3 * ROWS):
            states = torch.randn((rows, 544), **plain)
            expected = linear(states.double(), weight.double(), bias.double())
            found = product(states)
            if not torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4):
                return False
            if not torch.equal(multiply_rows(states, weight, bias), found):
                return False
    except Exception:  # whatever numba, LLVM or an odd OpenMP may raise: there is another way
        return False
    return True
