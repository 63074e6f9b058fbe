"""Find the tool calls that a model writes into its answer."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ENDED = re.compile(rf"\s*(?:{_CLOSE}|(?={_OPEN})|\Z)")
_THOUGHT_END = "</think>"
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
            TypeError: If they are no object, or the name is no text.
        """
        if not isinstance(name, str):
            raise TypeError(f"`name` must be a string, got `{type(name).__name__}`.")
        parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments or {}
        if not isinstance(parsed, dict):
            raise TypeError(f"`arguments` must be an object, got `{type(parsed).__name__}`.")
        return cls(name, parsed)


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
    more calls of known tools, fenced, after `[TOOL_CALLS]`, or by itself. What a model considers
    before `</think>` is text, and so is a tag that nothing follows which could be a call.

    Args:
        text: A whole answer.
        tools: Names of the tools; without any, nothing is a call.

    >>> read_tool_calls('So: <tool_call>{"name": "add", "arguments": {"a": 1}}', {"add"})
    AnswerParts(content='So:', calls=(WrittenCall(name='add', arguments={'a': 1}),), unreadable=())
    """
    if not tools:
        return AnswerParts(text)
    starts = _starts(text)
    for first in starts:
        calls = _bare_calls(text[first:], tools)
        if calls:
            return AnswerParts(text[:first].rstrip(), calls)
    start = starts[-1]
    content, found = text[:start], []
    for begin, end, body in _tagged(text, start):
        content += text[start:begin]
        found.append(_tagged_call(body))
        start = end
    if not found:
        return AnswerParts(text)
    return AnswerParts(
        content=(content + text[start:]).rstrip(),
        calls=tuple(one for one in found if isinstance(one, WrittenCall)),
        unreadable=tuple(one for one in found if isinstance(one, UnreadableCall)),
    )


def text_before_calls(text: str) -> str:
    """Return the beginning of an unfinished answer that belongs to no call, whatever follows.

    >>> text_before_calls("Let me look.<tool_call>{"), text_before_calls("Let me <tool")
    ('Let me look.', 'Let me')
    """
    for first in _starts(text):
        rest = text[first:]
        if rest.lstrip().startswith(_BARE_BEGINNINGS) or "```".startswith(rest.strip()):
            return text[:first].rstrip()
    thoughts, text = text[:first], rest
    before, tag, _ = text.partition(_OPEN)
    if not tag:
        sizes = range(min(len(_OPEN) - 1, len(text)), 0, -1)
        held = next((size for size in sizes if text.endswith(_OPEN[:size])), 0)
        before = text[: len(text) - held]
    return (thoughts + before).rstrip()


def _starts(text: str) -> list[int]:
    """Return where an answer may begin: at once, behind the first thought, and behind the last.

    A bare call begins at one of them, and may hold what looks like the end of a thought.
    """
    ends = {text.find(_THOUGHT_END), text.rfind(_THOUGHT_END)} - {-1}
    return [0, *sorted(end + len(_THOUGHT_END) for end in ends)]


def _tagged(text: str, start: int) -> Iterator[tuple[int, int, str]]:
    """Yield where calls in tags begin and end, and what stands between the tags."""
    while (begin := text.find(_OPEN, start)) >= 0:
        inner = len(text) - len(text[begin + len(_OPEN) :].lstrip())
        ended = _json_end(text, inner)
        closed = _ENDED.match(text, ended)
        following = text.find(_OPEN, inner)
        limit = len(text) if following < 0 else following
        closing = text.find(_CLOSE, ended, limit)
        if closed is not None and ended > inner:
            start, body = closed.end(), text[inner:ended]
        elif closing >= 0:
            start, body = closing + len(_CLOSE), text[inner:closing]
        elif text.startswith(("{", "["), inner):
            start, body = limit, text[inner:limit]
        else:
            start, body = inner, ""
        if body.strip():
            yield begin, start, body.strip()


def _json_end(text: str, start: int) -> int:
    """Return where the JSON object or list that begins at `start` ends; `start` if none does."""
    if not text.startswith(("{", "["), start):
        return start
    try:
        return int(json.JSONDecoder().raw_decode(text, start)[1])
    except (ValueError, RecursionError):
        return start


def _tagged_call(body: str) -> WrittenCall | UnreadableCall:
    try:
        parsed = json.loads(body)
        return WrittenCall.of(parsed["name"], parsed.get("arguments", parsed.get("parameters")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
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
    except (ValueError, TypeError, RecursionError):
        return ()


def _looks_like_call(entry: object, tools: Collection[str]) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry["name"] in tools
        and entry.keys() <= _KEYS
    )
