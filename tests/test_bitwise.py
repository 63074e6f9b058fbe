"""In one fixed shape drafts do not change a bit of a logit; a self-test finds out where."""

import copy
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llma_rag.engine import bitwise
from llma_rag.engine.bitwise import bitwise_runner, is_bitwise
from llma_rag.engine.cuda import compiled_step
from llma_rag.engine.fast import can_be_fast, fast_view
from llma_rag.engine.fixed import FixedShape
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.step import Pass, StepRunner
from tests.models import VOCAB, tiny_model

NAMES = ["llama-gqa", "qwen2", "mistral", "gpt2", "gemma"]
SHAPE = FixedShape(8, bucket=32)
TOKENS = 24
"""Tokens of an answer by a tiny model."""


def view(name: str, dtype: torch.dtype) -> PreTrainedModel:
    model = copy.deepcopy(tiny_model(name)).to(dtype)
    return fast_view(model) if can_be_fast(model) else model


def decode(runner: StepRunner, prompt: list[int], count: int, drafts: random.Random | None,
           known: list[int]) -> tuple[list[int], torch.Tensor]:  # fmt: skip
    """Decode greedily; drafts are the known answer with errors in it, of any length."""
    row = runner.open_row(64)
    pending, written, logits = prompt, list[int](), list[torch.Tensor]()
    while len(written) < count:
        drafted: list[int] = []
        if drafts is not None and written:
            most = min(drafts.randint(0, 7), runner.draft_limit(row))
            drafted = known[len(written) : len(written) + most]
            if drafted and drafts.random() < 0.6:
                drafted[drafts.randrange(len(drafted))] = drafts.randrange(4, VOCAB)
        step = Pass(row, pending, drafted, range(-1, len(drafted) - 1))
        found = runner.logits(step)
        best = found.argmax(-1).tolist()
        right = 0
        while right < len(drafted) and drafted[right] == best[right]:
            right += 1
        runner.keep(step, range(right))
        written += best[: right + 1]
        logits.append(found[: right + 1])
        pending = best[right : right + 1]
    return written[:count], torch.cat(logits)[:count]


def same_bits(runner: StepRunner, prompt: list[int], count: int, drafts: random.Random) -> bool:
    """Return whether a sequence has the same tokens and logits with drafts and without."""
    plain, bits = decode(runner, prompt, count, None, [])
    drafted, others = decode(runner, prompt, count, drafts, plain)
    return drafted == plain and torch.equal(others, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_same_bits_with_drafts_and_without(name: str, dtype: torch.dtype) -> None:
    """40 of 40 sequences, which together cross the end of a bucket at every place of a step."""
    runner = StepRunner(view(name, dtype), fixed=SHAPE)
    source = random.Random(3)
    prompts = [[source.randrange(4, VOCAB) for _ in range(3 + number)] for number in range(40)]
    assert [prompt for prompt in prompts if not same_bits(runner, prompt, TOKENS, source)] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pretrained_model_gives_the_same_bits(shared: Path, dtype: torch.dtype) -> None:
    """40 of 40 sequences of real argmaxes, with drafts that are right, wrong, or partly so."""
    folder = str(shared / "weights" / "stories260K")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    runner, source = StepRunner(fast_view(model), fixed=SHAPE), random.Random(5)
    sizes = [source.randint(3, 40) for _ in range(40)]
    prompts = [[1, *(source.randrange(3, 512) for _ in range(size))] for size in sizes]
    assert [prompt for prompt in prompts if not same_bits(runner, prompt, 40, source)] == []


def test_fixed_steps_give_the_logits_of_the_model() -> None:
    model = tiny_model("mistral")
    prompt = [5, 6, 7, 8, 9] * 5
    free, logits = decode(StepRunner(model), prompt, 30, None, [])
    fixed, others = decode(StepRunner(model, fixed=SHAPE), prompt, 30, None, [])
    assert fixed == free
    torch.testing.assert_close(others, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", range(1, 70))
def test_no_step_crosses_a_bucket(length: int) -> None:
    most = SHAPE.draft_limit(length)
    assert 0 <= most < SHAPE.width
    assert SHAPE.keys(length) >= length + SHAPE.width
    assert {SHAPE.keys(length + more) for more in range(most + 1)} == {SHAPE.keys(length)}
    if most < SHAPE.width - 1:
        assert SHAPE.keys(length + most + 1) > SHAPE.keys(length)


def test_the_self_test_grants_what_is_bitwise() -> None:
    runner = StepRunner(tiny_model("llama-gqa"), fixed=SHAPE)
    assert is_bitwise(runner)
    granted = bitwise_runner(StepRunner(tiny_model("llama-gqa")))
    assert granted is not None
    assert granted.fixed == FixedShape(8)
    assert not granted.supports_trees


@pytest.mark.parametrize("what", ["row", "garbage", "width"])
def test_the_self_test_refuses_what_is_not(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: a logit that hangs on its row, on later tokens, or on the width of the pass."""
    runner = StepRunner(tiny_model("llama-gqa"), fixed=None if what == "width" else SHAPE)
    original = StepRunner.run

    def wrong(self: StepRunner, step: Pass) -> Outcome:
        logits = original(self, step).logits.clone()
        if what == "row":
            logits[3:] += 1e-6
        if what == "garbage":
            logits += 1e-7 * sum(step.drafted)
        return Outcome(logits)

    monkeypatch.setattr(StepRunner, "run", wrong)
    assert not is_bitwise(runner)


@pytest.mark.parametrize("has_triton", [True, False])
def test_without_triton_steps_on_cuda_attend_by_sdpa(
    has_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those steps are the uncaptured ones of this file, which the self-test grants here."""
    model = tiny_model("llama-gqa")
    looked_for: list[str] = []

    def find(name: str) -> object:
        looked_for.append(name)
        return object() if has_triton else None

    config = copy.deepcopy(model.config)
    config.head_dim = 16
    on_gpu = SimpleNamespace(
        config=config, device=torch.device("cuda"), named_parameters=model.named_parameters,
        _modules={}, _forward_hooks={}, _forward_pre_hooks={},
    )  # fmt: skip
    monkeypatch.setattr(compiled_step, "find_spec", find)
    monkeypatch.setattr(bitwise, "CapturedSteps", lambda *_: "captured")
    monkeypatch.setattr(bitwise, "CompiledStep", lambda *_: "compiled")
    runner = SimpleNamespace(model=on_gpu, verdict=SimpleNamespace(fast=True))
    ways = [*bitwise._ways(runner, 16)]
    assert ways == (["captured", None] if has_triton else [None])
    assert looked_for == ["triton"]


def test_positions_stay_within_the_context() -> None:
    model = tiny_model("gpt2")
    runner = StepRunner(model, fixed=SHAPE)
    prompt = [7] * (model.config.n_positions - 4)
    written, _ = decode(runner, prompt, 4, None, [])
    assert len(written) == 4
