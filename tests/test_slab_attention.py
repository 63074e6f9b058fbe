"""Attention over slabs by our own kernel: right, and the same bits whatever must not matter."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llma_rag.engine.attention import packed_attention
from llma_rag.engine.cpu import slab_attention
from llma_rag.engine.cpu.half_product import can_keep
from llma_rag.engine.cpu.slab_attention import MOST_ROWS, attend, can_attend

pytestmark = pytest.mark.skipif(not can_keep(torch.bfloat16), reason="the kernel does not run here")
SCALE = 0.125
threads = torch.get_num_threads()


@pytest.fixture(params=[1, 3])
def some_threads(request: pytest.FixtureRequest):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(threads)


def _case(
    heads: int, kv_heads: int, rows: int, dim: int, capacity: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(rows)
    shapes = (1, heads, rows, dim), (1, kv_heads, capacity, dim), (1, kv_heads, capacity, dim)
    queries, keys, values = (torch.randn(one, generator=source) for one in shapes)
    return queries, keys, values


def _exact(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    end: int,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    given = queries.double(), keys[:, :, :end].double(), values[:, :, :end].double()
    return packed_attention(torch.nn.Module(), *given, seen, scaling=SCALE)[0]


def _tree(rows: int) -> torch.Tensor:
    """Return which of the new tokens a row sees: itself and some before it."""
    source = torch.Generator().manual_seed(1)
    seen = torch.rand((rows, rows), generator=source) > 0.5
    return (seen | torch.eye(rows, dtype=torch.bool)).tril()


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "rows", "dim", "start"),
    [
        (8, 2, 1, 64, 700), (4, 2, 5, 32, 7), (3, 3, 13, 128, 250), (4, 1, 33, 32, 1),
        (2, 1, 2, 64, 510),
    ],
)  # fmt: skip
def test_outcomes_are_as_exact_as_those_of_torch(
    some_threads, branches, heads, kv_heads, rows, dim, start
) -> None:
    case = _case(heads, kv_heads, rows, dim, 1024)
    end = start + rows
    new = _tree(rows) if branches else None
    all_seen = None
    if new is not None:
        all_seen = torch.cat([torch.ones((rows, start), dtype=torch.bool), new], 1)[None, None]
    exact = _exact(*case, end, all_seen)
    ours = attend(*case, new, start, end, SCALE)
    kept = case[0], case[1][:, :, :end], case[2][:, :, :end]
    theirs = packed_attention(torch.nn.Module(), *kept, all_seen, scaling=SCALE)[0]
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-6


@pytest.mark.parametrize("start", [5, 250, 300, 511])
def test_a_row_has_the_same_bits_alone_in_a_chain_in_a_tree_and_in_any_slab(
    some_threads, start: int
) -> None:
    queries, keys, values = _case(8, 2, 9, 64, 768)
    chain = attend(queries, keys, values, None, start, start + 9, SCALE)
    masked = torch.ones((9, 9), dtype=torch.bool).tril()
    assert torch.equal(chain, attend(queries, keys, values, masked, start, start + 9, SCALE))
    for row in range(9):
        one = queries[:, :, row : row + 1].contiguous()
        alone = attend(one, keys, values, None, start + row, start + row + 1, SCALE)
        assert torch.equal(alone[:, 0], chain[:, row])
        cut = [slab[:, :, : start + 9].contiguous() for slab in (keys, values)]
        assert torch.equal(attend(one, *cut, None, start + row, start + row + 1, SCALE), alone)


def test_what_a_slab_holds_behind_the_end_does_not_matter() -> None:
    queries, keys, values = _case(4, 2, 3, 32, 512)
    expected = attend(queries, keys, values, None, 300, 303, SCALE)
    for slab in (keys, values):
        slab[:, :, 303:] = float("nan")
    assert torch.equal(attend(queries, keys, values, None, 300, 303, SCALE), expected)


def test_tokens_that_a_mask_hides_do_not_matter() -> None:
    """Those of a bucket that is shown whole too, and rows of flags that are further apart."""
    queries, keys, values = _case(4, 2, 3, 32, 1024)
    expected = attend(queries, keys, values, None, 300, 303, SCALE)
    seen = torch.zeros((3, 700), dtype=torch.bool)
    seen[:, :3] = torch.ones((3, 3), dtype=torch.bool).tril()
    assert torch.equal(attend(queries, keys, values, seen[:, :600], 300, 900, SCALE), expected)


@pytest.mark.parametrize("where", ["queries", "keys", "values"])
def test_numbers_that_are_none_are_not_hidden(where: str) -> None:
    case = dict(zip(("queries", "keys", "values"), _case(4, 2, 2, 32, 256), strict=True))
    case[where][0, 0, 0, 3] = float("nan")
    output = attend(**case, seen=None, start=40, end=42, scale=SCALE)
    assert output[0, 0, 0].isnan().any()
    assert not output[0, :, 2:].isnan().any()


def test_threads_do_not_share_memory() -> None:
    case = _case(8, 2, 5, 64, 1024)
    starts = [3, 300, 600, 900]
    alone = [attend(*case, None, start, start + 5, SCALE) for start in starts]
    with ThreadPoolExecutor(3) as workers:
        found = list(workers.map(lambda at: attend(*case, None, at, at + 5, SCALE), starts * 20))
    assert all(map(torch.equal, found, alone * 20))


def test_other_heads_and_more_rows_are_left_to_torch() -> None:
    queries, keys, _ = _case(4, 2, 2, 32, 64)
    assert can_attend(queries, keys)
    assert not can_attend(queries.bfloat16(), keys.bfloat16())
    assert not can_attend(queries[..., :4], keys[..., :4])
    wide = torch.zeros((1, 4, MOST_ROWS // 2 + 1, 32))
    assert not can_attend(wide, keys)


def test_threads_work_in_room_of_their_own_and_pieces_keep_what_is_joined() -> None:
    """Behind many tokens room for the scores of all pieces would be the larger part."""
    case = _case(8, 2, 21, 64, 8192)

    def room() -> int:
        attend(*case, None, 8000, 8021, SCALE)
        found: int = slab_attention._rooms.room.nbytes
        return found

    with ThreadPoolExecutor(1) as pool:  # whose room is new
        taken = pool.submit(room).result()
    kept = 32 * 2 * 84 * (64 + 2) * 4
    assert kept < taken < kept + threads * (84 * 256 * 4 + 64 * 32 * 4) + 1
