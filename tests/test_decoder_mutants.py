"""Break the decoder on purpose: each mutant must be caught by the equality check."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from llma_rag import Decoder
from llma_rag import loop as loop_module
from llma_rag.answer import Answer
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.verification import Choice, accepted
from tests.models import character_tokenizer, greedy, tiny_model


def answers_differ(family: str = "llama-gqa") -> bool:
    """Return whether any of a few answers differs from `generate`, or decoding fails."""
    model = tiny_model(family)
    decoder = Decoder(model, character_tokenizer())
    for seed in range(6):
        prompt = [0, *([50 + seed, 60, 70, 80 + seed] * 4)]
        expected = greedy(model, prompt, 40)
        text = character_tokenizer().decode(expected)
        corrupted = "".join("~" if place % 7 == 6 else one for place, one in enumerate(text))
        try:
            result = decoder.generate(prompt, references=[corrupted, text[5:]], max_new_tokens=40)
        except Exception:
            return True
        if list(result.token_ids) != expected:
            return True
    return False


def accepts_one_too_many(
    tokens: Sequence[int], parents: Sequence[int], choose: Callable[[int], int]
) -> Iterator[Choice]:
    """After the first mismatch, take one more drafted token."""
    last = None
    for choice in accepted(tokens, parents, choose):
        last = choice.node if choice.node is not None else last
        if choice.node is None and last is not None and last + 1 < len(tokens):
            yield Choice(tokens[last + 1], last + 1)
            return
        yield choice


def keeps_everything(
    self: StepRunner,
    step: Pass,
    nodes: Sequence[int],
    keep: Callable[[StepRunner, Pass, Sequence[int]], None] = StepRunner.keep,
) -> None:
    """Keep what was rejected as if it had been accepted."""
    keep(self, step, range(len(step.drafted)))


def test_the_unbroken_decoder_passes() -> None:
    assert not answers_differ()


def test_accepting_one_token_too_many_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "accepted", accepts_one_too_many)
    assert answers_differ()


def test_a_missing_rollback_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepRunner, "keep", keeps_everything)
    assert answers_differ()


def test_a_missing_cut_after_an_accepted_end_token_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = Decoder(tiny_model("llama-gqa"), character_tokenizer())
    prompt = [0, 50, 60, 70, 80]
    plain = decoder.generate(prompt, draft=False, max_new_tokens=40)
    end = next(one for one in plain.token_ids[10:] if one not in plain.token_ids[:10])
    cut = plain.token_ids[: plain.token_ids.index(end) + 1]

    def answer() -> tuple[int, ...]:
        return decoder.generate(
            prompt, references=[plain.text], max_new_tokens=40, eos_token_id=end
        ).token_ids

    assert answer() == cut
    original = Answer.commit

    def runs_on(self: Answer, token: int) -> bool:
        original(self, token)
        return self.remaining > 0

    monkeypatch.setattr(Answer, "commit", runs_on)
    assert answer() != cut


def test_a_limit_that_is_off_by_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Answer, "remaining", property(lambda self: self._max_new_tokens + 1 - len(self.token_ids))
    )
    assert answers_differ()
