"""Find the tool calls that a model writes into its answer."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

_OPEN = "<tool_call>"
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_BARE_BEGINNINGS = ("{", "[", "```")
_KEYS = {"name", "arguments", "parameters", "id", "type"}


class WrittenCall(NamedTuple):
    """A tool that the model wants to run."""

    name: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, name: object, arguments: object) -> "WrittenCall":
        """Return a call whose arguments may be an object, its JSON, or missing.

        Raises:
            ValueError: If they are no valid JSON.
            TypeError: If they are no object.
        """
        parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments or {}
        if not isinstance(parsed, dict):
            raise TypeError(f"`arguments` must be an object, got `{type(parsed).__name__}`.")
        return cls(str(name), parsed)


class UnreadableCall(NamedTuple):
    """What stands where a call should, and why it is none."""

    body: str
    error: str


@dataclass(frozen=True, slots=True)
class AnswerParts:
    """An answer taken apart.

    Attributes:
        content: The text around the tool calls.
        calls: Tool calls that could be read.
        unreadable: Tool calls that are no valid JSON.
    """

    content: str
    calls: tuple[WrittenCall, ...] = ()
    unreadable: tuple[UnreadableCall, ...] = ()


def read_tool_calls(text: str, tools: Collection[str]) -> AnswerParts:
    """Separate tool calls from text.

    Understands `<tool_call>{...}</tool_call>`, and an answer that is nothing but the JSON of one or
    more calls of known tools, fenced, after `[TOOL_CALLS]`, or by itself.

    Args:
        text: A whole answer.
        tools: Names of the tools; without any, nothing is a call.

    >>> read_tool_calls('So: <tool_call>{"name": "add", "arguments": {"a": 1}}', {"add"})
    AnswerParts(content='So:', calls=(WrittenCall(name='add', arguments={'a': 1}),), unreadable=())
    """
    if not tools:
        return AnswerParts(text)
    bodies = _TAGGED.findall(text)
    if not bodies:
        calls = _bare_calls(text, tools)
        return AnswerParts("", calls) if calls else AnswerParts(text)
    found = [_tagged_call(body) for body in bodies]
    return AnswerParts(
        content=_TAGGED.sub("", text).rstrip(),
        calls=tuple(one for one in found if isinstance(one, WrittenCall)),
        unreadable=tuple(one for one in found if isinstance(one, UnreadableCall)),
    )


def text_before_calls(text: str) -> str:
    """Return the beginning of an unfinished answer that belongs to no call, whatever follows.

    >>> text_before_calls("Let me look.<tool_call>{"), text_before_calls("Let me <tool")
    ('Let me look.', 'Let me')
    """
    if text.lstrip().startswith(_BARE_BEGINNINGS) or "```".startswith(text.strip()):
        return ""
    before, tag, _ = text.partition(_OPEN)
    if not tag:
        sizes = range(min(len(_OPEN) - 1, len(text)), 0, -1)
        held = next((size for size in sizes if text.endswith(_OPEN[:size])), 0)
        before = text[: len(text) - held]
    return before.rstrip()


def _tagged_call(body: str) -> WrittenCall | UnreadableCall:
    try:
        parsed = json.loads(body)
        return WrittenCall.of(parsed["name"], parsed.get("arguments", parsed.get("parameters")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return UnreadableCall(body, f"Not a tool call in JSON: {error}")


def _bare_calls(text: str, tools: Collection[str]) -> tuple[WrittenCall, ...]:
    written = text.strip()
    fenced = _FENCED.match(written)
    try:
        parsed = json.loads(fenced[1] if fenced else written.removeprefix(_MISTRAL))
        entries = parsed if isinstance(parsed, list) else [parsed]
        if not all(_looks_like_call(entry, tools) for entry in entries):
            return ()
        return tuple(
            WrittenCall.of(entry["name"], entry.get("arguments", entry.get("parameters")))
            for entry in entries
        )
    except (ValueError, TypeError):
        return ()


def _looks_like_call(entry: object, tools: Collection[str]) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry["name"] in tools
        and entry.keys() <= _KEYS
    )
