"""Decode answers with one model: whole, as a stream, awaited, or many at once."""

import asyncio
import json
import os
import threading
import weakref
from collections.abc import Callable, MutableMapping
from concurrent.futures import Future
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn, TypedDict, Unpack, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llma_rag.answers import AnswerStore
from llma_rag.delivery import AsyncGenerationStream, FutureSink, GenerationStream
from llma_rag.drafters import Drafting
from llma_rag.drafting import compile_drafter
from llma_rag.engine.bitwise import Exactness, with_exactness
from llma_rag.engine.calibration import calibrate
from llma_rag.engine.load import LoadOptions, load, most_positions
from llma_rag.engine.options import check_names
from llma_rag.engine.prefixes import PrefixCache
from llma_rag.engine.probe import picture, runner_of
from llma_rag.engine.progress import progress
from llma_rag.engine.step import StepRunner
from llma_rag.engine.warmup import capture
from llma_rag.loop import Loop
from llma_rag.result import (
    GenerationOptions,
    GenerationRequest,
    GenerationResult,
    Prompt,
    RequestOptions,
    copied_options,
)
from llma_rag.worker import Sink, Worker

_shared: dict[str, "Decoder"] = {}
_over: "weakref.WeakValueDictionary[tuple[int, int], Decoder]" = weakref.WeakValueDictionary()
"""Under the identities of model and tokenizer, which live at least as long as their decoder."""
_shared_lock = threading.Lock()


class DecoderOptions(TypedDict, total=False):
    """The options of `Decoder`."""

    defaults: GenerationOptions | None
    max_draft_tokens: int
    max_draft_depth: int
    min_match_length: int
    exactness: Exactness | None
    prefix_cache_bytes: int
    recycling: bool
    answers: AnswerStore | None
    warmup: bool


class PretrainedOptions(LoadOptions, DecoderOptions, total=False):
    """How a model is loaded, and the options of its `Decoder`."""


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
        max_draft_depth: int = 64,
        min_match_length: int = 1,
        exactness: Exactness | None = None,
        prefix_cache_bytes: int = 0,
        recycling: bool = True,
        answers: AnswerStore | None = None,
        warmup: bool = True,
    ) -> None:
        """Take a loaded model.

        Args:
            model: A decoder-only model in evaluation mode.
            tokenizer: The model's tokenizer.
            defaults: Options of every request that does not set them itself.
            max_draft_tokens: Most tokens verified in one pass (the paper's k), in all branches.
            max_draft_depth: Most of them behind one another.
            min_match_length: Tokens that must agree before a copy is tried (the paper's n). With 1,
                a copy that one other token interrupted is also taken up again without any.
            exactness: "bitwise" runs every step in one shape, so that drafts change no bit of a
                logit, where a self-test at load grants it; "argmax" takes the quickest shape. None
                is "bitwise" on CUDA and "argmax" elsewhere.
            prefix_cache_bytes: Memory for keys and values of prompts' beginnings, which later
                requests of the same namespace need not compute again; 0 keeps nothing.
            recycling: Draft also what the model held likely after the same token before, in this
                request or an earlier one of its namespace, where the costs of passes are measured
                (from 20 million parameters on). False learns anew with each request, for tenants
                that must not share even pairs of tokens.
            answers: Keeps finished answers, to be copied from in later requests of the same
                namespace, which every request must then name. None keeps none.
            warmup: Time the model's passes now, compile the drafter, and on CUDA capture a step.
                False leaves that to the first request that drafts, which waits for it.

        Raises:
            TypeError: If a default is unknown.
            ValueError: If the model is in training mode, a number is out of range, or `answers`
                was made for another tokenizer.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = most_positions(model.config)
        self._defaults = cast("GenerationOptions", check_names(copied_options(defaults or {})))
        for name, value, least in (
            ("max_draft_tokens", max_draft_tokens, 0),
            ("max_draft_depth", max_draft_depth, 1),
            ("min_match_length", min_match_length, 1),
            ("prefix_cache_bytes", prefix_cache_bytes, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if answers is not None:
            answers.check(tokenizer)
        self._drafting = Drafting(
            max_draft_tokens, max_draft_depth, min_match_length, recycling, answers
        )
        self._wanted = exactness
        self._warmup = warmup
        self._prefix_cache_bytes = prefix_cache_bytes
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._prepare()

    def _prepare(self) -> None:
        """Make what runs the model as it is now: adapters and vocabularies may come and go.

        Where that fails, the next request tries again.
        """
        seen = picture(self.model)
        runner = with_exactness(runner_of(self.model), self._wanted)
        calibrated = cache(lambda: calibrate(runner))
        if self._warmup:
            calibrated()
            capture(runner)
            if self._drafting.max_draft_tokens:
                with progress("Compiling the drafter", "part", total=3) as bar:
                    for _ in compile_drafter():
                        bar.update()
        most_bytes = self._prefix_cache_bytes if PrefixCache.serves(runner, self.model) else 0
        worker = Worker(runner.run)
        loop = Loop(
            self.model,
            self.tokenizer,
            runner,
            context_length=self.context_length,
            defaults=self._defaults,
            prefixes=PrefixCache(runner, most_bytes) if most_bytes else None,
            drafting=replace(self._drafting, costs=lambda tokens: calibrated().curve(tokens)),
            load=worker.load,
        )
        if self._stop is not None:
            self._stop()
        self._runner, self._worker, self._loop, self._picture = runner, worker, loop, seen
        self._stop = weakref.finalize(self, worker.stop)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], **options: Unpack[PretrainedOptions]
    ) -> "Decoder":
        """Load a model and its tokenizer by hub id or folder; see `LoadOptions` and `Decoder`.

        Raises:
            FileNotFoundError: If `name` is a path at which there is no model.
            OSError: If the model cannot be had from the hub.
        """
        names = DecoderOptions.__annotations__
        own = {key: value for key, value in options.items() if key in names}
        loading = {key: value for key, value in options.items() if key not in names}
        model, tokenizer = load(name, cast("LoadOptions", loading))
        return cls(model, tokenizer, **cast("DecoderOptions", own))

    @property
    def runner(self) -> StepRunner:
        """What runs the model's passes now; for measurements."""
        return self._runner

    @property
    def loop(self) -> Loop:
        """What decodes requests now, one pass after the other; for measurements."""
        return self._loop

    @property
    def exactness(self) -> str:
        """What holds here: "bitwise", "argmax", or "off" where nothing is drafted."""
        if self._runner.verdict.wide_passes == "off":
            return "off"
        return "argmax" if self._runner.fixed is None else "bitwise"

    @classmethod
    def shared(
        cls, name: str | os.PathLike[str], **options: Unpack[PretrainedOptions]
    ) -> "Decoder":
        """Return this process' decoder for a model; the same arguments load nothing twice."""
        key = json.dumps([str(name), options], sort_keys=True, default=repr)
        with _shared_lock:
            if key not in _shared:
                _shared[key] = cls.from_pretrained(name, **options)
            return _shared[key]

    @classmethod
    def shared_over(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Decoder":
        """Return this process' decoder over loaded objects, while it lives: a model has one owner.

        Raises:
            ValueError: If the model is in training mode.
        """
        with _shared_lock:
            key = id(model), id(tokenizer)
            decoder = _over.get(key)
            if decoder is None:
                _over[key] = decoder = cls(model, tokenizer)
            return decoder

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> GenerationResult:
        """Decode an answer and return it when it is finished.

        Args:
            prompt: Text or token ids.
            **options: See `RequestOptions` and `GenerationOptions`.

        Raises:
            ContextOverflowError: If the prompt leaves no room for an answer.
            RuntimeError: If the decoder's own thread asks, which would wait for itself.
            TypeError: If an option is unknown.
            ValueError: If an option is out of range or not supported.
        """
        self._refuse_own_thread()
        future = self.submit(prompt, **options)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> Future[GenerationResult]:
        """Start an answer and return its future; cancelling it stops the model."""
        sink = FutureSink()
        self._start(sink, prompt, options)
        return sink.future

    async def agenerate(
        self, prompt: Prompt, **options: Unpack[RequestOptions]
    ) -> GenerationResult:
        """Await an answer without blocking the event loop; cancelling the task stops the model."""
        self._refuse_own_thread()
        return await asyncio.wrap_future(self.submit(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> GenerationStream:
        """Return an iterator over the answer as it is decoded, one chunk per accepted run.

        Raises:
            RuntimeError: If the decoder's own thread asks, which would wait for itself.
        """
        self._refuse_own_thread()
        stream = GenerationStream()
        self._start(stream.sink, prompt, options)
        return stream

    def astream(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> AsyncGenerationStream:
        """Return an asynchronous iterator over the answer; call it inside a running loop."""
        self._refuse_own_thread()
        stream = AsyncGenerationStream()
        self._start(stream.sink, prompt, options)
        return stream

    def _refuse_own_thread(self) -> None:
        if self._worker.is_current_thread:
            raise RuntimeError(
                "The decoder's own thread (a future's callback, a logits processor) cannot wait "
                "for an answer of this decoder; use `submit`, or ask from another thread."
            )

    def _start(self, sink: Sink, prompt: Prompt, options: RequestOptions) -> None:
        """Hand a request to the worker; its events reach `sink`."""
        request = GenerationRequest.of(prompt, options)
        with self._lock:
            if picture(self.model) != self._picture:
                self._prepare()
            self._worker.submit(self._loop.decode(request), sink)

    def close(self) -> None:
        """End the worker thread and leave the registries of shared decoders."""
        with _shared_lock:
            registries: tuple[MutableMapping[Any, Decoder], ...] = (_shared, _over)
            for registry in registries:
                for key in [key for key, decoder in registry.items() if decoder is self]:
                    del registry[key]
        self._worker.stop()

    def __repr__(self) -> str:
        return f"Decoder({self.model.config.name_or_path or type(self.model).__name__!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Decoder":
        """Return the decoder itself: a copy would load the model twice."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A `Decoder` holds a loaded model and cannot be pickled; make it in the process that "
            "uses it, for example with `Decoder.shared(name)`."
        )
