"""The ways of decoding that a timing run compares; each writes the same recorded answer."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from llma_rag.bench import peers
from llma_rag.bench.traces import TraceTokens
from llma_rag.decoder import Decoder
from llma_rag.drafters import Drafting
from llma_rag.drafting import Drafter
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.step import Pass
from llma_rag.loop import Loop
from llma_rag.result import GenerationChunk, GenerationRequest
from llma_rag.verification import depths

ARMS = ("hf-greedy", "hf-static-compiled", "hf-prompt-lookup", "plain", "llma", "suffix")

CERTAIN = 1e4
"""Logit of a recorded token: more than any model gives."""

SUFFIX_TOKENS = 32
"""Most tokens of a draft of SuffixDecoding, its own default."""

HF_OPTIONS: dict[str, dict[str, Any]] = {
    "hf-greedy": {},
    "hf-static-compiled": {"cache_implementation": "static"},
    "hf-prompt-lookup": {"prompt_lookup_num_tokens": 10},
}
"""What each arm of transformers passes to `generate`; the rest are our own."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer by one arm.

    Attributes:
        seconds: From the call to the finished answer.
        first_token: From the call to the first token's logits, seconds.
        forwards: Forward passes of the model.
        token_ids: The answer.
        prompt_tokens: Tokens of the prompt.
    """

    seconds: float
    first_token: float
    forwards: int
    token_ids: tuple[int, ...]
    prompt_tokens: int = 0

    @property
    def per_token(self) -> float:
        """Seconds per token after the first."""
        return (self.seconds - self.first_token) / max(len(self.token_ids) - 1, 1)


class Recorded(LogitsProcessor):  # type: ignore[misc, unused-ignore]  # untyped in transformers
    """Makes the recorded token the likeliest, and notes when it was first asked."""

    def __init__(self, prompt: int, answer: tuple[int, ...] | None) -> None:
        self._prompt = prompt
        self._answer = answer
        self.first: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with the recorded token on top; unchanged when running free."""
        if self.first is None:
            self.first = _now(scores.device)
        place = input_ids.shape[1] - self._prompt
        if self._answer is not None and place < len(self._answer):
            scores[:, self._answer[place]] = CERTAIN
        return scores


class _Forwards:
    """A hook that counts forward passes and notes when the first was done."""

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None

    def __call__(self, module: Any, arguments: Any, output: Any) -> None:
        self.count += 1
        if self.first is None:
            self.first = _now(output.logits.device)


@dataclass(frozen=True)
class Bench:
    """A model, its decoder, and how the arms run.

    Attributes:
        model: Decodes in the arms of transformers, as it was loaded.
        decoder: Decodes in ours.
        tokens: Most tokens of an answer.
        forced: Write the recorded answers; False lets the model choose.
    """

    model: PreTrainedModel
    decoder: Decoder
    tokens: int
    forced: bool = True

    def run(self, arm: str, trace: TraceTokens) -> Timed:
        """Decode one answer by an arm and time it."""
        if arm in HF_OPTIONS:
            return self._generate(arm, trace)
        if arm == "suffix":
            return self._ours(self._with_peer(), trace, GenerationRequest(prompt=trace.prompt))
        request = GenerationRequest(
            prompt=trace.prompt,
            references=trace.trace.passages if arm == "llma" else (),
            draft=arm == "llma",
        )
        return self._ours(self.decoder.loop, trace, request)

    def _answer(self, trace: TraceTokens) -> tuple[tuple[int, ...] | None, int]:
        """Return what is to be written, None for what the model likes, and its length."""
        answer = trace.answer[: self.tokens]
        return (answer, len(answer)) if self.forced else (None, self.tokens)

    def _generate(self, arm: str, trace: TraceTokens) -> Timed:
        answer, length = self._answer(trace)
        recorded = Recorded(len(trace.prompt), answer)
        forwards = _Forwards()
        compiles = arm == "hf-static-compiled"  # the hook with it: there one token is one pass
        handle = None if compiles else self.model.register_forward_hook(forwards)
        started = time.perf_counter()
        try:
            ids = torch.tensor([trace.prompt], device=self.model.device)
            output: Any = self.model.generate(  # type: ignore[operator]  # mixin method
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=length,
                logits_processor=LogitsProcessorList([recorded]),
                **HF_OPTIONS[arm],
            )
            token_ids = tuple(output[0, len(trace.prompt) :].tolist())
        finally:
            if handle is not None:
                handle.remove()
        ended = time.perf_counter()
        first = (recorded.first if compiles else forwards.first) or ended
        count = len(token_ids) if compiles else forwards.count
        return Timed(ended - started, first - started, count, token_ids, len(trace.prompt))

    def _ours(self, loop: Loop, trace: TraceTokens, request: GenerationRequest) -> Timed:
        """Decode with one of our loops on this thread, as the worker of a decoder does."""
        answer, length = self._answer(trace)
        runner = self.decoder.runner
        started = time.perf_counter()
        first: float | None = None
        decoding = loop.decode(replace(request, options={"max_new_tokens": length}))
        event = next(decoding)
        while True:
            try:
                if isinstance(event, GenerationChunk):
                    event = next(decoding)
                    continue
                outcome = runner.run(event)
                tokens = outcome.likeliest()
                if first is None:
                    first = time.perf_counter()
                if answer is not None:
                    force_choices(tokens, event, answer, len(trace.prompt))
                event = decoding.send(_with_tokens(outcome, tokens))
            except StopIteration as end:
                ended = time.perf_counter()
                token_ids = end.value.token_ids
                forwards = end.value.stats.forward_passes
                break
        return Timed(ended - started, (first or ended) - started, forwards, token_ids,
                     len(trace.prompt))  # fmt: skip

    def _with_peer(self) -> Loop:
        """Return our loop with the drafts of SuffixDecoding."""
        return Loop(
            self.decoder.model,
            self.decoder.tokenizer,
            self.decoder.runner,
            context_length=self.decoder.context_length,
            defaults={},
            drafting=Drafting(SUFFIX_TOKENS, SUFFIX_TOKENS, 1, peer=self._suffix_drafter),
        )

    def _suffix_drafter(self, prompt: Sequence[int]) -> Drafter:
        branching = self.decoder.runner.supports_trees
        return peers.SuffixDecoding(peers.EarlierAnswers(), prompt, branching=branching)


def force_choices(tokens: list[int], step: Pass, answer: Sequence[int], prompt_tokens: int) -> None:
    """Make the recorded answer's tokens the choices of a pass.

    Args:
        tokens: The model's choices behind the last committed and each drafted token, changed here.
        step: The pass.
        answer: Token ids; what lies behind them is left as it is.
        prompt_tokens: Tokens in front of the answer.
    """
    place = step.row.length + len(step.committed) - prompt_tokens
    for row, depth in enumerate((-1, *depths(step.parents))):
        if 0 <= place + 1 + depth < len(answer):
            tokens[row] = answer[place + 1 + depth]


def _with_tokens(outcome: Outcome, tokens: list[int]) -> Outcome:
    forced = Outcome(lambda: outcome.logits, lambda: tokens)
    forced.started = outcome.started
    return forced


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
