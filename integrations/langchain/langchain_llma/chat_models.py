"""A local chat model that copies from the documents of its chain."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from jinja2 import TemplateError
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import (
    BaseChatModel,
    LangSmithParams,
    LanguageModelInput,
    ModelProfile,
)
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from pydantic import Field

from langchain_llma.answers import generation, message_end, message_piece
from langchain_llma.calls import Call
from langchain_llma.local_model import MODEL_CONFIG, LocalModel
from langchain_llma.options import PROVIDER
from langchain_llma.overflow import overflow_for_core
from langchain_llma.parsers import parser_of, with_raw
from langchain_llma.profiles import profile_of
from langchain_llma.prompts import Template, earlier_turns, prompt_ids, prompt_text
from langchain_llma.schemas import Schema
from langchain_llma.scopes import CapturedDocument, parent_of
from langchain_llma.structured import Method, answer_schema, bind_arguments
from langchain_llma.tool_calls import as_tool
from llma_rag import chosen_tools

_BATCH_THREADS = 64
"""Requests of one `batch` that wait in the engine at the same time."""
_NOT_TRACED = ("references", "draft", "namespace")


class ChatLLMA(LocalModel, BaseChatModel):
    """A chat model of the Hugging Face kind, run in this process.

    Documents that the chain retrieved are noticed and their words drafted: the answer is the one
    that plain decoding gives, in fewer forward passes, and says what it copied from where.

    Every field that governs an answer can also be given with a call, under the same name:
    `temperature`, `top_p`, `top_k`, `seed`, `max_tokens`, `stop`, `timeout`, `model`, and further
    `references`.

    Example:
        ```python
        llm = ChatLLMA(model="Qwen/Qwen3-8B")
        context = {"context": retriever | format_docs, "question": RunnablePassthrough()}
        chain = context | prompt | llm | StrOutputParser()
        ```
    """

    chat_template: str | None = Field(default=None, repr=False)
    """A Jinja template to use instead of the tokenizer's."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the template, for example `{"enable_thinking": False}`; also with a call."""
    streaming: bool = False
    """Whether `invoke` streams inside, for callbacks that follow tokens."""

    model_config = MODEL_CONFIG

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return where the class is found."""
        return ["langchain_llma", "chat_models"]

    @property
    def _llm_type(self) -> str:
        return "llma-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        told = {name: value for name, value in kwargs.items() if name not in _NOT_TRACED}
        return super()._get_invocation_params(stop=stop, **told)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the key of caches; core's own leaves out what it cannot write down."""
        return f"{super()._get_llm_string(stop, **kwargs)}---{self._identifying_params}"

    def _resolve_model_profile(self) -> ModelProfile | None:
        return profile_of(self.model, self.chat_template, self.held.decoder)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Count the tokens of a conversation as its chat template writes it.

        Parts of a conversation are counted too, which a template may refuse: then the tokens of
        their texts count.
        """
        if not messages:
            return 0
        formatted = [as_tool(tool) for tool in tools or ()]
        try:
            return len(prompt_ids(self.decoder.tokenizer, messages, formatted, self._template()))
        except TemplateError:
            return sum(self.get_num_tokens(prompt_text([message])) for message in messages)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: Tools, functions, pydantic classes, TypedDicts or schemas in OpenAI's format.
            tool_choice: `"auto"`, `"none"`, `"any"`, the name of a tool that must be called, or
                OpenAI's or Anthropic's form of it. A forced call is constrained to its tool.
            strict: No difference here: a forced call always follows the schema.
            parallel_tool_calls: False keeps only the first call of an answer.
            **kwargs: Further arguments of every call.

        Raises:
            ValueError: If `tool_choice` names no tool of the list, or a tool is no function.
        """
        formatted = [as_tool(tool) for tool in tools]
        answer_schema(formatted, tool_choice, None)
        told = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        choice = {name: value for name, value in told.items() if value is not None}
        return self.bind(tools=formatted, **choice, **kwargs)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answer with an instance of a schema: decoding is constrained to it.

        Args:
            schema: A pydantic class, a TypedDict class, or a JSON schema.
            include_raw: Return `{"raw", "parsed", "parsing_error"}` instead of the instance.
            method: `"json_schema"`, `"function_calling"` (as the forced call of a tool), or
                `"json_mode"` (as the first; without a schema, any JSON object).
            strict: No difference here: every answer follows the schema.
            **kwargs: Further arguments of every call.

        Raises:
            ValueError: If the method is unknown, or needs a schema, or one of an object.
        """
        bound = bind_arguments(schema, method)
        if method == "function_calling":
            model = self.bind_tools(**bound, **kwargs)
        else:
            model = self.bind(**bound, **kwargs)
        parser = parser_of(schema, method)
        return with_raw(model, parser) if include_raw else model | parser

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer all inputs at once, in turns, unless `max_concurrency` asks for fewer."""
        threads = min(len(inputs), _BATCH_THREADS)
        configs = get_config_list(config, len(inputs))
        if threads and configs[0].get("max_concurrency") is None:
            configs = [{**each, "max_concurrency": threads} for each in configs]
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._prepare(messages, self._found(messages, run_manager, kwargs), stop, kwargs)
        with overflow_for_core():
            result = call.decoder.generate(call.prompt, **call.arguments)
        return ChatResult(generations=[generation(call, result)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await self._aprepare(messages, stop, run_manager, kwargs)
        with overflow_for_core():
            result = await call.decoder.agenerate(call.prompt, **call.arguments)
        return ChatResult(generations=[generation(call, result)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._prepare(messages, self._found(messages, run_manager, kwargs), stop, kwargs)
        yield from call.stream(message_piece, message_end)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = await self._aprepare(messages, stop, run_manager, kwargs)
        async with aclosing(call.astream(message_piece, message_end)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _found(
        self, messages: list[BaseMessage], run_manager: Any, kwargs: dict[str, Any]
    ) -> tuple[CapturedDocument, ...]:
        parent = parent_of(run_manager, messages)
        return self._documents(
            kwargs.pop("references", None), prompt_text(messages), parent, messages
        )

    async def _aprepare(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: Any,
        kwargs: dict[str, Any],
    ) -> Call:
        """Loading and tokenising take time; the event loop does not wait for them."""
        documents = self._found(messages, run_manager, kwargs)
        return await asyncio.to_thread(self._prepare, messages, documents, stop, kwargs)

    def _prepare(
        self,
        messages: list[BaseMessage],
        documents: tuple[CapturedDocument, ...],
        stop: list[str] | None,
        kwargs: dict[str, Any],
    ) -> Call:
        options = dict(kwargs)
        choice = options.pop("tool_choice", None)
        several = options.pop("parallel_tool_calls", None) is not False
        bound = tuple(as_tool(tool) for tool in options.pop("tools", None) or ())
        tools = () if choice in ("none", {"type": "none"}) else bound
        schema = answer_schema(tools, choice, options.pop("response_format", None))
        template = self._template(options.pop("chat_template_kwargs", None))
        options.pop("stream", None)  # core's own switch, already obeyed
        return self._call(
            lambda decoder: prompt_ids(decoder.tokenizer, messages, tools, template),
            documents,
            stop,
            options if schema is None else options | {"json_schema": schema},
            tools,
            bool(chosen_tools(tools, choice)),
            several,
            earlier_turns(messages),
        )

    def _template(self, given: Mapping[str, Any] | None = None) -> Template:
        return Template(self.chat_template, {**self.chat_template_kwargs, **(given or {})})
