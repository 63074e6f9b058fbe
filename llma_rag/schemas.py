"""JSON schemas that hold a model's answer to a tool call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llma_rag.joint_schemas import joint_schemas

_Tool = TypeVar("_Tool", bound=Mapping[str, Any])

_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value holds schemas under names of its own."""

Change = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""Takes a schema whose parts were changed, and that schema as it was; returns it changed."""

_DATA = ("const", "enum", "default", "examples")
"""Keywords whose value is no schema."""


_FORMATS = frozenset(
    {
        "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
    }
)  # fmt: skip
"""Formats of strings that grammars hold."""


def closed_schema(schema: Any) -> Any:
    """Return a schema whose objects have only the properties it names, as OpenAI's strict mode.

    An object that says something about `additionalProperties` itself keeps it, and one that several
    schemas describe together (`allOf`, or properties beside `$ref` or `anyOf`) stays open: each of
    them would forbid what the others name. `uniqueItems` and formats that no grammar holds
    (Pydantic's of sets, paths, bytes, secrets) are left out: they are left to what validates the
    answer.

    >>> closed_schema({"type": "object", "properties": {}})["additionalProperties"]
    False
    >>> closed_schema({"type": "string", "format": "path"})
    {'type': 'string'}
    """
    joint = joint_schemas(schema)
    return _changed(schema, lambda part, was: _closed(part, is_joint=id(was) in joint))


def tool_call_schema(
    tools: Sequence[Mapping[str, Any]], answer: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON schema of a call of one of `tools`, at least one, in OpenAI's notation.

    A call is an object of `name` and `arguments`. What refers to another place of its schema, as to
    its definitions, refers to where that place is now.

    Args:
        tools: The tools.
        answer: Schema of an answer that may be given instead of a call.

    >>> call = tool_call_schema([{"type": "function", "function": {"name": "now"}}])
    >>> call["properties"]["name"], call["required"]
    ({'const': 'now'}, ['name', 'arguments'])
    """
    options = [_call(tool["function"]) for tool in tools]
    if answer is not None:
        options.append(closed_schema(answer))
    if len(options) == 1:
        return options[0]
    return {
        "anyOf": [_moved(option, f"#/anyOf/{place}") for place, option in enumerate(options)],
    }


def chosen_tools(tools: Sequence[_Tool], choice: Any) -> list[_Tool]:
    """Return the tools of which one must be called: none for `None`, `"auto"` and `"none"`.

    Args:
        tools: Tools in OpenAI's notation.
        choice: A `tool_choice`: a word, the name of a tool, or OpenAI's or Anthropic's form of it.

    Raises:
        ValueError: If `choice` names none of the tools.
    """
    word = _word(choice)
    if word is None or word is False or word in ("auto", "none"):
        return []
    if word is True or word in ("any", "required"):
        return list(tools)
    named = choice.get("function", choice) if isinstance(choice, Mapping) else choice
    name = named.get("name") if isinstance(named, Mapping) else named
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        known = ", ".join(f"`{tool['function']['name']}`" for tool in tools) or "none"
        raise ValueError(
            f"`tool_choice` must name a bound tool, got {choice!r}; the tools are {known}."
        )
    return chosen


def _word(choice: Any) -> Any:
    """Return the word that a `tool_choice` is, or that it has for its type and names no tool."""
    if not isinstance(choice, Mapping) or "name" in choice or "function" in choice:
        return choice
    return choice.get("type", choice)


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a call of one function."""
    parameters = closed_schema(dict(function.get("parameters") or _NO_ARGUMENTS))
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": _moved(parameters, "#/properties/arguments"),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """Return a schema that stood alone and now stands at `place`, a JSON pointer."""

    def moved(part: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        target = part.get("$ref")
        if not isinstance(target, str) or not target.startswith("#"):
            return part
        return part | {"$ref": place + target.removeprefix("#")}

    return _changed(schema, moved)


def _closed(part: dict[str, Any], *, is_joint: bool) -> dict[str, Any]:
    part = {key: value for key, value in part.items() if not _is_beyond_grammars(key, value)}
    if is_joint or not isinstance(part.get("properties"), dict):
        return part
    return {"additionalProperties": False} | part


def _is_beyond_grammars(key: str, value: Any) -> bool:
    return key == "uniqueItems" or (
        key == "format" and isinstance(value, str) and value not in _FORMATS
    )


def _changed(schema: Any, change: Change) -> Any:
    """Return a schema after `change` of every schema in it, the inner ones first."""
    if isinstance(schema, list):
        return [_changed(part, change) for part in schema]
    if not isinstance(schema, dict):
        return schema
    new = {key: _changed_value(key, value, change) for key, value in schema.items()}
    return change(new, schema)


def _changed_value(key: str, value: Any, change: Change) -> Any:
    if key in _DATA:
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: _changed(part, change) for name, part in value.items()}
    return _changed(value, change)
