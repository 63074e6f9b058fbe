"""`LLMAFunctionCalling`: LLMA for models whose chat template knows tools."""

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts.base import PromptTemplate
from llama_index.core.types import Model

from llama_index.llms.llma import prompts, responses, tool_calls
from llama_index.llms.llma.base import LLMA
from llama_index.llms.llma.calls import Prepare, Respond, preparing
from llama_index.llms.llma.overflow import CUT
from llama_index.llms.llma.responses import Finished
from llma_rag import (
    ContextOverflowError,
    chosen_tools,
    closed_schema,
    text_before_calls,
    tool_call_schema,
)

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.program.utils import FlexibleModel
    from llama_index.core.tools import BaseTool


class LLMAFunctionCalling(LLMA, FunctionCallingLLM):
    """LLMA that offers tools to the model through its chat template and reads its calls.

    Takes LLMA's arguments. Engines call `chat`, and `FunctionAgent` and `structured_predict` work:
    the latter, and `tool_required=True`, constrain the answer to the JSON of a call.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex lists this class."""
        return "LLMAFunctionCalling"

    @property
    def metadata(self) -> LLMMetadata:
        """Say what prompts and programs may expect of this model."""
        known = {"is_chat_model": True, "is_function_calling_model": True}
        return super().metadata.model_copy(update=known)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the tools a response asks for.

        Raises:
            ValueError: If it asks for none, unless `error_on_no_tool_call` is False.
            RuntimeError: If a limit has cut it before that; engines hide a ValueError.
        """
        calls = tool_calls.calls_in(response.message)
        if not calls and error_on_no_tool_call:
            message = (
                f"Expected at least one tool call, got the answer {response.message.content!r}."
            )
            if isinstance(response.raw, dict) and response.raw.get("finish_reason") == "length":
                raise RuntimeError(f"{message} {CUT}")
            raise ValueError(message)
        return [
            ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
            for call in calls
        ]

    def predict_and_call(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> "AgentChatResponse":
        """Let the model call a tool, and run it.

        Raises:
            LookupError: If it calls a tool that is none of `tools`.
            RuntimeError: If the prompt fills the context window; engines hide a ValueError.
        """
        with _plain_errors(tools):
            return super().predict_and_call(tools, *args, **kwargs)

    async def apredict_and_call(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> "AgentChatResponse":
        """Do the same without blocking the event loop."""
        with _plain_errors(tools):
            return await super().apredict_and_call(tools, *args, **kwargs)

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> "Generator[Model | FlexibleModel]":
        """Fill a template and answer it with an object that grows."""
        held = _held_to(output_cls, llm_kwargs)
        return super().stream_structured_predict(output_cls, prompt, held, **prompt_args)

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> "AsyncGenerator[Model | FlexibleModel]":
        """Fill a template and answer with a growing object without blocking the event loop."""
        held = _held_to(output_cls, llm_kwargs)
        return await super().astream_structured_predict(output_cls, prompt, held, **prompt_args)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of `chat`.

        `tool_choice` wins over `tool_required`.
        """
        messages = list(chat_history or [])
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(content=user_msg)
            messages.append(user_msg)
        if tool_choice is None and tool_required:
            tool_choice = "required"
        return {
            "messages": messages,
            "tools": _in_openai_form(tools),
            "tool_choice": tool_choice,
            "allow_parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def _chat_call(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> Prepare[ChatResponse]:
        """Prepare a call; one that `tool_choice` forces is held to the schema of its tool.

        With `tool_choice="none"` the model sees no tools.

        Raises:
            ValueError: If `tool_choice` names none of the tools.
        """
        kwargs = dict(kwargs)
        tools = _in_openai_form(kwargs.pop("tools", None) or ())
        choice = kwargs.pop("tool_choice", None)
        several = kwargs.pop("allow_parallel_tool_calls", None) is not False
        forced = chosen_tools(tools, choice)
        if forced:
            tools = forced
            kwargs["json_schema"] = tool_call_schema(forced)
        elif choice in ("none", {"type": "none"}):
            tools = []
        if not tools and not any(map(tool_calls.calls_in, messages)):
            return super()._chat_call(messages, kwargs)
        messages = prompts.with_system_prompt(messages, self.system_prompt)
        respond: Respond[ChatResponse] = responses.chat_response
        schema = kwargs.get("json_schema")
        if schema is None or schema == tool_call_schema(tools):
            # An answer held to another schema, which the caller gave, is no call.
            respond = partial(_respond, tools, several)
        text = self._template(messages, tools)
        return preparing(self, text, kwargs, respond, prompts.citable(messages))

    def _template(self, messages: Sequence[ChatMessage], tools: Any) -> str:
        tokenizer = self._decoder.tokenizer
        if "tools" not in str(tokenizer.chat_template or ""):
            raise NotImplementedError(  # engines hide a ValueError
                f"The chat template of `{self.tokenizer_name}` knows no tools; use a model whose "
                "template does, or `LLMA` with `ReActAgent`."
            )
        return prompts.rendered(tokenizer, messages, tool_calls.turns, tools=tools or None)


@contextmanager
def _plain_errors(tools: "Sequence[BaseTool]") -> Iterator[None]:
    """Say what LlamaIndex hides, or raises as a bare key: it looks tools up by their names."""
    try:
        yield
    except ContextOverflowError as error:
        raise RuntimeError(str(error)) from error
    except KeyError as error:
        names = [str(tool.metadata.name) for tool in tools]
        if not error.args or error.args[0] in names:
            raise
        raise LookupError(
            f"The model called `{error.args[0]}`; the tools are "
            f"{', '.join(f'`{name}`' for name in names)}. Ask again, or set `tool_required=True`."
        ) from error


def _held_to(output_cls: type[Model], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Return arguments of a call that hold its answer to the JSON of an object.

    Where it streams an object, LlamaIndex requires no call of the tool that stands for its class,
    and reads the object from the text.
    """
    return {"json_schema": closed_schema(output_cls.model_json_schema()), **(llm_kwargs or {})}


def _in_openai_form(tools: "Iterable[BaseTool | dict[str, Any]]") -> list[dict[str, Any]]:
    return [
        tool if isinstance(tool, dict) else tool.metadata.to_openai_tool(skip_length_check=True)
        for tool in tools
    ]


def _respond(
    tools: Sequence[dict[str, Any]],
    several: bool,
    text: str,
    delta: str | None,
    finished: Finished | None,
) -> ChatResponse:
    """Return a response whose tool calls are blocks; a stream holds their notation back."""
    calls = tool_calls.read_calls(text, tools)[: None if several else 1] if finished else []
    visible = text if finished and not calls else text_before_calls(text)
    if delta is not None:
        sent = text if finished else text[: len(text) - len(delta)]
        delta = visible[len(text_before_calls(sent)) :]
    response = responses.chat_response(visible, delta, finished)
    if calls:
        response.message = tool_calls.with_calls(response.message, calls)
    return response
