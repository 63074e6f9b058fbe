"""Write tools and their results into a chat template, and read a model's tool calls."""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage, MessageRole

from llama_index.llms.llma.prompts import text_of_message
from llma_rag import WrittenCall, read_tool_calls

ToolCallBlock: Any = getattr(types, "ToolCallBlock", None)
"""A tool call inside a message; llama-index-core 0.13 keeps it in `additional_kwargs`."""

_NAME = re.compile(r'"name"\s*:\s*"([^"\\]+)"')


class ToolCall(NamedTuple):
    """A tool the model wants to run."""

    id: str
    name: str
    arguments: dict[str, Any]


def new_id() -> str:
    """Return the id of a new call: nine letters and digits, as Mistral's templates demand."""
    return uuid.uuid4().hex[:9]


def read_calls(text: str, tools: Sequence[dict[str, Any]]) -> list[ToolCall]:
    """Return the calls a model has written, those that cannot be read last.

    One in tags counts whatever it names: an agent answers an unknown name with an error.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    parts = read_tool_calls(text, functions)
    failing = [WrittenCall(_failing_name(one.body, functions), {}) for one in parts.unreadable]
    return [ToolCall(new_id(), *call) for call in (*parts.calls, *failing)]


def _failing_name(body: str, functions: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name under which an unreadable call, without arguments, ends in an error.

    That is the name in it, unless it is a tool that would run without arguments.
    """
    named = _NAME.search(body)
    if named is None:
        return "invalid"
    function = functions.get(named[1])
    needs_arguments = function is None or (function.get("parameters") or {}).get("required")
    return named[1] if needs_arguments else "invalid"


def turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages in the form that `apply_chat_template` takes, tool calls included."""
    names: dict[str, str] = {}
    written = []
    for message in messages:
        calls = calls_in(message)
        names |= {call.id: call.name for call in calls if call.id}
        written.append(_turn(message, calls, names))
    return written


def _turn(
    message: ChatMessage, calls: Sequence[ToolCall], names: Mapping[str, str]
) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role.value, "content": text_of_message(message)}
    if calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    extra = message.additional_kwargs
    if "tool_call_id" in extra:
        turn["tool_call_id"] = extra["tool_call_id"]
    if message.role == MessageRole.TOOL:
        name = extra.get("name") or names.get(extra.get("tool_call_id") or "")
        turn |= {"name": name} if name else {}
    return turn


def with_calls(message: ChatMessage, calls: Sequence[ToolCall]) -> ChatMessage:
    """Return a message with tool calls, as this version of LlamaIndex keeps them."""
    if ToolCallBlock is None:
        message.additional_kwargs["tool_calls"] = [call._asdict() for call in calls]
        return message
    blocks = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in calls
    ]
    message.blocks = [*message.blocks, *blocks]
    return message


def calls_in(message: ChatMessage) -> list[ToolCall]:
    """Return the tool calls of a message: those of its blocks, else those beside them.

    Beside them are calls in OpenAI's form, and what `with_calls` keeps there.

    Raises:
        ValueError: If the arguments of a call are no JSON object.
    """
    calls = [
        ToolCall(
            block.tool_call_id or "", block.tool_name, _as_dict(block.tool_name, block.tool_kwargs)
        )
        for block in message.blocks
        if ToolCallBlock is not None and isinstance(block, ToolCallBlock)
    ]
    return calls or _calls_beside(message.additional_kwargs.get("tool_calls") or ())


def _calls_beside(written: Iterable[Any]) -> list[ToolCall]:
    """Return calls that are mappings or the OpenAI client's objects; other forms are left out."""
    calls = []
    for one in map(dict, written):
        function = dict(one.get("function") or one)
        if function.keys() >= {"name", "arguments"}:
            name = function["name"]
            arguments = _as_dict(name, function["arguments"])
            calls.append(ToolCall(one.get("id") or "", name, arguments))
    return calls


def _as_dict(name: str, arguments: object) -> dict[str, Any]:
    try:
        return WrittenCall.of(name, arguments).arguments
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The arguments of a call of `{name}` must be a JSON object, got {arguments!r}. "
            "Correct them, or leave the call out of the conversation."
        ) from error
