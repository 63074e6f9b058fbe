"""The twin with our attention computes what the model computes, and the model stays as it was."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from llma_rag.engine import attention
from llma_rag.engine.attention import MAX_PACKED_ROWS, PACKED, WINDOWED_ROWS, packed_attention
from llma_rag.engine.fast import can_be_fast, fast_view
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.engine.twin import can_twin, twin
from tests.models import VOCAB, tiny_model

NAMES = ["llama-gqa", "qwen2", "mistral", "gpt2", "gemma", "gemma2"]


def _logits(model: PreTrainedModel) -> torch.Tensor:
    """Prefill, verify a chain and a tree, take a single step, refill a long chunk."""
    torch.manual_seed(0)
    ids = torch.randint(4, VOCAB, (160,)).tolist()
    runner = StepRunner(model)
    row = runner.open_row(200)
    found: list[torch.Tensor] = []

    def run(committed: list[int], drafted: list[int], parents: list[int], kept: list[int]) -> None:
        step = Pass(row, committed, drafted, parents)
        found.append(runner.logits(step))
        runner.keep(step, kept)

    run(ids[:30], [], [], [])
    run(ids[30:31], ids[31:36], [-1, 0, 1, 2, 3], [0, 1])
    run(ids[36:37], ids[37:41], [-1, -1, 1, 0], [1, 2])
    run(ids[41:42], [], [], [])
    run(ids[42 : 44 + MAX_PACKED_ROWS], [], [], [])
    run(ids[-1:], [], [], [])
    return torch.cat(found)


@pytest.mark.parametrize("name", NAMES)
def test_fast_view_gives_the_models_logits(name: str) -> None:
    model = tiny_model(name)
    assert can_be_fast(model) == (model.config._attn_implementation == "sdpa")
    expected, got = _logits(model), _logits(twin(model, attention=PACKED))
    if name == "gemma2":  # transformers leaves the cap out under SDPA
        expected = _logits(twin(model, attention="eager"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("rows", [1, 5, 30])
def test_float16_is_attended_in_float32_where_the_processor_lacks_it(rows, monkeypatch) -> None:
    given = [
        torch.randn(1, heads, many, 16).half() for heads, many in ((4, rows), (2, 30), (2, 30))
    ]
    module = torch.nn.Module()
    expected = packed_attention(module, *(one.float() for one in given), None)[0].half()
    monkeypatch.setattr(attention, "lacks_products", lambda dtype: True)
    assert torch.equal(packed_attention(module, *given, None)[0], expected)
    monkeypatch.setattr(attention, "lacks_products", lambda dtype: False)
    found = packed_attention(module, *given, None)[0]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize(
    ("rows", "tokens", "window"), [(3, 40, 7), (40, 40, 7), (90, 1300, 80), (1300, 1300, 600)]
)
def test_keys_before_the_windows_of_a_pass_are_not_read(
    rows: int, tokens: int, window: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, tokens, 16) for heads in (4, 2, 2))
    query = query[:, :, -rows:]
    places = torch.arange(tokens)
    distance = places[-rows:, None] - places
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / 4
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill((distance < 0) | (distance >= window), float("-inf"))
    expected = (scores.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    key[:, :, : max(0, tokens - rows - window + 1)] = float("nan")
    sizes: list[int] = []
    made = attention._causal_bias
    monkeypatch.setattr(
        attention, "_causal_bias", lambda *given: sizes.append(given[0] * given[1]) or made(*given)
    )
    module = torch.nn.Module()
    found, _ = packed_attention(
        module, query, key, value, None, sliding_window=window, softcap=softcap
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert max(sizes) <= WINDOWED_ROWS * (window + WINDOWED_ROWS - 1)


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_the_model_is_not_touched(name: str) -> None:
    model = tiny_model(name)
    before = copy.deepcopy({n: dict(vars(m)) for n, m in model.named_modules() if not m._modules})
    config, modules = model.config.to_dict(), list(model.modules())
    view = fast_view(model)
    _logits(view)
    assert view is fast_view(model)
    assert view.config._attn_implementation == PACKED
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert list(model.modules()) == modules
    for n, m in model.named_modules():
        if n in before:
            assert set(vars(m)) == set(before[n])
    own, shared = dict(model.named_parameters()), dict(view.named_parameters())
    assert own.keys() == shared.keys()
    assert all(own[n] is shared[n] for n in own)
    assert not {id(m) for m in view.modules()} & {id(m) for m in modules}


def test_a_model_with_its_own_forward_is_not_twinned() -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    assert can_twin(model)
    layer = model.model.layers[1]
    layer.forward = layer.forward
    assert not can_twin(model)
    assert not can_be_fast(model)


def test_a_chosen_attention_is_kept() -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    model.set_attn_implementation("eager")
    assert not can_be_fast(model)


def test_a_callers_own_class_is_not_twinned() -> None:
    class Scripted(type(tiny_model("llama-gqa"))):  # type: ignore[misc]
        pass

    assert not can_be_fast(Scripted(tiny_model("llama-gqa").config).eval())
