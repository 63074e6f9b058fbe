"""Layers over the weights of a model that somebody else loaded: right, and still that model's."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from llma_rag.engine.cpu import shared_linear as module
from llma_rag.engine.cpu.half_product import HALVES, LINE, HalfProduct, can_keep, multiply_rows
from llma_rag.engine.cpu.shared_linear import SharedLinear, can_share, shared_linear
from llma_rag.engine.fast import fast_view
from llma_rag.engine.step import Pass, StepRunner
from tests.models import VOCAB, tiny_model

pytestmark = pytest.mark.skipif(not can_keep(torch.bfloat16), reason="the kernel does not run here")


@pytest.fixture(autouse=True)
def without_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the processor for one that has no products of 16-bit numbers."""
    monkeypatch.setattr(module, "lacks_products", lambda dtype: True)
    can_share.cache_clear()
    yield
    can_share.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product that the kernel computed."""
    noted: list[int] = []

    def multiply(states: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        noted.append(len(states))
        return multiply_rows(states, *rest)

    monkeypatch.setattr(module, "multiply_rows", multiply)
    return noted


def _layer(dtype: torch.dtype, bias: bool = True, inputs: int = 3 * LINE) -> nn.Linear:
    return nn.Linear(inputs, 40, bias=bias).to(dtype)


def _shared(layer: nn.Module) -> SharedLinear:
    found = shared_linear(layer)
    assert isinstance(found, SharedLinear)
    return found


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [True, False])
def test_several_rows_are_the_kernels_and_single_ones_are_torchs(calls, dtype, bias: bool) -> None:
    layer = _layer(dtype, bias)
    shared = _shared(layer)
    product = HalfProduct(layer.weight.detach(), layer.bias, dtype)
    with torch.inference_mode():
        for shape, rows in (((2, 5), 10), ((70,), 70), ((1, 2), 2)):
            states = torch.randn(*shape, layer.in_features).to(dtype)
            found = shared(states)
            assert (found.dtype, found.shape) == (dtype, (*shape, 40))
            assert torch.equal(found.view(-1, 40), product(states.view(-1, layer.in_features)))
            assert calls.pop() == rows
        for shape in ((1, 1), (1,), (), (0,), (2, 0)):
            states = torch.randn(*shape, layer.in_features).to(dtype)
            assert torch.equal(shared(states), layer(states))
    assert not calls


def test_whatever_is_done_to_the_layer_later_holds_for_its_second(calls: list[int]) -> None:
    layer = _layer(torch.bfloat16)
    shared, states = _shared(layer), torch.randn(3, layer.in_features).bfloat16()
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
    assert calls == [3] * 4


class Quantised(torch.Tensor):
    """As the weights of a model that torchao quantised in place."""


def _with(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[nn.Linear], None]:
    def apply(layer: nn.Linear) -> None:
        layer.weight = nn.Parameter(change(layer.weight.detach()))

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.float(),
        lambda layer: layer.double(),
        _with(lambda weight: weight.T.contiguous().T),
        _with(torch._neg_view),
        _with(lambda weight: weight[:, : LINE + 2].contiguous()),
        _with(lambda weight: weight.as_subclass(Quantised)),
    ],
)
def test_a_layer_that_was_changed_into_what_the_kernel_does_not_know_runs_as_it_is(
    calls, change
) -> None:
    layer = _layer(torch.bfloat16)
    shared = _shared(layer)
    change(layer)
    states = torch.randn(3, layer.weight.shape[1]).to(layer.weight.dtype)
    with torch.inference_mode():
        assert torch.equal(shared(states), layer(states))
    assert not calls


def test_what_only_torch_can_do_is_left_to_torch(calls: list[int]) -> None:
    layer = _layer(torch.bfloat16)
    shared, states = _shared(layer), torch.randn(3, layer.in_features).bfloat16()
    shared(states).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        assert shared(states).dtype is torch.float16
    assert not calls


@pytest.mark.parametrize(
    "states",
    [
        lambda size: torch.ones(2, size + 32, dtype=torch.bfloat16),
        lambda size: torch.ones(2, size, dtype=torch.float16),
        lambda size: torch.ones((), dtype=torch.bfloat16),
    ],
)
def test_states_that_do_not_fit_are_refused_as_linear_refuses_them(states) -> None:
    layer = _layer(torch.bfloat16)
    given = states(layer.in_features)
    with torch.inference_mode(), pytest.raises(RuntimeError) as expected:
        layer(given)
    with torch.inference_mode(), pytest.raises(RuntimeError) as found:
        _shared(layer)(given)
    assert str(found.value) == str(expected.value)


def test_biases_of_another_dtype_are_refused_as_linear_refuses_them() -> None:
    layer = _layer(torch.bfloat16)
    layer.bias.data = layer.bias.data.float()
    states = torch.randn(3, layer.in_features).bfloat16()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
        _shared(layer)(states)


def test_layers_that_gain_nothing_or_are_not_plain_are_left() -> None:
    class Other(nn.Linear):
        pass

    hooked = _layer(torch.bfloat16)
    hooked.register_forward_hook(lambda *_: None)
    odd = (
        _layer(torch.float32),
        _layer(torch.bfloat16, inputs=LINE + 1),
        Other(LINE, 32).bfloat16(),
        nn.Embedding(LINE, 32).bfloat16(),
        hooked,
    )
    assert not any(map(shared_linear, odd))


def test_where_the_processor_has_such_products_nothing_is_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = _layer(torch.bfloat16)
    assert shared_linear(layer) is not None
    can_share.cache_clear()
    monkeypatch.setattr(module, "lacks_products", lambda dtype: False)
    assert shared_linear(layer) is None


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_that_somebody_loaded_runs_by_them_and_stays_as_it_was(calls, dtype) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa")).to(dtype)
    linear = [one for one in model.modules() if type(one) is nn.Linear]
    eligible = [one for one in linear if one.in_features % LINE == 0]
    assert eligible
    view = fast_view(model)
    assert sum(isinstance(one, SharedLinear) for one in view.modules()) == len(eligible)
    assert [one for one in model.modules() if type(one) is nn.Linear] == linear
    assert {id(one) for one in view.parameters()} == {id(one) for one in model.parameters()}
    ids = torch.randint(4, VOCAB, (26,)).tolist()
    runner = StepRunner(view)
    row = runner.open_row(64)
    prompt, chain = Pass(row, ids[:20], [], []), Pass(row, ids[20:21], ids[21:], [-1, 0, 1, 2, 3])
    runner.logits(prompt)
    runner.keep(prompt, [])
    assert calls
    found = runner.logits(chain)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, 20:]
    torch.testing.assert_close(found.to(dtype), expected, rtol=5e-2, atol=5e-2)
