"""Products with weights in bfloat16: as exact as torch's, the same bits at every width."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llma_rag.engine import bf16_product
from llma_rag.engine.bf16_product import Bf16Product, can_keep_bf16, holds, in_blocks
from llma_rag.engine.threads import _function, run_in_parallel
from llma_rag.engine.tiles import TILE, _tile_for

needs_kernel = pytest.mark.skipif(not can_keep_bf16(), reason="the kernel does not run here")
threads = torch.get_num_threads()


def _case(outputs: int, inputs: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(outputs + rows)
    weight = torch.randn((outputs, inputs), generator=source).bfloat16()
    return weight, torch.randn((rows, inputs), generator=source)


@pytest.fixture(params=[1, 3])
def some_threads(request: pytest.FixtureRequest):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(threads)


@needs_kernel
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 31, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 1), (1, 256), (70, 33), (96, 1000)])
def test_products_are_right(some_threads, outputs, inputs, rows) -> None:
    weight, states = _case(outputs, inputs, rows)
    exact = (states.double() @ weight.double().T).float()
    torch.testing.assert_close(
        Bf16Product(weight, None)(states), exact, rtol=0, atol=3e-6 * inputs**0.5
    )


@needs_kernel
@pytest.mark.parametrize("inputs", [1000, 4000])
def test_products_are_as_exact_as_those_of_torch(inputs: int) -> None:
    weight, states = _case(96, inputs, 300)
    exact = states.double() @ weight.double().T
    ours, theirs = (
        (found - exact).square().mean().sqrt()
        for found in (Bf16Product(weight, None)(states), states @ weight.float().T)
    )
    assert ours <= 1.2 * theirs


@needs_kernel
@pytest.mark.parametrize("inputs", [48, 700])
def test_a_row_has_the_same_bits_in_any_company(some_threads, monkeypatch, inputs) -> None:
    """Whatever the tile, the block of rows and the thread that computes it."""
    monkeypatch.setattr(bf16_product, "CACHE", 1 << 17)
    monkeypatch.setattr(bf16_product, "ALONE", 1 << 12)
    weight, states = _case(200, inputs, 130)
    product = Bf16Product(weight, None)
    alone = torch.cat([product(row[None]) for row in states])
    for rows in (2, 3, 5, 7, 11, 12, 13, 20, 25, 64, 130):
        assert torch.equal(product(states[:rows]), alone[:rows])
        assert torch.equal(product(states[-rows:]), alone[-rows:])


@needs_kernel
def test_rows_need_not_be_contiguous_and_biases_are_added() -> None:
    weight, states = _case(40, 24, 10)
    bias = torch.randn(40).bfloat16()
    product = Bf16Product(weight, bias)
    expected = states @ weight.float().T + bias.float()
    torch.testing.assert_close(product(states), expected)
    torch.testing.assert_close(product(states.T.contiguous().T), expected)
    assert torch.equal(product.dense(), weight.float())
    assert product(states[:0]).shape == (0, 40)


@needs_kernel
def test_other_dtypes_are_refused_instead_of_read_as_float32() -> None:
    weight, states = _case(40, 24, 10)
    with pytest.raises(RuntimeError, match="expected float32 on the CPU"):
        Bf16Product(weight, None)(states.double())


@needs_kernel
def test_several_threads_may_use_one_product() -> None:
    weight, states = _case(640, 512, 9)
    product = Bf16Product(weight, None)
    with ThreadPoolExecutor(3) as workers:
        found = list(workers.map(product, [states] * 60))
    assert all(torch.equal(one, found[0]) for one in found)


@needs_kernel
def test_rows_of_another_length_are_refused_instead_of_read_beyond() -> None:
    weight, _ = _case(32, 64, 1)
    with pytest.raises(RuntimeError, match="expected 64 numbers in a row, got 8"):
        Bf16Product(weight, None)(torch.ones(2, 8))


@needs_kernel
def test_numbers_that_are_negated_later_are_read_as_negative() -> None:
    weight, states = _case(40, 24, 3)
    product = Bf16Product(weight, None)
    assert torch.equal(product(torch._neg_view(states)), product(-states))


@needs_kernel
@pytest.mark.parametrize("how", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_hold_the_weight_and_no_address(how) -> None:
    weight, states = _case(40, 24, 3)
    product = Bf16Product(weight, torch.randn(40))
    other = how(product)
    assert not [one for one in vars(other).values() if isinstance(one, int) and one > 1 << 32]
    assert torch.equal(other(states), product(states))


@needs_kernel
def test_a_default_device_or_dtype_of_others_does_not_matter() -> None:
    weight, states = _case(40, 24, 3)
    expected = Bf16Product(weight, None)(states)
    can_keep_bf16.cache_clear()
    with torch.device("meta"):
        assert can_keep_bf16()
        assert torch.equal(Bf16Product(weight, None)(states), expected)
    can_keep_bf16.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert can_keep_bf16()
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_kernel_runs_where_it_should() -> None:
    """Else all other tests here would be skipped."""
    assert can_keep_bf16() == (TILE is not None and _function("GOMP_parallel") is not None)


def test_only_weights_that_bfloat16_holds_are_kept() -> None:
    weight = torch.randn(8, 8).bfloat16()
    assert holds(weight)
    assert holds(weight.float())
    assert holds(torch.tensor([[0.0, -0.0, float("inf"), 2.0**-130]]))
    assert not holds(weight.float() * (1 + 2**-12))
    assert not holds(weight.half())
    assert not holds(torch.tensor([[float("nan")]]))


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    can_keep_bf16.cache_clear()
    monkeypatch.setattr(bf16_product, "in_blocks", lambda weight: in_blocks(weight.flip(0)))
    assert not can_keep_bf16()
    monkeypatch.undo()
    can_keep_bf16.cache_clear()

    def missing(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(bf16_product, "run_in_parallel", missing)
    assert not can_keep_bf16()
    can_keep_bf16.cache_clear()


def test_tiles_fill_the_registers_that_there_are() -> None:
    known = {"avx2": True, "fma": True}
    assert _tile_for("x86_64", {**known, "avx512f": True}) == (16, 12)
    assert _tile_for("x86_64", known) == (8, 6)
    assert _tile_for("x86_64", {"avx2": True}) is None
    assert _tile_for("arm64", {}) == _tile_for("aarch64", {}) == (4, 12)
    assert _tile_for("ppc64le", {}) is None


@pytest.mark.slow
@pytest.mark.skipif(not can_keep_bf16(), reason="the kernel does not run here")
@pytest.mark.parametrize(
    ("machine", "features", "lanes"),
    [("x86_64", "+avx,+avx2,+fma", 8), ("arm64", "+sse2", 4)],
)
def test_tiles_of_other_processors_give_the_same(machine, features, lanes, tmp_path) -> None:
    code = (
        f"import platform; platform.machine = lambda: {machine!r}\n"
        "from llma_rag.engine import bf16_product, tiles\n"
        "print(tiles.LANES, bf16_product.can_keep_bf16())"
    )
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": features,
        "XDG_CACHE_HOME": str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [str(lanes), "True"]


@needs_kernel
def test_a_function_runs_once_in_each_of_as_many_threads_as_torch_uses() -> None:
    import numba

    from llma_rag.engine.tiles import take

    @numba.cfunc(numba.types.void(numba.types.int64))
    def count(address: int) -> None:
        take(address)

    number = torch.zeros(1, dtype=torch.int64)
    for asked, expected in ((1, 1), (3, 4), (None, 4 + torch.get_num_threads())):
        run_in_parallel(count.address, number.data_ptr(), asked)
        assert number.item() == expected
