"""Force, recognise and read tool calls in a model's text."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

Tool = dict[str, Any]
"""A tool in OpenAI's format, as `convert_to_openai_tool` makes it."""

_OPEN = "<tool_call>"
_MARKED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_BARE_BEGINNINGS = ("{", "[", "```")


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


def tool_name(tool: Tool) -> str:
    """Return the name by which the model calls a tool."""
    return str(tool["function"]["name"])


def chosen_tools(tools: Sequence[Tool], choice: Any) -> list[Tool]:
    """Return the tools of which one must be called: none for `None`, `"auto"` and `"none"`.

    Raises:
        ValueError: If `choice` names no bound tool.
    """
    if choice is None or choice is False or choice in ("auto", "none"):
        return []
    if choice is True or choice in ("any", "required"):
        return list(tools)
    name = choice.get("function", choice).get("name") if isinstance(choice, Mapping) else choice
    chosen = [tool for tool in tools if tool_name(tool) == name]
    if not chosen:
        known = ", ".join(f"`{tool_name(tool)}`" for tool in tools) or "none"
        msg = f"`tool_choice` must name a bound tool, got {choice!r}. Bound tools: {known}."
        raise ValueError(msg)
    return chosen


def read_answer(text: str, tools: Sequence[Tool]) -> ReadAnswer:
    """Separate tool calls from text.

    Understands `<tool_call>{...}</tool_call>` and an answer that is nothing but the JSON of one or
    more calls of known tools, fenced or not.
    """
    if not tools:
        return ReadAnswer(text)
    bodies = _MARKED.findall(text)
    if bodies:
        parts = [_read_call(body) for body in bodies]
        return ReadAnswer(
            content=_MARKED.sub("", text).rstrip(),
            calls=tuple(call for call in parts if call["type"] == "tool_call"),
            invalid=tuple(call for call in parts if call["type"] == "invalid_tool_call"),
        )
    calls = _bare_calls(text, {tool_name(tool) for tool in tools})
    return ReadAnswer("", tuple(calls)) if calls else ReadAnswer(text)


def read_parsed(message: Mapping[str, Any]) -> ReadAnswer:
    """Read what a tokenizer's own `parse_response` returned."""
    calls = [
        _as_call(call.get("function", call)["name"], call.get("function", call).get("arguments"))
        for call in message.get("tool_calls") or ()
    ]
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
        if not self._hold:
            end = len(self._text)
        else:
            end = 0 if self._hold_all else _plain_end(self._text)
        return self.rest_of(self._text[:end])

    def rest_of(self, content: str) -> str:
        """Return the part of `content`, counted from the answer's start, not yet shown."""
        start = self._shown
        self._shown = max(start, len(content))
        return content[start:]


def _plain_end(text: str) -> int:
    """Length of the beginning of `text` that belongs to no tool call, whatever follows."""
    if text.lstrip().startswith(_BARE_BEGINNINGS) or "```".startswith(text.strip()):
        return 0
    found = text.find(_OPEN)
    if found < 0:
        found = len(text)
        for length in range(min(len(_OPEN) - 1, len(text)), 0, -1):
            if text.endswith(_OPEN[:length]):
                found -= length
                break
    return len(text[:found].rstrip())


def _read_call(body: str) -> ToolCall | InvalidToolCall:
    try:
        parsed = json.loads(body)
        return _as_call(parsed["name"], parsed.get("arguments", parsed.get("parameters")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return invalid_tool_call(
            name=None, args=body, id=_new_id(), error=f"Not a tool call in JSON: {error}"
        )


def _bare_calls(text: str, names: set[str]) -> list[ToolCall]:
    fenced = _FENCED.match(text.strip())
    try:
        parsed = json.loads(fenced[1] if fenced else text)
        entries = parsed if isinstance(parsed, list) else [parsed]
        if not all(_looks_like_call(entry, names) for entry in entries):
            return []
        return [
            _as_call(entry["name"], entry.get("arguments", entry.get("parameters")))
            for entry in entries
        ]
    except (ValueError, TypeError):
        return []


def _looks_like_call(entry: object, names: set[str]) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry["name"] in names
        and entry.keys() <= {"name", "arguments", "parameters", "id", "type"}
    )


def _as_call(name: str, arguments: object) -> ToolCall:
    parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments or {}
    if not isinstance(parsed, dict):
        msg = f"`arguments` must be an object, got `{type(parsed).__name__}`."
        raise TypeError(msg)
    return tool_call(name=str(name), args=parsed, id=_new_id())


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
