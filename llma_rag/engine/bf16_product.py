"""Keep the weights of float32 layers in bfloat16 where that loses no bit, to read half as much.

Published checkpoints mostly hold bfloat16. In float32 their weights are the same numbers with 16
zeros behind each; a pass that waits for memory need not read those.
"""

from ctypes import Structure, addressof, c_int64
from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear

from llma_rag.engine.threads import run_in_parallel

CACHE = 256 << 10
"""Bytes of rows that are computed while a block of weights is at hand: they stay in most second
caches."""

ALONE = 1 << 17
"""Most multiplications that one thread does alone, since waking others takes longer."""


class Arguments(Structure):
    """What `bf16_kernel.multiply` reads at the address that it is given.

    Attributes:
        task: The next task to be taken, 0 at first; threads count it up.
        states: Address of the rows, float32 [rows, inner].
        weights: Address of what `in_blocks` returned.
        output: Address of the outcome, float32 [rows, blocks * 2 * lanes].
        rows: Rows.
        blocks: Blocks of outputs.
        inner: Inner dimension.
        together: Rows that are computed while a block of weights is at hand.
    """

    _fields_ = [
        (name, c_int64)
        for name in ("task", "states", "weights", "output", "rows", "blocks", "inner", "together")
    ]


class Bf16Product:
    """Multiplies float32 rows by weights that bfloat16 holds exactly, and adds in float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Keep a weight.

        Args:
            weight: bfloat16, or float32 that `holds` says bfloat16 holds; [outputs, inputs].
            bias: [outputs]; None for none.
        """
        from llma_rag.engine.tiles import LANES, ROWS

        self._outputs, self._inputs = weight.shape
        self._blocks = in_blocks(weight)
        self._width = len(self._blocks) * 2 * LANES
        self._together = max(1, CACHE // (4 * ROWS * self._inputs)) * ROWS
        self.nbytes = 2 * weight.numel()
        self.bias = None if bias is None else bias.float()

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return float32 [rows, outputs] of float32 [rows, inputs].

        Raises:
            RuntimeError: If the states are not float32, or rows are of another length.
        """
        rows, inputs = states.shape
        if states.dtype is not torch.float32 or states.device.type != "cpu":
            raise RuntimeError(f"expected float32 on the CPU, got {states.dtype}")
        if inputs != self._inputs:
            raise RuntimeError(f"expected {self._inputs} numbers in a row, got {inputs}")
        states = states.contiguous().resolve_neg()
        output = states.new_empty((rows, self._width))
        given = Arguments(
            task=0,
            states=states.data_ptr(),
            weights=self._blocks.data_ptr(),
            output=output.data_ptr(),
            rows=rows,
            blocks=len(self._blocks),
            inner=self._inputs,
            together=self._together,
        )
        alone = rows * self._width * self._inputs <= ALONE
        run_in_parallel(_multiply(), addressof(given), 1 if alone else None)
        if self._outputs < self._width:
            output = output[:, : self._outputs]
        return output if self.bias is None else output.add_(self.bias)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copies and pickles, maybe for another processor, lay the weight out anew."""
        return Bf16Product, (self.dense().to(torch.bfloat16), self.bias)

    def dense(self) -> torch.Tensor:
        """Return a copy of the weight, float32 [outputs, inputs]."""
        _, inputs, _, _ = self._blocks.shape
        weight = self._blocks.permute(0, 3, 2, 1).reshape(-1, inputs)
        return weight[: self._outputs].view(torch.bfloat16).float()


def in_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as the kernel reads it.

    Args:
        weight: [outputs, inputs], numbers that bfloat16 holds.

    Returns:
        Bits, int16 [blocks, inputs, lanes, 2]; of a block's outputs the first half stands in the
        lower part of a word, the second half in the upper. Missing outputs are zero.
    """
    from llma_rag.engine.tiles import LANES

    outputs, inputs = weight.shape
    blocks = -(-outputs // (2 * LANES))
    bits = weight.new_zeros((blocks * 2 * LANES, inputs), dtype=torch.int16)
    bits[:outputs] = weight.to(torch.bfloat16).view(torch.int16)
    return bits.view(blocks, 2, LANES, inputs).permute(0, 3, 2, 1).contiguous()


def holds(weight: torch.Tensor) -> bool:
    """Return whether bfloat16 holds every number of a weight exactly."""
    if weight.dtype is torch.bfloat16:
        return True
    return weight.dtype is torch.float32 and torch.equal(weight.to(torch.bfloat16).float(), weight)


@cache
def _multiply() -> int:
    """Return the kernel's address."""
    from llma_rag.engine.bf16_kernel import multiply

    address: int = multiply.address
    return address


@cache
def can_keep_bf16() -> bool:
    """Return whether the kernel compiles, can use torch's threads, and is right."""
    try:
        from llma_rag.engine.tiles import ROWS, TILE

        if TILE is None:
            return False
        source = torch.Generator().manual_seed(0)
        plain: dict[str, Any] = {"generator": source, "dtype": torch.float32, "device": "cpu"}
        weight = torch.randn((300, 520), **plain).to(torch.bfloat16)
        bias = torch.randn(300, **plain)
        product = Bf16Product(weight, bias)
        for rows in (*range(1, ROWS + 2), 3 * ROWS):
            states = torch.randn((rows, 520), **plain)
            expected = linear(states.double(), weight.double(), bias.double())
            if not torch.allclose(product(states).double(), expected, rtol=1e-4, atol=1e-4):
                return False
    except Exception:  # whatever numba, LLVM or an odd OpenMP may raise: there is another way
        return False
    return True
