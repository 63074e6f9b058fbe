"""The Triton kernel against attention by definition; `tests/test_kernels.py` runs this file."""

import pytest
import torch

from llma_rag.engine.cuda import attention_kernel as kernels
from llma_rag.verification import ancestors

HEADS, KV_HEADS, DIM, CAPACITY, SLOTS = 4, 2, 16, 1152, 3


def bits(parents: list[int]) -> list[int]:
    """Return what each row sees: row 0 is the token before the draft, which all descend from."""
    return [1, *(1 | sum(1 << (step + 1) for step in path) for path in ancestors(parents))]


def chain(width: int) -> list[int]:
    return bits(list(range(-1, width - 2)))


def slab(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (SLOTS, KV_HEADS, CAPACITY, DIM)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(2))


def queries(sequences: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn((sequences, HEADS, width, DIM), generator=generator).to(dtype)


def plan(starts: list[int], slots: list[int], seen: list[list[int]]) -> tuple[torch.Tensor, ...]:
    return (
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(slots, dtype=torch.int32),
        torch.tensor(seen, dtype=torch.int64),
    )


def in_float64(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    starts: list[int], slots: list[int], seen: list[list[int]],
) -> torch.Tensor:  # fmt: skip
    """Attend by definition, one row at a time."""
    output = torch.empty(len(starts), query.shape[2], HEADS, DIM, dtype=torch.float64)
    for number, (start, slot, rows) in enumerate(zip(starts, slots, seen, strict=True)):
        for row, mask in enumerate(rows):
            places = [*range(start), *(start + j for j in range(32) if mask >> j & 1)]
            for head in range(HEADS):
                k = keys[slot, head * KV_HEADS // HEADS, places].double()
                v = values[slot, head * KV_HEADS // HEADS, places].double()
                weights = torch.softmax(k @ query[number, head, row].double() * DIM**-0.5, 0)
                output[number, row, head] = weights @ v
    return output


@pytest.mark.parametrize("start", [0, 1, 63, 255, 256, 300, 1100])
def test_chains_see_what_stands_before_them(start: int) -> None:
    query, (keys, values), seen = queries(1, 5), slab(0), [chain(5)]
    got = kernels.verify(query, keys, values, *plan([start], [1], seen), DIM**-0.5)
    expected = in_float64(query, keys, values, [start], [1], seen)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


def test_trees_see_their_ancestors_only() -> None:
    query, (keys, values), seen = queries(1, 6), slab(1), [bits([-1, -1, 0, 2, 1])]
    got = kernels.verify(query, keys, values, *plan([254], [0], seen), DIM**-0.5)
    expected = in_float64(query, keys, values, [254], [0], seen)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


def test_sequences_have_their_own_lengths_slots_and_trees() -> None:
    query, (keys, values) = queries(2, 4), slab(2)
    starts, slots, seen = [7, 260], [2, 0], [bits([-1, -1, 1]), chain(4)]
    got = kernels.verify(query, keys, values, *plan(starts, slots, seen), DIM**-0.5)
    expected = in_float64(query, keys, values, starts, slots, seen)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


def test_later_garbage_and_capacity_change_no_bit() -> None:
    query, (keys, values) = queries(1, 3), slab(3)
    device_plan = plan([100], [1], [chain(3)])
    got = kernels.verify(query, keys, values, *device_plan, DIM**-0.5)
    spoilt, more = keys.clone(), values.clone()
    spoilt[:, :, 103:], more[:, :, 103:] = 1e4, -1e4
    larger = [torch.cat((one, one), dim=2) for one in (spoilt, more)]
    assert torch.equal(kernels.verify(query, spoilt, more, *device_plan, DIM**-0.5), got)
    assert torch.equal(kernels.verify(query, *larger, *device_plan, DIM**-0.5), got)


def test_half_precision_is_as_near_as_it_rounds() -> None:
    """In float16: the interpreter multiplies the bits of bfloat16 as whole numbers."""
    query, (keys, values) = queries(1, 2, torch.float16), slab(4, torch.float16)
    got = kernels.verify(query, keys, values, *plan([40], [0], [chain(2)]), DIM**-0.5)
    expected = in_float64(query, keys, values, [40], [0], [chain(2)])
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.double(), expected, rtol=4e-3, atol=2e-3)


def test_too_wide_a_step_is_refused() -> None:
    keys, values = slab(0)
    with pytest.raises(ValueError, match="at most 32 rows"):
        kernels.verify(queries(1, 33), keys, values, *plan([0], [0], [[1] * 33]), 1.0)
