"""Products with weights of 16 bits: as exact as torch's, the same bits at every width."""

import copy
import ctypes
import mmap
import os
import pickle
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llma_rag.engine.cpu import half_product
from llma_rag.engine.cpu.half_product import (
    HALVES,
    LINE,
    HalfProduct,
    can_keep,
    in_blocks,
    kept_dtype,
    multiply_rows,
)
from llma_rag.engine.cpu.threads import _function, run_in_parallel
from llma_rag.engine.cpu.vectors import LANES, TILE, _tile_for

needs_kernel = pytest.mark.skipif(
    not can_keep(torch.bfloat16), reason="the kernel does not run here"
)
both = pytest.mark.parametrize("kept", HALVES)
threads = torch.get_num_threads()


def _case(
    outputs: int, inputs: int, rows: int, kept: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(outputs + rows)
    weight = torch.randn((outputs, inputs), generator=source).to(kept)
    return weight, torch.randn((rows, inputs), generator=source)


@pytest.fixture(params=[1, 3])
def some_threads(request: pytest.FixtureRequest):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(threads)


@needs_kernel
@both
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 31, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 1), (1, 256), (70, 33), (96, 1000)])
def test_products_are_right(some_threads, kept, outputs, inputs, rows) -> None:
    weight, states = _case(outputs, inputs, rows, kept)
    exact = (states.double() @ weight.double().T).float()
    torch.testing.assert_close(
        HalfProduct(weight, None)(states), exact, rtol=0, atol=3e-6 * inputs**0.5
    )


@needs_kernel
@pytest.mark.parametrize("inputs", [1000, 4000])
def test_products_are_as_exact_as_those_of_torch(inputs: int) -> None:
    weight, states = _case(96, inputs, 300)
    exact = states.double() @ weight.double().T
    ours, theirs = (
        (found - exact).square().mean().sqrt()
        for found in (HalfProduct(weight, None)(states), states @ weight.float().T)
    )
    assert ours <= 1.2 * theirs


@needs_kernel
@both
@pytest.mark.parametrize("inputs", [48, 700])
def test_a_row_has_the_same_bits_in_any_company(some_threads, monkeypatch, kept, inputs) -> None:
    """Whatever the tile, the block of rows and the thread that computes it."""
    monkeypatch.setattr(half_product, "CACHE", 1 << 17)
    monkeypatch.setattr(half_product, "ALONE", 1 << 12)
    weight, states = _case(200, inputs, 130, kept)
    product = HalfProduct(weight, None)
    alone = torch.cat([product(row[None]) for row in states])
    for rows in (2, 3, 5, 7, 11, 12, 13, 20, 25, 64, 130):
        assert torch.equal(product(states[:rows]), alone[:rows])
        assert torch.equal(product(states[-rows:]), alone[-rows:])


@needs_kernel
@both
@pytest.mark.parametrize("multiple", [1, 3, 9])
@pytest.mark.parametrize("outputs", [1, 7, 16, 33, 300])
def test_weights_that_lie_as_torch_holds_them_give_the_same_bits(
    some_threads, monkeypatch, kept, outputs, multiple
) -> None:
    """With whatever lies behind them, and as many columns as there are."""
    inputs = multiple * LINE
    weight, states = _case(outputs, inputs, 41, kept)
    around = torch.full((outputs + 2, inputs), torch.nan, dtype=kept)
    around[1:-1] = weight
    bias = torch.randn(outputs).to(kept)
    monkeypatch.setattr(half_product, "CACHE", 1 << 12)
    for rows in (1, 2, 13, 41):
        expected = HalfProduct(weight, bias)(states[:rows])
        assert torch.equal(multiply_rows(states[:rows], around[1:-1], bias), expected)


@needs_kernel
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(8, LINE + 2, dtype=torch.bfloat16),
        torch.zeros(LINE, 8, dtype=torch.bfloat16).T,
        torch.zeros(8, LINE),
        torch.zeros(LINE, dtype=torch.bfloat16),
        torch.zeros(8, 0, dtype=torch.bfloat16),
        torch._neg_view(torch.zeros(8, LINE, dtype=torch.bfloat16)),
        torch.zeros(8, LINE, dtype=torch.bfloat16, device="meta"),
        torch.zeros(8, 2 * LINE, dtype=torch.bfloat16),
    ],
)
def test_weights_that_would_be_read_wrongly_or_beyond_are_refused(weight: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="cannot multiply"):
        multiply_rows(torch.zeros(2, LINE), weight, None)


@needs_kernel
@both
@pytest.mark.skipif(sys.platform != "linux", reason="protects memory as Linux does")
@pytest.mark.parametrize("outputs", [1, 9, 17, 32, 33])
def test_nothing_behind_the_last_weight_is_read(kept: torch.dtype, outputs: int) -> None:
    """It would end the process: the weight stands right before a page that nobody may read."""
    weight, states = _case(outputs, 3 * LINE, 2, kept)
    page = mmap.PAGESIZE
    kept_bytes = -(-weight.nbytes // page) * page
    memory = mmap.mmap(-1, kept_bytes + page)
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    placed = flat[kept_bytes - weight.nbytes : kept_bytes].view(kept).view(weight.shape)
    placed.copy_(weight)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    behind = ctypes.c_void_p(flat.data_ptr() + kept_bytes)
    assert protect(behind, ctypes.c_size_t(page), 0) == 0
    try:
        found = multiply_rows(states, placed, None)
    finally:
        assert protect(behind, ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert torch.equal(found, HalfProduct(weight, None)(states))


@needs_kernel
@both
@pytest.mark.parametrize("with_bias", [True, False])
def test_rows_of_sixteen_bits_are_computed_in_float32_and_rounded_once(kept, with_bias) -> None:
    weight, states = _case(70, 2 * LINE, 9, kept)
    states = states.to(kept)
    bias = torch.randn(70).to(kept) if with_bias else None
    wide = HalfProduct(weight, bias)(states.float())
    product = HalfProduct(weight, bias, kept)
    for found in (product(states), multiply_rows(states, weight, bias)):
        assert found.dtype is kept
        assert torch.equal(found, wide.to(kept))
    assert torch.equal(product.dense(), weight)
    with pytest.raises(RuntimeError, match=f"expected {kept} on the CPU"):
        product(states.float())


@needs_kernel
def test_rows_need_not_be_contiguous_and_biases_are_added() -> None:
    weight, states = _case(40, 24, 10)
    bias = torch.randn(40).bfloat16()
    product = HalfProduct(weight, bias)
    expected = states @ weight.float().T + bias.float()
    torch.testing.assert_close(product(states), expected)
    torch.testing.assert_close(product(states.T.contiguous().T), expected)
    assert torch.equal(product.dense(), weight.float())
    assert product(states[:0]).shape == (0, 40)


@needs_kernel
def test_other_dtypes_are_refused_instead_of_read_as_float32() -> None:
    weight, states = _case(40, 24, 10)
    with pytest.raises(RuntimeError, match=r"expected torch\.float32 on the CPU"):
        HalfProduct(weight, None)(states.double())


@needs_kernel
def test_several_threads_may_use_one_product() -> None:
    weight, states = _case(640, 512, 9)
    product = HalfProduct(weight, None)
    with ThreadPoolExecutor(3) as workers:
        found = list(workers.map(product, [states] * 60))
    assert all(torch.equal(one, found[0]) for one in found)


@needs_kernel
def test_rows_of_another_length_are_refused_instead_of_read_beyond() -> None:
    weight, _ = _case(32, 64, 1)
    with pytest.raises(RuntimeError, match="expected 64 numbers in a row, got 8"):
        HalfProduct(weight, None)(torch.ones(2, 8))


@needs_kernel
def test_numbers_that_are_negated_later_are_read_as_negative() -> None:
    weight, states = _case(40, 24, 3)
    product = HalfProduct(weight, None)
    assert torch.equal(product(torch._neg_view(states)), product(-states))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_hold_the_weight_and_no_address(how, dtype: torch.dtype) -> None:
    weight, states = _case(40, 24, 3)
    weight[0, :2] = torch.tensor([1e30, 2.0**-100])  # which float16 does not hold
    states = states.to(dtype)
    product = HalfProduct(weight, torch.randn(40), dtype)
    other = how(product)
    assert torch.equal(other._weight(), weight)
    assert not [one for one in vars(other).values() if isinstance(one, int) and one > 1 << 32]
    assert torch.equal(other(states), product(states))


@needs_kernel
@both
def test_compiled_models_get_the_same_numbers(kept: torch.dtype) -> None:
    """What the kernel reads lives as long as it runs, wherever a graph is broken."""
    weight, states = _case(300, 4 * LINE, 5, kept)
    states = states.to(kept)
    product = HalfProduct(weight, None, kept)

    def both_ways(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return product(rows * 2), multiply_rows(rows * 2, weight, None)

    compiled = torch.compile(both_ways, backend="eager")
    expected = product(states * 2)
    for _ in range(3):
        for found in compiled(states):
            assert torch.equal(found, expected)


@needs_kernel
def test_a_default_device_or_dtype_of_others_does_not_matter() -> None:
    weight, states = _case(40, 24, 3)
    expected = HalfProduct(weight, None)(states)
    can_keep.cache_clear()
    with torch.device("meta"):
        assert can_keep(torch.bfloat16)
        assert torch.equal(HalfProduct(weight, None)(states), expected)
    can_keep.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert can_keep(torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)


@both
def test_the_kernel_runs_where_it_should(kept: torch.dtype) -> None:
    """Else all other tests here would be skipped."""
    assert can_keep(kept) == (TILE is not None and _function("GOMP_parallel") is not None)
    assert not can_keep(torch.float32)


def test_only_weights_that_sixteen_bits_hold_are_kept() -> None:
    weight = torch.randn(8, 8)
    for kept in HALVES:
        assert kept_dtype(weight.to(kept)) is kept
        assert kept_dtype(weight.to(kept).float()) is kept
    assert kept_dtype(torch.tensor([[0.0, -0.0, float("inf"), 2.0**-130]])) is torch.bfloat16
    assert kept_dtype(torch.tensor([[0.0, float("-inf"), 2.0**-24 * 3]])) is torch.bfloat16
    assert kept_dtype(torch.tensor([[2.0**-24, 1 + 2.0**-10]])) is torch.float16
    for odd in (1e5 * (1 + 2.0**-10), 2.0**-24 * (1 + 2.0**-10), 1 + 2.0**-12, float("nan")):
        assert kept_dtype(torch.tensor([[odd]])) is None
    assert kept_dtype(weight.double()) is None


@needs_kernel
def test_odd_numbers_of_float16_are_the_same_in_float32() -> None:
    """Subnormal ones, both zeros, the largest, infinity."""
    odd = torch.tensor([2.0**-24, -3 * 2.0**-24, 0.0, -0.0, 65504.0, torch.inf, 2.0**-14])
    weight = torch.zeros((len(odd), LINE), dtype=torch.float16)
    weight[:, 0] = odd.half()
    states = torch.zeros((1, LINE))
    states[:, 0] = 1
    for found in (HalfProduct(weight, None)(states), multiply_rows(states, weight, None)):
        assert torch.equal(found, odd[None])


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    can_keep.cache_clear()
    monkeypatch.setattr(half_product, "in_blocks", lambda weight: in_blocks(weight.flip(0)))
    assert not can_keep(torch.bfloat16)
    monkeypatch.undo()
    can_keep.cache_clear()

    def missing(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(half_product, "run_in_parallel", missing)
    assert not can_keep(torch.bfloat16)
    can_keep.cache_clear()


def test_tiles_fill_the_registers_that_there_are() -> None:
    known = {"avx2": True, "fma": True, "f16c": True}
    assert _tile_for("x86_64", {**known, "avx512f": True}) == (16, 12)
    assert _tile_for("x86_64", known) == (8, 6)
    for missing in known:
        assert _tile_for("x86_64", {**known, missing: False}) is None
    assert _tile_for("arm64", {}) == _tile_for("aarch64", {}) == (4, 12)
    assert _tile_for("ppc64le", {}) is None


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions are those of x86")
@pytest.mark.parametrize(
    ("machine", "features", "lanes"),
    [("x86_64", "+avx512f", 16), ("x86_64", "+avx2,+fma,+f16c", 8), ("arm64", "+neon", 4)],
)
def test_kernels_written_for_other_processors_pass_these_tests(
    machine, features, lanes, tmp_path
) -> None:
    """Compiled for x86 with AVX2: their vectors are then taken apart or filled up."""
    if lanes == LANES:
        pytest.skip("these are the ones at hand")
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment = {
        **kept,
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c",
        "LLMA_RAG_MACHINE": machine,
        "LLMA_RAG_FEATURES": features,
        "LLMA_RAG_LANES": str(lanes),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "-p", "tests.other_processor", "-n0", "-q"]
    here = Path(__file__)
    files = [str(here), str(here.parent / "test_slab_attention.py")]
    chosen = [*command, "-p", "no:cacheprovider", "-k", "not other_processors", *files]
    run = subprocess.run(
        chosen, env=environment, cwd=here.parent.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.skipif("LLMA_RAG_LANES" not in os.environ, reason="runs below the test above")
def test_vectors_are_as_wide_as_asked_for() -> None:
    assert int(os.environ["LLMA_RAG_LANES"]) == LANES


@needs_kernel
def test_a_function_runs_once_in_each_of_as_many_threads_as_torch_uses() -> None:
    import numba

    from llma_rag.engine.cpu.vectors import take

    @numba.cfunc(numba.types.void(numba.types.int64))
    def count(address: int) -> None:
        take(address)

    number = torch.zeros(1, dtype=torch.int64)
    for asked, expected in ((1, 1), (3, 4), (None, 4 + torch.get_num_threads())):
        run_in_parallel(count.address, number.data_ptr(), asked)
        assert number.item() == expected
