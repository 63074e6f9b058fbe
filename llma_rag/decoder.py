"""The one loop: draft, forward, verify, commit. Everything a caller can ask of it is a view."""

import asyncio
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any, Unpack, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llma_rag.answer import Answer
from llma_rag.delivery import AsyncGenerationStream, FutureSink, GenerationStream
from llma_rag.detokenizer import Detokenizer, StopStrings
from llma_rag.drafting import Draft, ReferenceDrafter
from llma_rag.encoding import encode_prompt, encode_references
from llma_rag.engine.load import LoadOptions, context_length, load
from llma_rag.engine.options import Settings, check_names, resolve
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.index import MAX_INDEXED_TOKENS
from llma_rag.provenance import Provenance
from llma_rag.reference import References, accept_references
from llma_rag.result import (
    ContextOverflowError,
    DecodingStats,
    GenerationOptions,
    GenerationRequest,
    GenerationResult,
    Prompt,
)
from llma_rag.sampling import greedy
from llma_rag.verification import accepted
from llma_rag.worker import Decoding, Worker

UNLIMITED = 1 << 30
"""Context length of a model that has no limit of its own."""

MAX_RESERVED = 1024
"""Tokens of an answer for which cache memory is taken at once."""

_shared: dict[str, "Decoder"] = {}
_shared_lock = threading.Lock()


class Decoder:
    """Decodes answers with one model, copying from references where the model agrees.

    Attributes:
        model: The transformers model; never changed.
        tokenizer: Its tokenizer; never changed.
        context_length: Most tokens of prompt and answer together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        defaults: GenerationOptions | None = None,
        max_draft_tokens: int = 20,
        min_match_length: int = 1,
    ) -> None:
        """Take a loaded model.

        Args:
            model: A decoder-only model in evaluation mode.
            tokenizer: The model's tokenizer.
            defaults: Options of every request that does not set them itself.
            max_draft_tokens: Most tokens verified in one pass (the paper's k).
            min_match_length: Tokens that must agree before a copy is tried (the paper's n).

        Raises:
            TypeError: If a default is unknown.
            ValueError: If the model is in training mode, or a number is out of range.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = context_length(model.config) or UNLIMITED
        self._defaults = cast("GenerationOptions", check_names(defaults or {}))
        self._max_draft_tokens = max_draft_tokens
        self._min_match_length = min_match_length
        self._runner = StepRunner(model)
        self._special = frozenset(int(one) for one in tokenizer.all_special_ids)
        self._vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        self._worker = Worker(self._runner.run)
        weakref.finalize(self, self._worker.stop)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        defaults: GenerationOptions | None = None,
        max_draft_tokens: int = 20,
        min_match_length: int = 1,
        **options: Unpack[LoadOptions],
    ) -> "Decoder":
        """Load a model and its tokenizer by hub id or folder; see `LoadOptions`.

        Raises:
            FileNotFoundError: If `name` is a path at which there is no model.
            OSError: If the model cannot be had from the hub.
        """
        model, tokenizer = load(name, options)
        return cls(
            model,
            tokenizer,
            defaults=defaults,
            max_draft_tokens=max_draft_tokens,
            min_match_length=min_match_length,
        )

    @classmethod
    def shared(cls, name: str | os.PathLike[str], **options: Unpack[LoadOptions]) -> "Decoder":
        """Return this process' decoder for a model; the same arguments load nothing twice."""
        key = json.dumps([str(name), options], sort_keys=True, default=repr)
        with _shared_lock:
            if key not in _shared:
                _shared[key] = cls.from_pretrained(name, **options)
            return _shared[key]

    def generate(
        self,
        prompt: Prompt,
        *,
        references: References = (),
        draft: bool = True,
        namespace: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResult:
        """Decode an answer and return it when it is finished.

        Args:
            prompt: Text or token ids.
            references: Texts that may be copied; they never change the answer. Unusable entries
                are skipped and counted in the stats.
            draft: False decodes plainly, one token per forward pass.
            namespace: Whose request this is; nothing that outlives it crosses namespaces.
            **options: See `GenerationOptions`.

        Raises:
            ContextOverflowError: If the prompt leaves no room for an answer.
            TypeError: If an option is unknown.
            ValueError: If an option is out of range or not supported.
        """
        future = self.submit(
            prompt, references=references, draft=draft, namespace=namespace, **options
        )
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(
        self,
        prompt: Prompt,
        *,
        references: References = (),
        draft: bool = True,
        namespace: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Future[GenerationResult]:
        """Start an answer and return its future; cancelling it stops the model."""
        sink = FutureSink()
        request = GenerationRequest(
            prompt=prompt,
            references=references,
            options=options,
            draft=draft,
            namespace=namespace,
        )
        self._worker.submit(self._decode(request), sink)
        return sink.future

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        references: References = (),
        draft: bool = True,
        namespace: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResult:
        """Await an answer without blocking the event loop; cancelling the task stops the model."""
        return await asyncio.wrap_future(
            self.submit(prompt, references=references, draft=draft, namespace=namespace, **options)
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        references: References = (),
        draft: bool = True,
        namespace: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationStream:
        """Return an iterator over the answer as it is decoded, one chunk per accepted run."""
        stream = GenerationStream()
        request = GenerationRequest(
            prompt=prompt,
            references=references,
            options=options,
            draft=draft,
            namespace=namespace,
        )
        self._worker.submit(self._decode(request), stream.sink)
        return stream

    def astream(
        self,
        prompt: Prompt,
        *,
        references: References = (),
        draft: bool = True,
        namespace: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncGenerationStream:
        """Return an asynchronous iterator over the answer; call it inside a running loop."""
        stream = AsyncGenerationStream()
        request = GenerationRequest(
            prompt=prompt,
            references=references,
            options=options,
            draft=draft,
            namespace=namespace,
        )
        self._worker.submit(self._decode(request), stream.sink)
        return stream

    def close(self) -> None:
        """End the worker thread and leave the registry of shared decoders."""
        with _shared_lock:
            for key in [key for key, decoder in _shared.items() if decoder is self]:
                del _shared[key]
        self._worker.stop()

    def __repr__(self) -> str:
        return f"Decoder({self.model.config.name_or_path or type(self.model).__name__!r})"

    # The loop --------------------------------------------------------------------------------

    def _decode(self, request: GenerationRequest) -> Decoding:
        """Decode one request: yields the passes it needs and the text it completes."""
        clock = _Clock()
        context = encode_prompt(self.tokenizer, request.prompt)
        prompt_tokens = len(context)
        settings = resolve(
            self.model.generation_config, self._defaults, request.options, prompt_tokens
        )
        answer = self._answer(settings, prompt_tokens)
        counts = _Counts(prompt_tokens)
        if answer.remaining <= 0:
            return self._result(answer, counts, clock)
        row = self._runner.open_row(prompt_tokens + min(answer.remaining, MAX_RESERVED))
        drafter: ReferenceDrafter | None = None
        pending: Sequence[int] = tuple(context)
        draft = Draft()
        while True:
            step, logits = yield from _run(Pass(row, pending, draft.tokens, draft.parents))
            nodes = _commit(step, draft, greedy(logits, len(context)), context, answer)
            clock.first_token()
            counts.add(step, len(nodes))
            chunk = answer.next_chunk()
            if chunk is not None:
                yield chunk
            if answer.finish_reason is not None:
                return self._result(answer, counts, clock)
            self._runner.keep(step, nodes)
            pending = context[-1:]
            if request.draft:
                if drafter is None:
                    drafter = self._drafter(request, context[:prompt_tokens], answer, counts)
                draft = drafter.draft(context, min(answer.remaining - 1, self._max_draft_tokens))

    def _answer(self, settings: Settings, prompt_tokens: int) -> Answer:
        room = self.context_length - prompt_tokens
        if room < 1:
            raise ContextOverflowError(
                f"The prompt has {prompt_tokens} tokens, and the model's context holds "
                f"{self.context_length} with the answer; shorten the prompt, for example by "
                "retrieving fewer or smaller passages."
            )
        ends, strings = set(settings.end_tokens), []
        for string in settings.stop:
            token = self._special_token(string)
            if token is None:
                strings.append(string)
            else:
                ends.add(token)
        return Answer(
            Detokenizer(self.tokenizer),
            StopStrings(strings),
            end_tokens=frozenset(ends),
            max_new_tokens=min(settings.max_new_tokens, room),
        )

    def _special_token(self, string: str) -> int | None:
        """Return the id of a stop string that is one special token, which has no text."""
        return next(
            (one for one in self._special if self.tokenizer.convert_ids_to_tokens(one) == string),
            None,
        )

    def _drafter(
        self, request: GenerationRequest, prompt: list[int], answer: Answer, counts: "_Counts"
    ) -> ReferenceDrafter:
        """Index the request's references; done after the first token, so as not to delay it."""
        usable = accept_references(request.references)
        encoded = encode_references(self.tokenizer, usable, MAX_INDEXED_TOKENS)
        drafter = ReferenceDrafter(
            encoded.token_ids,
            prompt,
            max_draft_tokens=self._max_draft_tokens,
            min_match_length=self._min_match_length,
            banned_tokens=self._special,
            vocab_size=self._vocab_size,
        )
        cut = {*drafter.index.truncated, *encoded.cut} - {len(usable.references)}
        counts.references = {
            "references_used": len(usable.references),
            "references_skipped": usable.skipped,
            "references_truncated": len(cut),
            "reference_tokens": sum(map(len, encoded.token_ids)),
        }
        answer.trace_with(
            Provenance(
                usable,
                encoded.offsets,
                lambda count: str(self.tokenizer.decode(prompt[:count], skip_special_tokens=False)),
            )
        )
        return drafter

    def _result(self, answer: Answer, counts: "_Counts", clock: "_Clock") -> GenerationResult:
        return GenerationResult(
            text=answer.text,
            token_ids=tuple(answer.token_ids),
            finish_reason=answer.finish_reason or "length",
            copied_spans=answer.copied_spans(),
            stats=DecodingStats(
                prompt_tokens=counts.prompt_tokens,
                generated_tokens=len(answer.token_ids),
                forward_passes=counts.forward_passes,
                drafted_tokens=counts.drafted_tokens,
                accepted_tokens=counts.accepted_tokens,
                time_to_first_token=clock.to_first_token,
                total_time=clock.elapsed,
                **counts.references,
            ),
        )


class _Clock:
    """Measures one request, in seconds."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.to_first_token = 0.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    def first_token(self) -> None:
        if not self.to_first_token:
            self.to_first_token = self.elapsed


class _Counts:
    """Counts what one request costs."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.forward_passes = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.references: dict[str, int] = {}

    def add(self, step: Pass, accepted_tokens: int) -> None:
        self.forward_passes += 1
        self.drafted_tokens += len(step.drafted)
        self.accepted_tokens += accepted_tokens


def _commit(
    step: Pass, draft: Draft, choose: Callable[[int], int], context: list[int], answer: Answer
) -> list[int]:
    """Append what the model chose to the context and the answer; return the accepted nodes."""
    nodes: list[int] = []
    for token, node in accepted(step.drafted, step.parents, choose):
        context.append(token)
        if node is not None:
            nodes.append(node)
        if not answer.commit(token, None if node is None else draft.places[node]):
            break
    return nodes


def _run(step: Pass) -> Generator[Any, Any, tuple[Pass, torch.Tensor]]:
    """Ask for a pass; where memory runs out, ask again with half of the draft."""
    while True:
        try:
            return step, (yield step)
        except torch.OutOfMemoryError:
            half = len(step.drafted) // 2
            if not step.drafted:
                raise
            step = Pass(step.row, step.committed, step.drafted[:half], step.parents[:half])
