"""A local text-completion model that copies from the documents of its chain."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import BaseLLM, LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from langchain_llma.answers import Call, decoding_metadata, usage_metadata
from langchain_llma.local_model import MODEL_CONFIG, PROVIDER, LocalModel, given_documents
from langchain_llma.options import fields_of_pipeline, from_pipeline_kwargs
from langchain_llma.scopes import (
    CapturedDocument,
    captured_documents,
    each_prompt_with_its_caller,
    parents_of,
)

if TYPE_CHECKING:
    from llma_rag import GenerationResult

_LOADING_FIELDS = {
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "quantization_config": "quantization_config",
    "revision": "revision",
    "token": "hf_token",
    "torch_dtype": "dtype",
    "trust_remote_code": "trust_remote_code",
}
"""Arguments of `from_pretrained` that are fields here."""


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
    def from_model_id(
        cls,
        model_id: str,
        task: str = "text-generation",
        backend: str = "default",
        device: int | str | None = None,
        device_map: str | dict[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        pipeline_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """Take the arguments of `HuggingFacePipeline.from_model_id`.

        Args:
            model_id: Path or hub name of the model.
            task: Only `"text-generation"`.
            backend: Only `"default"`.
            device: GPU number, -1 for the CPU, or a device name.
            device_map: As in `from_pretrained`.
            model_kwargs: Arguments of `from_pretrained`.
            pipeline_kwargs: Options of every answer.
            batch_size: Not needed: the prompts of a batch meet in the engine.
            **kwargs: Fields of this class.

        Raises:
            ValueError: For another task or backend.
        """
        for name, got, only in (
            ("task", task, "text-generation"),
            ("backend", backend, "default"),
        ):
            if got != only:
                msg = f"`{name}` must be {only!r}, got {got!r}."
                raise ValueError(msg)
        fields, loading = _split_loading(model_kwargs or {})
        return cls(
            model=model_id,
            device="cpu" if device == -1 else device,
            device_map=device_map,
            model_kwargs=loading,
            **{**fields, **fields_of_pipeline(pipeline_kwargs or {}), **kwargs},
        )

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
            return super().generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer prompts, each with the documents of its own caller."""
        with each_prompt_with_its_caller(prompts, callbacks):
            return await super().agenerate(prompts, stop, callbacks, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        documents = self._documents(prompts, run_manager, kwargs)
        calls = self._prepare_all(prompts, documents, stop, kwargs)
        waiting = [call.decoder.submit(call.prompt, **call.arguments) for call in calls]
        try:
            results = [future.result() for future in waiting]
        except BaseException:
            _cancel(waiting)
            raise
        return _as_llm_result(calls, results)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        documents = self._documents(prompts, run_manager, kwargs)
        calls = await asyncio.to_thread(self._prepare_all, prompts, documents, stop, kwargs)
        tasks = [
            asyncio.ensure_future(call.decoder.agenerate(call.prompt, **call.arguments))
            for call in calls
        ]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            _cancel(tasks)
            raise
        return _as_llm_result(calls, results)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        documents = self._documents([prompt], run_manager, kwargs)
        call = self._prepare(prompt, documents[0], stop, kwargs)
        with call.decoder.stream(call.prompt, **call.arguments) as stream:
            for chunk in stream:
                if not chunk.text:
                    continue
                piece = GenerationChunk(text=chunk.text)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=piece)
                yield piece
            result = stream.result
        yield GenerationChunk(text="", generation_info=_generation_info(call, result))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        documents = self._documents([prompt], run_manager, kwargs)
        call = await asyncio.to_thread(self._prepare, prompt, documents[0], stop, kwargs)
        async with call.decoder.astream(call.prompt, **call.arguments) as stream:
            async for chunk in stream:
                if not chunk.text:
                    continue
                piece = GenerationChunk(text=chunk.text)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=piece)
                yield piece
            result = stream.result
        yield GenerationChunk(text="", generation_info=_generation_info(call, result))

    def _documents(
        self, prompts: list[str], run_manager: Any, kwargs: dict[str, Any]
    ) -> list[tuple[CapturedDocument, ...]]:
        """Given, then captured documents of each prompt; must run in the caller's context."""
        given = given_documents(kwargs.pop("references", None))
        if not self.capture:
            return [tuple(given)] * len(prompts)
        return [
            (*given, *captured_documents(prompt, parent))
            for prompt, parent in zip(prompts, parents_of(prompts, run_manager), strict=True)
        ]

    def _prepare_all(
        self,
        prompts: list[str],
        documents: list[tuple[CapturedDocument, ...]],
        stop: list[str] | None,
        kwargs: dict[str, Any],
    ) -> list[Call]:
        return [
            self._prepare(prompt, entry, stop, kwargs)
            for prompt, entry in zip(prompts, documents, strict=True)
        ]

    def _prepare(
        self,
        prompt: str,
        documents: tuple[CapturedDocument, ...],
        stop: list[str] | None,
        kwargs: dict[str, Any],
    ) -> Call:
        options = dict(kwargs)
        model = options.pop("model", self.model)
        pipeline = from_pipeline_kwargs(options.pop("pipeline_kwargs", None) or {})
        return Call(
            decoder=self._decoder_of(model),
            model=model,
            prompt=prompt,
            documents=documents,
            draft=options.pop("draft", self.draft),
            namespace=options.pop("namespace", self.namespace),
            options=self._generation_options(stop, pipeline | options),
            citations=self.citations,
            min_citation_words=self.min_citation_words,
        )


def _generation_info(call: Call, result: "GenerationResult") -> dict[str, Any]:
    cited = call.cited(result.text, result)
    return {
        "finish_reason": result.finish_reason,
        **({"citations": cited} if cited else {}),
        "usage": usage_metadata(result.stats),
        PROVIDER: decoding_metadata(call, result.stats),
    }


def _as_llm_result(calls: list[Call], results: "Sequence[GenerationResult]") -> LLMResult:
    usage = [usage_metadata(result.stats) for result in results]
    return LLMResult(
        generations=[
            [Generation(text=result.text, generation_info=_generation_info(call, result))]
            for call, result in zip(calls, results, strict=True)
        ],
        llm_output={
            "model_name": calls[0].model if calls else None,
            "token_usage": {
                name: sum(entry[name] for entry in usage)
                for name in ("input_tokens", "output_tokens", "total_tokens")
            },
        },
    )


def _cancel(waiting: "Sequence[Future[Any] | asyncio.Future[Any]]") -> None:
    for future in waiting:
        future.cancel()


def _split_loading(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate arguments of `from_pretrained` that are fields of the class from the rest."""
    fields = {
        _LOADING_FIELDS[name]: value for name, value in given.items() if name in _LOADING_FIELDS
    }
    if "dtype" in fields:
        fields["dtype"] = str(fields["dtype"]).removeprefix("torch.")
    return fields, {name: value for name, value in given.items() if name not in _LOADING_FIELDS}
