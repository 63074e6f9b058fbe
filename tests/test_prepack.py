"""Prepacked layers compute the same, are ours alone, and are done without where oneDNN is not."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llma_rag.engine import prepack
from llma_rag.engine.prepack import PrepackedLinear, can_prepack, prepack_in_place, prepacked
from llma_rag.engine.twin import twin
from tests.models import VOCAB, greedy, tiny_model

needs_onednn = pytest.mark.skipif(
    not can_prepack(torch.float32), reason="oneDNN is not part of this torch build"
)


@pytest.fixture
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the private operators away, as another torch may."""

    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("_reorder_linear_weight")

    monkeypatch.setattr(prepack, "_pack", missing)
    can_prepack.cache_clear()
    yield
    can_prepack.cache_clear()


def _count(model: nn.Module) -> int:
    return sum(isinstance(module, PrepackedLinear) for module in model.modules())


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 16, 40])
def test_layers_compute_what_linear_computes(dtype: torch.dtype, rows: int) -> None:
    if not can_prepack(dtype):
        pytest.skip("this processor has no bf16 operators in oneDNN")
    layer = nn.Linear(24, 40).to(dtype)
    states = torch.randn(2, rows, 24).to(dtype)
    with torch.inference_mode():
        expected, packed = layer(states), prepacked(layer)
        assert packed is not None
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(packed(states), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(packed.weight, layer.weight)


@needs_onednn
def test_a_model_of_ours_is_exchanged_in_place_and_still_writes_the_same() -> None:
    model = copy.deepcopy(tiny_model("qwen2"))
    prompt = torch.randint(4, VOCAB, (20,)).tolist()
    expected = greedy(model, prompt, 20)
    layers = sum(type(module) is nn.Linear for module in model.modules())
    assert prepack_in_place(model) == layers == _count(model)
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert greedy(model, prompt, 20) == expected


@needs_onednn
def test_a_twin_with_prepacked_layers_leaves_the_model_its_own() -> None:
    model = tiny_model("llama-gqa")
    assert _count(twin(model, exchange=prepacked)) > 0
    assert _count(model) == 0


def test_only_plain_linear_layers_are_exchanged() -> None:
    class Quantised(nn.Linear):
        pass

    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda *_: None)
    for module in (Quantised(8, 8), nn.Linear(8, 8).half(), nn.Embedding(8, 8), hooked):
        assert prepacked(module) is None


def test_without_onednn_nothing_is_exchanged(without_onednn: None) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    assert not can_prepack(torch.float32)
    assert prepack_in_place(model) == 0
    assert _count(twin(model, exchange=prepacked)) == 0


def test_operators_that_are_wrong_are_not_used(
    without_onednn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack, "_pack", lambda weight: weight)
    monkeypatch.setattr(prepack, "_linear", lambda x, w, b, n: torch.zeros(*x.shape[:-1], n))
    assert not can_prepack(torch.float32)


@needs_onednn
def test_narrow_passes_take_the_rows_that_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[int] = []

    def noted(flat: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        filled.append(sizes[-1])
        return torch.nn.functional.pad(flat, sizes)

    packed = prepacked(nn.Linear(24, 40))
    assert packed is not None
    monkeypatch.setattr(prepack, "pad", noted)
    with torch.inference_mode():
        assert [packed(torch.randn(1, rows, 24)).shape[1] for rows in (1, 3, 4, 5)] == [1, 3, 4, 5]
    assert filled == [3, 1]
