"""Slabs of captured steps: which are kept and which go; and what a prompt leaves behind."""

import gc

import pytest
import torch

from llma_rag.engine import attention
from llma_rag.engine.cache import SlabCache
from llma_rag.engine.cuda.captured import CapturedSteps
from llma_rag.engine.fixed import FixedShape
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.probe import runner_of
from llma_rag.engine.step import Pass, StepRunner
from tests.families import build, model_of

WIDTH = 8


class NoStep:
    """Stands for a step that is never run."""

    device = torch.device("cpu")

    def __call__(self, inputs: torch.Tensor, slab: SlabCache) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError


@pytest.fixture
def runner() -> StepRunner:
    free = runner_of(build("llama", "sdpa", max_position_embeddings=8192))
    captured = CapturedSteps(NoStep(), WIDTH)
    return StepRunner(free.model, free.verdict, FixedShape(WIDTH), captured)


def test_a_growing_conversation_keeps_its_slab_and_leaves_no_smaller_ones(runner: StepRunner):
    capacity, slabs = 256, []
    for _ in range(20):
        row = runner.open_row(capacity)
        slabs.append(row.memory.cache)
        row.release()
        capacity += 300
    assert len({id(slab) for slab in slabs}) <= 14
    assert [*runner.captured._free.values()] == [slabs[-1]]


def test_a_slab_that_fits_is_taken_again(runner: StepRunner):
    row = runner.open_row(1000)
    slab = row.memory.cache
    row.release()
    again, other = runner.open_row(200), runner.open_row(200)
    assert again.memory.cache is slab
    assert other.memory.cache is not slab


def test_where_memory_runs_out_free_slabs_go(runner: StepRunner, monkeypatch: pytest.MonkeyPatch):
    runner.open_row(100).release()
    row, tries = runner.open_row(50), []
    other = runner.open_row(50)
    other.release()

    def run(step: Pass) -> Outcome:
        tries.append(len(runner.captured._free))
        if len(tries) in (1, 3):
            raise torch.OutOfMemoryError
        return Outcome(torch.zeros(1))

    monkeypatch.setattr(runner, "_run", run)
    runner.run(Pass(row, [1]))
    assert tries == [1, 0]
    with pytest.raises(torch.OutOfMemoryError):
        runner.run(Pass(row, [1]))
    assert len(tries) == 3


def test_the_biases_of_a_prompt_are_not_kept():
    runner = runner_of(model_of("mistral_window", "sdpa"))
    assert runner.verdict.fast
    made = (attention._causal_bias, attention._bias_for_group)
    row = runner.open_row(200)
    step = Pass(row, [5] * 100)
    runner.run(step)
    runner.keep(step, [])
    gc.collect()
    assert [one.cache_info().currsize for one in made] == [0, 0]
    runner.run(Pass(row, [5], [6], [-1]))
    assert made[0].cache_info().currsize == 1
