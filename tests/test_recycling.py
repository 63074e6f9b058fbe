"""What is drafted beside references: recycled tokens, earlier answers, earlier turns, branches."""

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llma_rag import AnswerStore, Decoder, GenerationResult, loop
from llma_rag.acceptance import RECYCLED_RANKS
from llma_rag.answers import Recalled
from llma_rag.costs import CostCurve
from llma_rag.drafters import Drafters
from llma_rag.drafting import ReferenceDrafter
from llma_rag.engine.calibration import Calibration
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.experience import MAX_NAMESPACES, Experience, Experiences
from llma_rag.recycling import WIDTH, Recycler
from llma_rag.sampling import likeliest
from llma_rag.testing import SPECIAL_TOKENS, ScriptedModel, byte_tokenizer
from tests.models import character_tokenizer, tiny_model

SPECIAL = len(SPECIAL_TOKENS)
LETTERS = list(range(SPECIAL + 33, SPECIAL + 33 + 40))
"""An answer in which nothing repeats, so that only earlier answers or turns can be copied."""

ONE, TWO = [200, 201], [202, 203]
"""Prompts that share no token with it."""

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 5, "temperature": 1.5},
    "stop string": {"stop": ["a", "QQ", "zz"]},
    "penalty": {"repetition_penalty": 1.3},
    "expression": {"regex": "([a-z]{3,8} ){5,9}end"},
    "expression, sampled": {"regex": "([a-z]{3,8} ){5,9}end", "do_sample": True, "seed": 8},
}


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are not measured; let their passes cost the same at any width."""
    monkeypatch.setattr(Calibration, "curve", lambda *_: CostCurve({1: 1.0, 64: 1.0}))


def scripted(script: list[int], **options: Any) -> Decoder:
    """Return a decoder of a model that answers `script` to any prompt."""
    return Decoder(ScriptedModel(script), byte_tokenizer(), **options)


def store() -> AnswerStore:
    return AnswerStore(byte_tokenizer())


def ask(decoder: Decoder, prompt: list[int] | str, **options: Any) -> GenerationResult:
    return decoder.generate(prompt, max_new_tokens=len(LETTERS), **options)


def test_the_table_is_bounded_and_keeps_the_latest_successors_of_a_token() -> None:
    recycler = Recycler(width=2, max_tokens=3)
    recycler.observe([1, 2, 3, 1, 4], np.array([[5, 6], [5, 6], [5, 6], [7, 8], [5, 6]]))
    assert len(recycler) == 3
    assert recycler.successors(2) == ()
    assert recycler.successors(1) == (7, 8)
    recycler.observe([1], np.array([[9]]))
    assert recycler.successors(1) == (9, 7)
    with pytest.raises(ValueError, match="`width` must be at least 1"):
        Recycler(width=0)
    assert WIDTH <= RECYCLED_RANKS


def test_the_likeliest_tokens_are_those_of_topk() -> None:
    """Two looks, at blocks and inside them, find what one look at the whole row finds."""
    torch.manual_seed(0)
    for size in (5, 64, 2047, 2048, 32_000, 50_257 - 50_257 % 64):
        logits = torch.randn(3, size)
        count = min(WIDTH, size)
        assert likeliest(logits, WIDTH).tolist() == logits.topk(count).indices.tolist()


def test_special_tokens_stay_out_of_the_table() -> None:
    recycler = Recycler(banned_tokens={0, 99})
    recycler.observe([0, 1], np.array([[2, 3], [0, 4]]))
    assert recycler.successors(0) == ()
    assert recycler.successors(1) == (4,)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gemma2"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_no_source_of_drafts_changes_a_token(family: str, kind: str) -> None:
    """Recycling, branches, earlier answers, repeats and earlier turns, all at once and again."""
    if "regex" in OPTIONS[kind]:
        pytest.importorskip("llguidance")
    tokenizer, source = character_tokenizer(), random.Random(f"{family} {kind}")
    decoder = Decoder(
        tiny_model(family), tokenizer, answers=AnswerStore(tokenizer), max_draft_tokens=12
    )
    drafted = 0
    for number in range(3):
        prompt = [0, *source.choices(range(4, 90), k=source.randrange(2, 12))]
        options = {**OPTIONS[kind], "max_new_tokens": source.randrange(10, 50)}
        plain = decoder.generate(prompt, draft=False, **options)
        noise = tokenizer.decode(source.choices(range(4, 90), k=20))
        for namespace in ("a", "b", "a"):
            given = {"history": [plain.text[3:], noise], "references": [noise[::-1]]}
            extra = given if number % 2 else {}
            result = decoder.generate(prompt, namespace=namespace, **extra, **options)
            assert result.token_ids == plain.token_ids
            assert (result.text, result.finish_reason) == (plain.text, plain.finish_reason)
            drafted += result.stats.drafted_tokens
    assert drafted > 20, "the cases never exercised a draft"


def test_recycling_saves_passes_where_nothing_can_be_copied() -> None:
    decoder, without = scripted(LETTERS), scripted(LETTERS, recycling=False)
    first, again = ask(decoder, ONE), ask(decoder, TWO)
    assert first.token_ids == again.token_ids == tuple(LETTERS)
    assert again.stats.forward_passes < first.stats.forward_passes * 0.6
    assert ask(without, ONE).stats.forward_passes == len(LETTERS)
    assert ask(without, TWO).stats.forward_passes == len(LETTERS)


def test_recycled_tokens_stay_in_their_namespace() -> None:
    decoder = scripted(LETTERS)
    first, second = (ask(decoder, ONE, namespace="a").stats.forward_passes for _ in range(2))
    assert second < first * 0.6
    assert ask(decoder, ONE, namespace="b").stats.forward_passes == first
    assert ask(decoder, ONE).stats.forward_passes == first


def test_without_recycling_nothing_outlives_a_request() -> None:
    decoder = scripted(LETTERS, recycling=False)
    first, second = (ask(decoder, ONE, namespace="a").stats for _ in range(2))
    assert first.forward_passes == second.forward_passes
    assert first.drafted_tokens == second.drafted_tokens


def test_nothing_is_recycled_where_costs_are_not_known(monkeypatch) -> None:
    monkeypatch.setattr(Calibration, "curve", lambda *_: None)
    decoder = scripted(LETTERS)
    for prompt in (ONE, TWO, ONE):
        assert ask(decoder, prompt).stats.drafted_tokens == 0


def test_plain_decoding_leaves_nothing_behind() -> None:
    decoder = scripted(LETTERS, answers=store())
    ask(decoder, ONE, draft=False, namespace="a")
    fresh = ask(scripted(LETTERS), ONE).stats.forward_passes
    assert ask(decoder, ONE, namespace="a").stats.forward_passes == fresh


def test_few_namespaces_are_remembered() -> None:
    experiences = Experiences(banned_tokens=(), recycling=True)
    first = experiences.of("0")
    assert experiences.of("0") is first
    for number in range(1, MAX_NAMESPACES + 1):
        experiences.of(str(number))
    assert experiences.of("0") is not first


def test_an_exact_repeat_takes_few_passes_and_cites_nothing() -> None:
    decoder = scripted(LETTERS, answers=store(), recycling=False)
    first = ask(decoder, ONE, namespace="a")
    again = ask(decoder, ONE, namespace="a", references=["0101"])
    assert first.token_ids == again.token_ids
    assert first.stats.forward_passes == len(LETTERS)
    assert again.stats.forward_passes <= 5
    assert again.copied_spans == ()


def test_earlier_answers_help_other_questions() -> None:
    decoder = scripted(LETTERS, answers=store(), recycling=False)
    first = ask(decoder, ONE, namespace="a")
    assert ask(decoder, TWO, namespace="a").stats.forward_passes < first.stats.forward_passes / 3


def test_answers_never_cross_namespaces() -> None:
    decoder = scripted(LETTERS, answers=store(), recycling=False)
    first = ask(decoder, ONE, namespace="a")
    other = ask(decoder, ONE, namespace="b")
    assert other.stats.forward_passes == first.stats.forward_passes
    assert other.stats.drafted_tokens == first.stats.drafted_tokens


@pytest.mark.parametrize("namespace", [None, ""])
def test_a_namespace_must_be_named_where_answers_are_kept(namespace: str | None) -> None:
    decoder = scripted(LETTERS, answers=store())
    with pytest.raises(ValueError, match="`namespace` must be a text"):
        ask(decoder, ONE, namespace=namespace)
    assert ask(decoder, ONE, namespace=namespace, draft=False).token_ids == tuple(LETTERS)


def test_a_store_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="`answers` was made for another tokenizer"):
        scripted(LETTERS, answers=AnswerStore(character_tokenizer()))


def test_an_unfinished_answer_is_not_stored() -> None:
    answers = store()
    decoder = scripted(LETTERS, answers=answers)
    with decoder.stream(ONE, namespace="a", max_new_tokens=len(LETTERS)) as stream:
        next(stream)
    ask(decoder, TWO, namespace="a")
    assert [len(one) for one in answers.recall("a", [1]).earlier] in ([40], [40, 40])
    assert all(one == tuple(LETTERS) for one in answers.recall("a", [1]).earlier)


def test_an_answer_that_cannot_be_stored_is_still_given(monkeypatch) -> None:
    answers = store()

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(answers, "add", full)
    with pytest.warns(UserWarning, match="could not be stored: disk full"):
        assert ask(scripted(LETTERS, answers=answers), ONE, namespace="a").finish_reason


def text_of(tokens: list[int]) -> str:
    return byte_tokenizer().decode(tokens)


def test_earlier_turns_in_the_prompt_are_copied_and_indexed_once(monkeypatch) -> None:
    turn, kept = text_of(LETTERS), []
    original = ReferenceDrafter.__init__

    def watch(self: ReferenceDrafter, *texts: Any, **options: Any) -> None:
        kept.append(list(options["earlier"]))
        original(self, *texts, **options)

    decoder = scripted(LETTERS, recycling=False)
    monkeypatch.setattr(ReferenceDrafter, "__init__", watch)
    for history in ((), (turn,)):
        result = ask(decoder, [*ONE, *LETTERS, *TWO], history=history)
        assert result.token_ids == tuple(LETTERS)
        assert result.stats.forward_passes <= 6
    assert kept == [[], []]


def test_earlier_turns_that_a_template_dropped_are_copied_and_never_cited() -> None:
    decoder = scripted(LETTERS, recycling=False)
    result = ask(decoder, TWO, history=[text_of(LETTERS), "", "\ud800"])
    assert result.token_ids == tuple(LETTERS)
    assert result.stats.forward_passes <= 6
    assert result.copied_spans == ()
    assert result.stats.references_used == 0


def branches(decoder: Decoder) -> bool:
    """Return whether any draft of an answer branched."""
    passes: list[Pass] = []
    run = decoder._worker._run

    def watch(step: Pass) -> Any:
        passes.append(step)
        return run(step)

    decoder._worker._run = watch
    references = ["abcabdabeabf", "bcXbdYbeZ"]
    decoder.generate([0, *range(60, 80)], references=references, max_new_tokens=40)
    return not all(step.is_chain for step in passes)


def test_trees_are_drafted_where_the_engine_takes_them_and_they_pay(monkeypatch) -> None:
    model, tokenizer = tiny_model("llama-gqa"), character_tokenizer()
    assert branches(Decoder(model, tokenizer))
    with monkeypatch.context() as patch:
        patch.setattr(StepRunner, "supports_trees", False)
        assert not branches(Decoder(model, tokenizer))
    for curve in (None, CostCurve({1: 1.0, 64: 1.0}, branching=1.0)):
        monkeypatch.setattr(Calibration, "curve", lambda *_, one=curve: one)
        assert not branches(Decoder(model, tokenizer))


@pytest.mark.parametrize("name", ["reference", "max_tokens", "prompt_ids"])
def test_an_unknown_option_of_a_call_is_refused(name: str) -> None:
    decoder = scripted(LETTERS)
    with pytest.raises(TypeError, match=f"Unknown generation option `{name}`"):
        decoder.generate(ONE, **{name: 1})
    with pytest.raises(TypeError, match=f"Unknown generation option `{name}`"):
        list(decoder.stream(ONE, **{name: 1}))


_recall, _of, _observe = AnswerStore.recall, Experiences.of, Recycler.observe
_KEPT = Experience(recycler=Recycler())


def shared_answers(self: AnswerStore, namespace: str, prompt: list[int]) -> Recalled:
    return _recall(self, "a", prompt)


def without_the_best(self: Recycler, tokens: Any, successors: Any) -> None:
    _observe(self, tokens, successors[:, 1:])


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[], Any]]] = {
    "answers cross namespaces": (
        AnswerStore, "recall", shared_answers, test_answers_never_cross_namespaces,
    ),
    "experience crosses namespaces": (
        Experiences, "of", lambda self, _: _of(self, None),
        test_recycled_tokens_stay_in_their_namespace,
    ),
    "experience is always kept": (
        Experiences, "of", lambda *_: _KEPT,
        test_without_recycling_nothing_outlives_a_request,
    ),
    "the likeliest token is not recycled": (
        Recycler, "observe", without_the_best,
        test_recycling_saves_passes_where_nothing_can_be_copied,
    ),
    "nothing is observed": (
        loop, "_recycle", lambda *_: None,
        test_recycling_saves_passes_where_nothing_can_be_copied,
    ),
    "trees are drafted wherever the engine takes them": (
        CostCurve, "branches_pay", True,
        test_trees_are_drafted_where_the_engine_takes_them_and_they_pay,
    ),
    "nothing is stored": (
        Drafters, "store", lambda *_: None,
        test_an_exact_repeat_takes_few_passes_and_cites_nothing,
    ),
    "repeats are not recalled": (
        Drafters, "_recalled", lambda *_: Recalled(),
        test_an_exact_repeat_takes_few_passes_and_cites_nothing,
    ),
    "earlier turns are ignored": (
        Drafters, "_history", lambda *_: (),
        test_earlier_turns_that_a_template_dropped_are_copied_and_never_cited,
    ),
    "namespaces need no name": (
        Drafters, "check", lambda *_: None,
        lambda: test_a_namespace_must_be_named_where_answers_are_kept(None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, broken, test = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, broken)
    needs_patching = "monkeypatch" in inspect.signature(test).parameters
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(monkeypatch) if needs_patching else test()
