"""Steps as they are captured on CUDA, run without a graph; `tests/test_kernels.py` runs this."""

import gc
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedModel

from llma_rag.engine import bitwise
from llma_rag.engine.bitwise import agrees, is_bitwise
from llma_rag.engine.cuda import attention_kernel as kernels
from llma_rag.engine.cuda.captured import CapturedSteps
from llma_rag.engine.cuda.compiled_step import VERIFIED, CompiledStep, can_capture
from llma_rag.engine.fixed import FixedShape
from llma_rag.engine.probe import runner_of
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.engine.twin import twin
from llma_rag.engine.warmup import capture

WIDTH = 4


@pytest.fixture(autouse=True)
def not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time; `kernels.py` beside this looks far back, in all pieces."""
    monkeypatch.setattr(bitwise, "FAR", 32)
    monkeypatch.setattr(kernels, "TOGETHER", 1)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=99, max_position_embeddings=512, initializer_range=0.4,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def captured_of(
    model: PreTrainedModel, backend: Any = None
) -> tuple[StepRunner, StepRunner, CapturedSteps]:
    free = runner_of(model)
    steps = CapturedSteps(CompiledStep(free.model, WIDTH, backend=backend), WIDTH)
    return free, StepRunner(free.model, free.verdict, FixedShape(WIDTH), steps), steps


def rows_keep_their_bits() -> bool:
    """Return whether numpy's products give a row the same bits wherever it stands.

    On processors with AVX2 alone they do not.
    """
    source = np.random.default_rng(0)
    rows, other = (source.standard_normal((16, 16), dtype=np.float32) for _ in range(2))
    return all(
        np.array_equal(np.roll(rows, place, axis=0) @ other, np.roll(rows @ other, place, axis=0))
        for place in range(16)
    )


def test_they_give_the_logits_of_free_steps_and_the_same_bits_with_drafts(
    model: PreTrainedModel,
) -> None:
    free, fixed, steps = captured_of(model)
    assert can_capture(model)
    assert agrees(free, fixed)
    assert steps.captures > 0
    if not rows_keep_their_bits():
        pytest.skip("numpy, which computes for the interpreter, rounds by a row's place here")
    assert is_bitwise(fixed)


def test_a_slab_that_is_given_back_is_not_captured_again(model: PreTrainedModel) -> None:
    _, fixed, steps = captured_of(model)
    seen = []
    for _ in range(3):
        row = fixed.open_row(64)
        for tokens in ([5, 6, 7], [8]):
            step = Pass(row, tokens)
            logits = fixed.logits(step)
            fixed.keep(step, [])
        seen.append(logits)
        del row, step
        gc.collect()
    assert steps.captures == 1
    assert torch.equal(seen[0], seen[2])


def test_a_slab_that_grows_is_captured_again(model: PreTrainedModel) -> None:
    _, fixed, steps = captured_of(model)
    row = fixed.open_row(8)
    for length in (10, 1, 250, 1):
        step = Pass(row, [7] * length)
        fixed.logits(step)
        fixed.keep(step, [])
    assert steps.captures == 2
    assert row.length == row.memory.length == 262


def test_a_step_captured_at_load_serves_the_first_request(model: PreTrainedModel) -> None:
    free, fixed, steps = captured_of(model)
    capture(free)
    capture(fixed, capacity=200)
    gc.collect()
    assert steps.captures == 1
    row = fixed.open_row(150)
    for tokens in ([7] * 100, [8], [9]):
        step = Pass(row, tokens)
        fixed.logits(step)
        fixed.keep(step, [])
    assert steps.captures == 1


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(which("c++") is None, reason="needs a C++ compiler"),
        ),
    ],
)
def test_compiled_steps_are_one_graph_for_slabs_of_all_capacities(
    model: PreTrainedModel, backend: str
) -> None:
    torch._dynamo.reset()
    counters.clear()
    free, fixed, steps = captured_of(model, backend)
    assert agrees(free, fixed)
    for capacity in (64, 600):
        row = fixed.open_row(capacity)
        for tokens in ([5, 6, 7], [8]):
            step = Pass(row, tokens)
            assert fixed.logits(step).isfinite().all()
            fixed.keep(step, [])
    assert steps.captures > 1
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_step_is_compiled_once_for_all_lengths_where_a_model_asks_for_them() -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=64, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=99,
        word_embed_proj_dim=64, max_position_embeddings=512, init_std=0.4,
    )  # fmt: skip
    free, fixed, _ = captured_of(AutoModelForCausalLM.from_config(config).eval(), "eager")
    assert agrees(free, fixed)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("error", [AssertionError, NameError, RuntimeError])
def test_a_model_that_can_not_be_compiled_runs_as_it_is(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise error("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    free, fixed, _ = captured_of(model, "eager")
    with pytest.warns(UserWarning, match="no compiler here"):
        assert agrees(free, fixed)


def test_a_model_that_was_compiled_once_is_never_run_as_it_is(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [True, False]

    def compiled(*_: object, **arguments: Any) -> Any:
        if not works.pop(0):
            raise RuntimeError("cannot compile again")
        return twin(model, attention=VERIFIED)(**arguments)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    _, fixed, _ = captured_of(model, "eager")
    row = fixed.open_row(64)
    prompt = Pass(row, [5, 6, 7])
    fixed.logits(prompt)
    fixed.keep(prompt, [])
    fixed.logits(Pass(row, [8]))
    with pytest.raises(RuntimeError, match="cannot compile again"):
        fixed.logits(Pass(row, [8]))


def test_steps_that_fail_are_not_captured(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = CapturedSteps(CompiledStep(model, WIDTH), WIDTH)
    monkeypatch.setattr(steps, "run", lambda *_: [][0])
    monkeypatch.setattr(bitwise, "_ways", lambda *_: iter([steps, None]))
    with pytest.warns(UserWarning, match="not captured: IndexError"):
        runner = bitwise.bitwise_runner(runner_of(model))
    assert runner is None or runner.captured is None
