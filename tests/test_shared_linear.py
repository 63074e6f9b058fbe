"""Layers over the weights of a model that somebody else loaded: right, and still that model's."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llma_rag.engine import shared_linear as module
from llma_rag.engine.fast import fast_view
from llma_rag.engine.half_product import HALVES, INPUTS, can_keep
from llma_rag.engine.shared_linear import SharedLinear, can_share, shared_linear
from llma_rag.engine.twin import twin
from tests.models import VOCAB, tiny_model

pytestmark = pytest.mark.skipif(not can_keep(torch.bfloat16), reason="the kernel does not run here")


@pytest.fixture(autouse=True)
def without_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the processor for one that has no products of 16-bit numbers."""
    monkeypatch.setattr(module, "has_products", lambda dtype: False)
    can_share.cache_clear()
    yield
    can_share.cache_clear()


def _layer(dtype: torch.dtype, bias: bool = True, inputs: int | None = None) -> nn.Linear:
    return nn.Linear(inputs or 3 * INPUTS, 40, bias=bias).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_compute_what_linear_computes(dtype: torch.dtype, bias: bool) -> None:
    layer = _layer(dtype, bias)
    shared = shared_linear(layer)
    assert isinstance(shared, SharedLinear)
    for shape in ((1, 1), (2, 5), (70,), ()):
        states = torch.randn(*shape, layer.in_features).to(dtype)
        with torch.inference_mode():
            found, expected = shared(states), layer(states)
        assert (found.dtype, found.shape) == (dtype, expected.shape)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        exact = nn.functional.linear(
            states.double(), layer.weight.double(), layer.bias.double() if bias else None
        )
        assert (found - exact).abs().max() <= 1.01 * (expected - exact).abs().max() + 1e-6


def test_whatever_is_done_to_the_layer_later_holds_for_its_second() -> None:
    layer = _layer(torch.bfloat16)
    shared, states = shared_linear(layer), torch.randn(3, layer.in_features).bfloat16()
    assert shared is not None
    with torch.inference_mode():
        before = shared(states)
        with torch.no_grad():
            layer.weight.neg_()
            layer.bias.neg_()
        assert torch.equal(shared(states), -before)
        layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
        assert torch.equal(shared(states), layer.bias.expand(3, -1))
        seen: list[nn.Module] = []
        layer.register_forward_hook(lambda layer, given, found: seen.append(layer))
        shared(states)
    assert seen == [shared]


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.float(),
        lambda layer: layer.double(),
        lambda layer: setattr(
            layer, "weight", nn.Parameter(layer.weight.detach().T.contiguous().T)
        ),
    ],
)
def test_a_layer_that_was_changed_into_what_the_kernel_does_not_know_runs_as_it_is(change) -> None:
    layer = _layer(torch.bfloat16)
    shared = shared_linear(layer)
    assert shared is not None
    change(layer)
    states = torch.randn(3, layer.in_features).to(layer.weight.dtype)
    with torch.inference_mode():
        assert torch.equal(shared(states), layer(states))
    with pytest.raises(RuntimeError, match="dtype"):
        shared(states.to(torch.complex64))


def test_layers_that_gain_nothing_or_are_not_plain_are_left() -> None:
    class Other(nn.Linear):
        pass

    hooked = _layer(torch.bfloat16)
    hooked.register_forward_hook(lambda *_: None)
    odd = (
        _layer(torch.float32),
        _layer(torch.bfloat16, inputs=INPUTS + 1),
        Other(32, 32).bfloat16(),
        nn.Embedding(32, 32).bfloat16(),
        hooked,
    )
    assert not any(map(shared_linear, odd))


def test_where_the_processor_has_such_products_or_is_another_nothing_is_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = _layer(torch.bfloat16)
    assert can_share(torch.bfloat16)
    can_share.cache_clear()
    monkeypatch.setattr(module, "has_products", lambda dtype: True)
    assert shared_linear(layer) is None
    can_share.cache_clear()
    monkeypatch.setattr(module, "has_products", lambda dtype: False)
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    assert shared_linear(layer) is None


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_that_somebody_loaded_runs_by_them_and_stays_as_it_was(dtype) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa")).to(dtype)
    linear = [one for one in model.modules() if type(one) is nn.Linear]
    eligible = [one for one in linear if one.in_features % INPUTS == 0]
    assert eligible
    view = twin(model, exchange=shared_linear)
    found = [one for one in view.modules() if isinstance(one, SharedLinear)]
    assert len(found) == len(eligible)
    assert [one for one in model.modules() if type(one) is nn.Linear] == linear
    assert {id(one) for one in view.parameters()} == {id(one) for one in model.parameters()}
    fast = fast_view(model)
    assert sum(isinstance(one, SharedLinear) for one in fast.modules()) == len(eligible)
    ids = torch.randint(4, VOCAB, (1, 20))
    with torch.inference_mode():
        torch.testing.assert_close(view(ids).logits, model(ids).logits, rtol=5e-2, atol=5e-2)
