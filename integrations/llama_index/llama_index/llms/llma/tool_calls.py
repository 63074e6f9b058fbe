"""Write tools and their results into a chat template, and read a model's tool calls."""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage

from llama_index.llms.llma.prompts import text_of_message

ToolCallBlock: Any = getattr(types, "ToolCallBlock", None)
"""A tool call inside a message; llama-index-core 0.13 keeps it in `additional_kwargs`."""

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_OPENING = "<tool_call>"
_MISTRAL = "[TOOL_CALLS]"


class ToolCall(NamedTuple):
    """A tool the model wants to run."""

    id: str
    name: str
    arguments: dict[str, Any]


def turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages in the form that `apply_chat_template` takes, tool calls included."""
    return [_turn(message) for message in messages]


def _turn(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role.value, "content": text_of_message(message)}
    calls = calls_in(message)
    if calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    if "tool_call_id" in message.additional_kwargs:
        turn["tool_call_id"] = message.additional_kwargs["tool_call_id"]
    return turn


def read_calls(text: str, known: Collection[str]) -> list[ToolCall]:
    """Return the calls of known tools in an answer, in any of the three common notations.

    Tagged (`<tool_call>{...}</tool_call>`), a list after `[TOOL_CALLS]`, or nothing but JSON.

    >>> read_calls('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', {"add"})
    [ToolCall(id='call_0', name='add', arguments={'a': 1})]
    """
    written = _TAGGED.findall(text) or [text.strip().removeprefix(_MISTRAL)]
    found = [entry for part in written for entry in _entries(part)]
    calls = [
        (entry["name"], entry.get("arguments", entry.get("parameters")))
        for entry in found
        if entry.get("name") in known
    ]
    return [
        ToolCall(f"call_{i}", name, arguments)
        for i, (name, arguments) in enumerate(calls)
        if isinstance(arguments, dict)
    ]


def _entries(text: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError:
        return []
    values = value if isinstance(value, list) else [value]
    return [entry for entry in values if isinstance(entry, dict)]


def shown(text: str) -> str:
    """Return what a reader may see of an answer that may be, or end in, a tool call.

    >>> shown("Let me look.<tool_call>{"), shown("Let me <tool"), shown('{"name"')
    ('Let me look.', 'Let me ', '')
    """
    if text.lstrip()[:1] in ("{", "["):
        return ""
    before, tag, _ = text.partition(_OPENING)
    if tag:
        return before
    kept = range(min(len(_OPENING), len(text)), 0, -1)
    held = next((size for size in kept if _OPENING.startswith(text[-size:])), 0)
    return text[: len(text) - held]


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
    """Return the tool calls that `with_calls` put into a message."""
    if ToolCallBlock is None:
        return [ToolCall(**call) for call in message.additional_kwargs.get("tool_calls", [])]
    return [
        ToolCall(block.tool_call_id or "", block.tool_name, _as_dict(block.tool_kwargs))
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]


def _as_dict(arguments: dict[str, Any] | str) -> dict[str, Any]:
    return json.loads(arguments) if isinstance(arguments, str) else arguments
