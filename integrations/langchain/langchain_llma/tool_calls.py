"""Force, recognise and read tool calls in a model's text."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from llma_rag import WrittenCall, read_tool_calls, text_before_calls

Tool = dict[str, Any]
"""A tool in OpenAI's format, as `as_tool` makes it."""


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer taken apart.

    Attributes:
        content: The text around the tool calls.
        calls: Tool calls that could be read.
        invalid: Tool calls that are no valid JSON.
    """

    content: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()


def as_tool(given: dict[str, Any] | type | Callable[..., Any] | BaseTool) -> Tool:
    """Return a tool in OpenAI's format.

    Raises:
        ValueError: If it is no function, as tools that a provider has built in.
    """
    tool = convert_to_openai_tool(given)
    if "function" not in tool:
        msg = (
            f"`tools` must hold functions, got a tool of type `{tool.get('type')}` that has no "
            "`function`. Built-in ones run on their provider's servers; pass your own function."
        )
        raise ValueError(msg)
    return tool


def tool_name(tool: Tool) -> str:
    """Return the name by which the model calls a tool."""
    return str(tool["function"]["name"])


def read_answer(text: str, tools: Sequence[Tool]) -> ReadAnswer:
    """Separate tool calls from text, as `llma_rag.read_tool_calls` does."""
    parts = read_tool_calls(text, {tool_name(tool) for tool in tools})
    return ReadAnswer(
        content=parts.content,
        calls=tuple(map(_with_id, parts.calls)),
        invalid=tuple(
            invalid_tool_call(name=None, args=one.body, id=_new_id(), error=one.error)
            for one in parts.unreadable
        ),
    )


def cut_call(text: str, *, limited: bool) -> ReadAnswer:
    """Return a forced call that ended before its JSON did.

    Args:
        text: What there is of it.
        limited: Whether a limit ended it.
    """
    error = (
        "The tool call was cut at `max_tokens` or `timeout`; raise the limit."
        if limited
        else "The tool call is no complete JSON."
    )
    call = invalid_tool_call(name=None, args=text, id=_new_id(), error=error)
    return ReadAnswer("", invalid=(call,))


def read_parsed(message: Mapping[str, Any]) -> ReadAnswer:
    """Read what a tokenizer's own `parse_response` returned."""
    written = [call.get("function", call) for call in message.get("tool_calls") or ()]
    calls = [_with_id(WrittenCall.of(call["name"], call.get("arguments"))) for call in written]
    return ReadAnswer(str(message.get("content") or ""), tuple(calls))


class HeldText:
    """Text of a streamed answer that may still turn out to be a tool call."""

    def __init__(self, *, hold: bool, hold_all: bool = False) -> None:
        self._hold = hold
        self._hold_all = hold_all
        self._text = ""
        self._shown = 0

    def feed(self, text: str) -> str:
        """Add text and return what can be shown of it now."""
        self._text += text
        if self._hold_all:
            return ""
        return self.rest_of(text_before_calls(self._text) if self._hold else self._text)

    def rest_of(self, content: str) -> str:
        """Return the part of `content`, counted from the answer's start, not yet shown."""
        start = self._shown
        self._shown = max(start, len(content))
        return content[start:]


def _with_id(call: WrittenCall) -> ToolCall:
    return tool_call(name=call.name, args=call.arguments, id=_new_id())


def _new_id() -> str:
    """Return nine letters and digits, the only form that Mistral's chat templates take."""
    return uuid.uuid4().hex[:9]
