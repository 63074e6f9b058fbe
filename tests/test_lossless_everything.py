"""Everything at once: random options, hostile references, and every way to ask; nothing changes.

`LLMA_RAG_CASES` sets the number of cases.
"""

import os
import random
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

from llma_rag import AnswerStore, Decoder, GenerationResult
from llma_rag.costs import CostCurve
from llma_rag.engine.calibration import Calibration
from tests.families import build
from tests.models import VOCAB, character_tokenizer, of_generate

CASES = int(os.environ.get("LLMA_RAG_CASES", "160"))
FAMILIES = [
    ("llama", "sdpa"),
    ("gemma3", "eager"),
    ("mistral_window", "sdpa"),
    ("qwen3_next", "eager"),
]
SETTINGS: list[dict[str, Any]] = [
    {}, {"max_draft_tokens": 3}, {"max_draft_tokens": 40, "min_match_length": 2},
    {"exactness": "bitwise"}, {"recycling": False}, {"prefix_cache_bytes": 1 << 20},
    {"answers": True},
]  # fmt: skip
PERSON = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 8}, "b": {"enum": ["xx", "yy", 7]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


class Stateful(LogitsProcessor):
    """Sees every committed length once, in order, and keeps count."""

    def __init__(self) -> None:
        self.calls, self.length = 0, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert self.length in (0, input_ids.shape[1] - 1)
        self.length = input_ids.shape[1]
        self.calls += 1
        scores = scores.clone()
        if self.calls % 7 == 3:
            scores[0, self.calls * 13 % VOCAB] += 50
        return scores


class Counting(StoppingCriteria):
    """Stops behind a token that hangs on the number of calls."""

    calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.calls += 1
        return torch.full((1,), (int(input_ids[0, -1]) * 7 + self.calls) % 17 == 0)


AS_GENERATE: list[Callable[[random.Random], dict[str, Any]]] = [
    lambda s: {"repetition_penalty": s.choice([0.8, 1.1, 1.4])},
    lambda s: {"no_repeat_ngram_size": s.choice([2, 3])},
    lambda s: {"bad_words_ids": [[s.randrange(4, VOCAB)] for _ in range(9)] + [[50, 60]]},
    lambda s: {"sequence_bias": [[[s.randrange(4, VOCAB)], 5.0], [[40, 41], -5.0]]},
    lambda s: {"suppress_tokens": s.sample(range(4, VOCAB), 10)},
    lambda s: {"forced_eos_token_id": 1},
    lambda s: {"min_new_tokens": 9, "eos_token_id": s.sample(range(1, VOCAB), 12)},
    lambda s: {"eos_token_id": s.sample(range(1, VOCAB), 8)},
    lambda s: {"guidance_scale": s.choice([0.5, 2.0])},
]
OURS: list[Callable[[random.Random], dict[str, Any]]] = [
    lambda s: {"do_sample": True, "seed": s.randrange(99), "temperature": 0.6, "top_k": 9},
    lambda s: {"do_sample": True, "seed": s.randrange(99), "min_p": 0.05, "top_p": 0.9},
    lambda s: {"presence_penalty": s.uniform(-1, 1), "frequency_penalty": s.uniform(-0.5, 0.5)},
    lambda s: {"json_schema": PERSON},
    lambda s: {"stop": True},
    lambda s: {"logits_processor": Stateful},
    lambda s: {"stopping_criteria": Counting},
]


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are not measured; at equal costs they branch and recycle too."""
    monkeypatch.setattr(Calibration, "curve", lambda *_: CostCurve({1: 1.0, 64: 1.0}))


@cache
def decoder(family: int, setting: int) -> Decoder:
    options, tokenizer = dict(SETTINGS[setting]), character_tokenizer()
    if options.pop("answers", False):
        options["answers"] = AnswerStore(tokenizer)
    with warnings.catch_warnings():  # bitwise is granted to attention layers only
        warnings.simplefilter("ignore", UserWarning)
        return Decoder(build(*FAMILIES[family], seed=3), tokenizer, **options)


def options_of(source: random.Random) -> tuple[dict[str, Any], bool]:
    """Return options of one request, and whether `generate` has all of them."""
    options: dict[str, Any] = {"max_new_tokens": source.randrange(1, 50)}
    for make in source.sample(AS_GENERATE, source.choice([0, 1, 1, 2])):
        options |= make(source)
    ours = source.sample(OURS, source.choice([0, 0, 1, 2]))
    for make in ours:
        options |= make(source)
    return options, not ours


def made(options: dict[str, Any]) -> dict[str, Any]:
    """Make processors and criteria anew, as a caller would."""
    return {
        name: [value()] if isinstance(value, type) else value for name, value in options.items()
    }


def references_of(source: random.Random, text: str) -> list[Any]:
    """The answer, parts of it, with errors, as bait, with special tokens, backwards, no text."""
    broken = "".join(one if source.random() > 0.15 else "~" for one in text)
    bait = (text[:6] + chr(source.randrange(33, 127))) * 30
    special = text[:9] + "</s>" + text[9:] + "<s><|user|>"
    texts = [text, text[5:], broken, bait, special, text[::-1] + text, text * 3, "", None]
    return source.sample(texts, source.randrange(len(texts)))


def asked(made_by: Decoder, way: int, prompt: list[int], **request: Any) -> list[GenerationResult]:
    options = request.pop("options")
    if way == 0:
        return [made_by.generate(prompt, **request, **made(options))]
    if way == 1:
        with made_by.stream(prompt, **request, **made(options)) as stream:
            pieces = [chunk.text for chunk in stream]
        assert "".join(pieces) == stream.result.text
        return [stream.result]
    futures = [made_by.submit(prompt, **request, **made(options)) for _ in range(way)]
    return [future.result(60) for future in futures]


def outcomes(ask: Callable[[], list[GenerationResult]]) -> set[tuple[Any, ...]]:
    """Return what came: tokens, text and reason of each result, or what was refused."""
    try:
        return {(one.token_ids, one.text, one.finish_reason) for one in ask()}
    except ValueError as error:
        return {(str(error),)}


def case(source: random.Random, family: int) -> int:
    """Decode one case with and without drafts; return how many drafted tokens were accepted."""
    ours = decoder(family, source.randrange(len(SETTINGS)))
    piece = [source.randrange(4, VOCAB) for _ in range(source.randrange(1, 12))]
    prompt = piece * source.randrange(1, 5)
    options, oracle = options_of(source)
    start, size = source.randrange(30), source.choice((1, 2, 5))
    if options.pop("stop", False):
        text = ours.generate(prompt, draft=False, max_new_tokens=40).text
        options["stop"] = [text[start : start + size] or "x", "never"]

    def plainly() -> list[GenerationResult]:
        return [ours.generate(prompt, draft=False, **made(options))]

    expected = outcomes(plainly)
    (first, *rest), *_ = expected
    if oracle and rest:
        assert list(first) == of_generate(ours.model, prompt, do_sample=False, **options)
    references = references_of(source, rest[0] if rest else "abc")
    way, namespace = source.choice([0, 1, 3]), source.choice("ab")
    found: list[GenerationResult] = []

    def drafted() -> list[GenerationResult]:
        found.extend(
            asked(ours, way, prompt, references=references, namespace=namespace, options=options)
        )
        return found

    assert outcomes(drafted) == expected
    return sum(one.stats.accepted_tokens for one in found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")  # of `generate`
@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_nothing_changes_a_token(family: int) -> None:
    pytest.importorskip("llguidance", reason="structured answers are an optional extra")
    numbers = range(family, CASES, len(FAMILIES))
    accepted = [case(random.Random(number), family) for number in numbers]
    assert sum(accepted) > len(numbers)
