"""Exchanged layers compute the same, are ours alone, and are left where nothing is better."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llma_rag.engine.cpu import onednn_product, prepack
from llma_rag.engine.cpu.half_product import HalfProduct, can_keep
from llma_rag.engine.cpu.onednn_product import OneDnnProduct, can_prepack
from llma_rag.engine.cpu.prepack import PrepackedLinear, prepack_in_place, prepacked, product_of
from llma_rag.engine.twin import twin
from tests.models import VOCAB, greedy, tiny_model

needs_onednn = pytest.mark.skipif(
    not can_prepack(torch.float32), reason="oneDNN is not part of this torch build"
)
needs_bf16 = pytest.mark.skipif(
    not can_keep(torch.bfloat16) or not can_prepack(torch.float32),
    reason="our kernel does not run here",
)


@pytest.fixture
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the private operators away, as another torch may, and our own kernel."""

    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("_reorder_linear_weight")

    monkeypatch.setattr(OneDnnProduct, "__init__", missing)
    monkeypatch.setattr(prepack, "can_keep", lambda dtype: False)
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
        expected = layer(states)
        (packed,) = prepacked(nn.Sequential(layer)).values()
        assert isinstance(packed._packed.product, OneDnnProduct)
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(packed(states), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(packed.weight, layer.weight)
    assert packed.bias is not None
    assert torch.equal(packed.bias, layer.bias)


def _gated(bias: bool = True) -> nn.ModuleDict:
    sizes = {"gate_proj": (24, 40), "up_proj": (24, 8), "down_proj": (40, 24)}
    return nn.ModuleDict({name: nn.Linear(*size, bias=bias) for name, size in sizes.items()})


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_layers_over_one_input_are_computed_by_one_call(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with any other input by calls of their own, whatever the order."""
    model, calls, original = _gated(bias), [], OneDnnProduct.__call__

    def counted(self: OneDnnProduct, states: torch.Tensor) -> torch.Tensor:
        calls.append(states)
        return original(self, states)

    found = prepacked(model)
    monkeypatch.setattr(OneDnnProduct, "__call__", counted)
    gate, up = model["gate_proj"], model["up_proj"]
    one, other = torch.randn(1, 5, 24), torch.randn(1, 5, 24)
    with torch.inference_mode():
        for order, count in (
            ([(gate, one), (up, one)], 1),
            ([(up, one), (gate, one)], 1),
            ([(gate, one), (gate, other), (up, one), (up, other)], 4),
            ([(gate, one), (up, one.clone())], 2),
            ([(gate, one), (gate, one), (up, one)], 2),
        ):
            calls.clear()
            for layer, states in order:
                torch.testing.assert_close(
                    found[layer](states), layer(states), rtol=1e-5, atol=1e-5
                )
            assert len(calls) == count
            for layer in (gate, up):
                assert torch.equal(found[layer].weight, layer.weight)
                found[layer]._packed._held = None
    with torch.no_grad():
        found[gate](one)
        one.mul_(2)
        torch.testing.assert_close(found[up](one), up(one), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_nothing_is_held_once_every_layer_took_its_part() -> None:
    model, states = _gated(), torch.randn(1, 5, 24)
    found = prepacked(model)
    gate, up = found[model["gate_proj"]], found[model["up_proj"]]
    gate(states)
    assert gate._packed._held is not None
    up(states)
    assert gate._packed._held is None
    assert gate._packed is up._packed is not found[model["down_proj"]]._packed


@needs_onednn
def test_layers_of_other_sizes_or_with_a_bias_of_their_own_are_not_joined() -> None:
    for odd in (nn.Linear(16, 40), nn.Linear(24, 40, bias=False)):
        model = _gated()
        model["gate_proj"] = odd
        found = prepacked(model)
        assert found[odd]._packed is not found[model["up_proj"]]._packed


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
    assert _count(twin(model, exchange=prepacked(model).get)) > 0
    assert _count(model) == 0


def test_only_plain_linear_layers_are_exchanged() -> None:
    class Quantised(nn.Linear):
        pass

    class QuantisedWeight(torch.Tensor):
        pass

    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda *_: None)
    other = nn.Linear(8, 8)
    other.weight = nn.Parameter(other.weight.detach().as_subclass(QuantisedWeight))
    odd = (
        Quantised(8, 8),
        nn.Linear(8, 8).double(),
        nn.Embedding(8, 8),
        hooked,
        other,
    )
    assert prepacked(nn.Sequential(*odd)) == {}


@needs_bf16
@pytest.mark.parametrize("names", [("gate_proj", "up_proj"), ("down_proj",)])
@pytest.mark.parametrize("held", [True, False])
def test_weights_are_kept_in_sixteen_bits_where_that_loses_no_bit(names, held: bool) -> None:
    model = _gated()
    with torch.no_grad():
        for layer in model.values():
            layer.weight.copy_(layer.weight.bfloat16())
        if not held:
            model[names[-1]].weight[3, 5] = 1 + 2**-20
    expected = HalfProduct if held else OneDnnProduct
    assert {type(prepacked(model)[model[name]]._packed.product) for name in names} == {expected}


@needs_bf16
@pytest.mark.parametrize("lacking", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_sixteen_bits_are_ours_where_the_processor_has_no_products_of_such(
    dtype: torch.dtype, lacking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack, "lacks_products", lambda dtype: lacking)
    monkeypatch.setattr(prepack, "can_prepack", lambda dtype: False)
    layer = nn.Linear(24, 40).to(dtype)
    found = prepacked(nn.Sequential(layer))
    assert len(found) == lacking
    states = torch.randn(2, 5, 24).to(dtype)
    for packed in found.values():
        assert isinstance(packed.product, HalfProduct)
        assert packed(states).dtype is dtype
        torch.testing.assert_close(packed(states), layer(states), rtol=2e-2, atol=2e-2)
        assert torch.equal(packed.weight, layer.weight)


@needs_bf16
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_sixteen_bit_weights_computes_in_float32_as_exactly_as_torch(dtype) -> None:
    model = copy.deepcopy(tiny_model("qwen2")).to(dtype)
    wide, exact = copy.deepcopy(model).float(), copy.deepcopy(model).double()
    torch.manual_seed(5)
    ids = torch.randint(4, VOCAB, (1, 20))
    layers = sum(type(module) is nn.Linear for module in model.modules())
    assert prepack_in_place(model, torch.float32) == layers == _count(model)
    with torch.inference_mode():
        expected = exact(ids).logits
        ours, theirs = (
            (one(ids).logits - expected).square().mean().sqrt() for one in (model.float(), wide)
        )
    assert ours <= 2 * theirs


@pytest.mark.parametrize("shape", [(8, 0), (0, 8)])
def test_layers_without_weights_are_left(shape: tuple[int, int]) -> None:
    assert product_of(torch.empty(shape), None, torch.float32) is None


def test_without_onednn_nothing_is_exchanged(without_onednn: None) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    assert not can_prepack(torch.float32)
    assert prepack_in_place(model) == 0
    assert _count(twin(model, exchange=prepacked(model).get)) == 0


def test_operators_that_are_wrong_are_not_used(
    without_onednn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OneDnnProduct, "__init__", lambda *_: None)
    monkeypatch.setattr(OneDnnProduct, "__call__", lambda _, states: torch.zeros(len(states), 48))
    assert not can_prepack(torch.float32)


@needs_onednn
@pytest.mark.parametrize("least", [1, 4])
def test_narrow_passes_take_the_rows_that_cost_no_more(
    least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_product, "LEAST_ROWS", least)
    taken: list[int] = []
    original = torch.ops.mkldnn._linear_pointwise

    def noted(flat: torch.Tensor, *rest: object) -> torch.Tensor:
        taken.append(flat.shape[0])
        return original(flat, *rest)

    layer = nn.Linear(24, 40)
    (packed,) = prepacked(nn.Sequential(layer)).values()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
    with torch.inference_mode():
        for rows in (1, 2, 3, 4, 5):
            states = torch.randn(1, rows, 24)
            torch.testing.assert_close(packed(states), layer(states), rtol=1e-5, atol=1e-5)
    assert taken == [max(least, rows) for rows in (1, 2, 3, 4, 5)]
