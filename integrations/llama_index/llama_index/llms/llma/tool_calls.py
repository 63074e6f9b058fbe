"""Write tools and their results into a chat template, and read a model's tool calls."""

import json
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage

from llama_index.llms.llma.prompts import text_of_message

ToolCallBlock: Any = getattr(types, "ToolCallBlock", None)
"""A tool call inside a message; llama-index-core 0.13 keeps it in `additional_kwargs`."""


class ToolCall(NamedTuple):
    """A tool the model wants to run."""

    id: str
    name: str
    arguments: dict[str, Any]


def new_id() -> str:
    """Return the id of a new call: nine letters and digits, as Mistral's templates demand."""
    return uuid.uuid4().hex[:9]


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
