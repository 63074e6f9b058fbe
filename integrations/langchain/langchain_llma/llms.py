"""A local text-completion model that copies from the documents of its chain."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, closing
from typing import Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import BaseLLM, LangSmithParams
from langchain_core.outputs import GenerationChunk, LLMResult

from langchain_llma.answers import llm_result, text_end, text_piece
from langchain_llma.calls import Call
from langchain_llma.local_model import MODEL_CONFIG, LocalModel
from langchain_llma.options import PROVIDER, from_pipeline_kwargs
from langchain_llma.overflow import overflow_for_core
from langchain_llma.scopes import CapturedDocument, each_prompt_with_its_caller, parents_of

_NO_OPTIONS = {"tags", "metadata", "run_name", "run_id"}
"""What core passes to `generate` with every call."""


class LLMA(LocalModel, BaseLLM):
    """A text model of the Hugging Face kind, run in this process.

    Documents that the chain retrieved are noticed and their words drafted: the answer is the one
    that plain decoding gives, in fewer forward passes. The prompt is not repeated in the answer.

    Example:
        ```python
        llm = LLMA(model="Qwen/Qwen3-8B-Base", max_tokens=200)
        ```
    """

    model_config = MODEL_CONFIG

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return where the class is found."""
        return ["langchain_llma", "llms"]

    @property
    def _llm_type(self) -> str:
        return "llma"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer prompts, each with the documents of its own caller."""
        with each_prompt_with_its_caller(prompts, callbacks):
            asked = self._uncached(kwargs)
            return super(LLMA, asked).generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer prompts, each with the documents of its own caller."""
        with each_prompt_with_its_caller(prompts, callbacks):
            asked = self._uncached(kwargs)
            return await super(LLMA, asked).agenerate(prompts, stop, callbacks, **kwargs)

    def _uncached(self, kwargs: Mapping[str, Any]) -> Self:
        """Return a copy without a cache if a call has options: core leaves them out of its key."""
        return self if kwargs.keys() <= _NO_OPTIONS else self.model_copy(update={"cache": False})

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        documents = self._found(prompts, run_manager, kwargs)
        calls = self._prepare(prompts, documents, stop, kwargs)
        with overflow_for_core():
            waiting = [call.decoder.submit(call.prompt, **call.arguments) for call in calls]
            try:
                results = [future.result() for future in waiting]
            except BaseException:
                _cancel(waiting)
                raise
        return llm_result(calls, results)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        calls = await self._aprepare(prompts, stop, run_manager, kwargs)
        tasks = [
            asyncio.ensure_future(call.decoder.agenerate(call.prompt, **call.arguments))
            for call in calls
        ]
        with overflow_for_core():
            try:
                results = await asyncio.gather(*tasks)
            except BaseException:
                _cancel(tasks)
                raise
        return llm_result(calls, results)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        found = self._found([prompt], run_manager, kwargs)
        (call,) = self._prepare([prompt], found, stop, kwargs)
        with closing(call.stream(text_piece, text_end)) as chunks:
            for chunk in chunks:
                if run_manager and chunk.text:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        (call,) = await self._aprepare([prompt], stop, run_manager, kwargs)
        async with aclosing(call.astream(text_piece, text_end)) as chunks:
            async for chunk in chunks:
                if run_manager and chunk.text:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _found(
        self, prompts: list[str], run_manager: Any, kwargs: dict[str, Any]
    ) -> list[tuple[CapturedDocument, ...]]:
        """Return the documents of each prompt."""
        given = kwargs.pop("references", None)
        parents = parents_of(prompts, run_manager)
        return [
            self._documents(given, prompt, parent)
            for prompt, parent in zip(prompts, parents, strict=True)
        ]

    async def _aprepare(
        self,
        prompts: list[str],
        stop: list[str] | None,
        run_manager: Any,
        kwargs: dict[str, Any],
    ) -> list[Call]:
        """Loading takes time; the event loop does not wait for it."""
        documents = self._found(prompts, run_manager, kwargs)
        return await asyncio.to_thread(self._prepare, prompts, documents, stop, kwargs)

    def _prepare(
        self,
        prompts: list[str],
        documents: list[tuple[CapturedDocument, ...]],
        stop: list[str] | None,
        kwargs: dict[str, Any],
    ) -> list[Call]:
        options = dict(kwargs)
        pipeline = from_pipeline_kwargs(options.pop("pipeline_kwargs", None) or {})
        options = from_pipeline_kwargs(options)
        return [
            self._call(prompt, found, stop, options, pipeline=pipeline)
            for prompt, found in zip(prompts, documents, strict=True)
        ]


def _cancel(waiting: "Sequence[Future[Any] | asyncio.Future[Any]]") -> None:
    for future in waiting:
        future.cancel()
