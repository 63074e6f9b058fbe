"""Answer templates as LlamaIndex does, without hiding an overflow and without losing captures."""

from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from llama_index.core.llms.llm import LLM
from llama_index.core.prompts.base import BasePromptTemplate, PromptTemplate
from llama_index.core.types import Model, TokenAsyncGen, TokenGen

from llama_index.llms.llma.carry import carried
from llama_index.llms.llma.overflow import (
    visible_overflow,
    visible_overflow_async,
    visible_overflow_stream,
    visible_overflow_stream_async,
)

if TYPE_CHECKING:
    from llama_index.core.program.utils import FlexibleModel


class TemplateLLM(LLM):
    """The eight methods of an LLM through which engines ask; they call its endpoints.

    The awaited ones that engines also await in other threads take their captures along.
    """

    @visible_overflow
    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it."""
        return super().predict(prompt, **prompt_args)

    @visible_overflow
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """Fill a template and answer it in chunks."""
        return super().stream(prompt, **prompt_args)

    def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> Coroutine[Any, Any, str]:
        """Fill a template and answer it without blocking the event loop."""
        return carried(visible_overflow_async(super().apredict)(prompt, **prompt_args))

    def astream(
        self, prompt: BasePromptTemplate, **prompt_args: Any
    ) -> Coroutine[Any, Any, TokenAsyncGen]:
        """Fill a template and answer it in chunks without blocking the event loop."""
        return carried(visible_overflow_async(super().astream)(prompt, **prompt_args))

    @visible_overflow
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Fill a template and answer it with an object."""
        answer: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return answer

    def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Coroutine[Any, Any, Model]:
        """Fill a template and answer it with an object without blocking the event loop."""
        call = visible_overflow_async(super().astructured_predict)
        return carried(call(output_cls, prompt, llm_kwargs, **prompt_args))

    @visible_overflow_stream
    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> "Generator[Model | FlexibleModel]":
        """Fill a template and answer it with an object that grows."""
        return super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    @visible_overflow_stream_async
    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> "AsyncGenerator[Model | FlexibleModel]":
        """Fill a template and answer with a growing object without blocking the event loop."""
        return await super().astream_structured_predict(
            output_cls, prompt, llm_kwargs, **prompt_args
        )
