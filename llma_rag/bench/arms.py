"""The ways of decoding that a timing run compares; each writes the same recorded answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from llma_rag.bench import peers
from llma_rag.bench.traces import TraceTokens
from llma_rag.decoder import Decoder
from llma_rag.drafters import Drafting
from llma_rag.drafting import Drafter
from llma_rag.loop import Loop
from llma_rag.result import (
    GenerationChunk,
    GenerationOptions,
    GenerationRequest,
    GenerationResult,
)

ARMS = ("hf-greedy", "hf-static-compiled", "hf-prompt-lookup", "plain", "llma", "suffix")

Decode = Callable[["TraceTokens", "Recorded", int], tuple[int, ...]]
"""Decodes a prompt with a processor up to a length."""

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
    """Makes the recorded token the likeliest."""

    def __init__(self, prompt: int, answer: tuple[int, ...] | None) -> None:
        self._prompt = prompt
        self._answer = answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with the recorded token on top; unchanged when running free."""
        place = input_ids.shape[1] - self._prompt
        if self._answer is not None and place < len(self._answer):
            scores[:, self._answer[place]] = 1e4
        return scores


class _Forwards:
    """A hook that counts forward passes and notes when the first was done.

    Twins of a model share its hooks, so that it sees every arm.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None

    def __call__(self, *_: Any) -> None:
        self.count += 1
        if self.first is None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.first = time.perf_counter()


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
        answer = trace.answer[: self.tokens]
        recorded = Recorded(len(trace.prompt), answer if self.forced else None)
        forwards = _Forwards()
        if arm == "suffix":
            decode: Decode = self._suffix
        else:
            decode = self._generate(arm) if arm in HF_OPTIONS else self._ours(arm)
        length = len(answer) if self.forced else self.tokens
        handle = self.model.register_forward_hook(forwards)
        started = time.perf_counter()
        try:
            token_ids = decode(trace, recorded, length)
        finally:
            handle.remove()
        ended = time.perf_counter()
        first = (forwards.first or ended) - started
        return Timed(ended - started, first, forwards.count, token_ids, len(trace.prompt))

    def _generate(self, arm: str) -> Decode:
        def decode(trace: TraceTokens, recorded: Recorded, length: int) -> tuple[int, ...]:
            ids = torch.tensor([trace.prompt], device=self.model.device)
            output: Any = self.model.generate(  # type: ignore[operator]  # mixin method
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=length,
                logits_processor=LogitsProcessorList([recorded]),
                **HF_OPTIONS[arm],
            )
            return tuple(output[0, len(trace.prompt) :].tolist())

        return decode

    def _ours(self, arm: str) -> Decode:
        def decode(trace: TraceTokens, recorded: Recorded, length: int) -> tuple[int, ...]:
            drafts = arm == "llma"
            return self.decoder.generate(
                trace.prompt,
                references=trace.trace.passages if drafts else (),
                draft=drafts,
                max_new_tokens=length,
                logits_processor=[recorded],
            ).token_ids

        return decode

    def _suffix(self, trace: TraceTokens, recorded: Recorded, length: int) -> tuple[int, ...]:
        """Decode with our engine and the drafts of SuffixDecoding, on this thread."""
        options: GenerationOptions = {"max_new_tokens": length, "logits_processor": [recorded]}
        request = GenerationRequest(prompt=trace.prompt, options=options)
        runner = self.decoder.runner
        loop = Loop(
            self.decoder.model,
            self.decoder.tokenizer,
            runner,
            context_length=self.decoder.context_length,
            defaults={},
            drafting=Drafting(SUFFIX_TOKENS, SUFFIX_TOKENS, 1, peer=self._suffix_drafter),
        )
        decoding = loop.decode(request)
        event = next(decoding)
        while True:
            try:
                if isinstance(event, GenerationChunk):
                    event = next(decoding)
                else:
                    event = decoding.send(runner.run(event))
            except StopIteration as end:
                result: GenerationResult = end.value
                return result.token_ids

    def _suffix_drafter(self, prompt: Sequence[int]) -> Drafter:
        branching = self.decoder.runner.supports_trees
        return peers.SuffixDecoding(peers.EarlierAnswers(), prompt, branching=branching)
