"""JSON schemas that hold a model's answer to a tool call."""

from collections.abc import Mapping, Sequence
from typing import Any

_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}
_REFERENCE = "#/$defs/"
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value holds schemas under names of its own."""

_DATA = ("const", "enum", "default", "examples")
"""Keywords whose value is no schema."""


def closed_schema(schema: Any) -> Any:
    """Return a schema whose objects have only the properties it names, as OpenAI's strict mode.

    An object that says something about `additionalProperties` itself keeps it.

    >>> closed_schema({"type": "object", "properties": {}})["additionalProperties"]
    False
    """
    if isinstance(schema, list):
        return [closed_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed_value(key, value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _closed_value(key: str, value: Any) -> Any:
    if key in _DATA:
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: closed_schema(part) for name, part in value.items()}
    return closed_schema(value)


def tool_call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of `tools`, at least one, in OpenAI's notation.

    A call is an object of `name` and `arguments`. Definitions that a tool's parameters refer to
    move to the top, where such references look for them.

    >>> call = tool_call_schema([{"type": "function", "function": {"name": "now"}}])
    >>> call["properties"]["name"], call["required"]
    ({'const': 'now'}, ['name', 'arguments'])
    """
    definitions: dict[str, Any] = {}
    calls = [_call(tool["function"], definitions) for tool in tools]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def _call(function: Mapping[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a call of one function; add what it refers to to `definitions`."""
    name = function["name"]
    arguments = _renamed(closed_schema(dict(function.get("parameters") or _NO_ARGUMENTS)), name)
    for key, definition in arguments.pop("$defs", {}).items():
        definitions[f"{name}.{key}"] = definition
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _renamed(schema: Any, owner: str) -> Any:
    """Return a schema that refers to definitions by `owner`'s name: two tools may use one name."""
    if isinstance(schema, list):
        return [_renamed(part, owner) for part in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {key: _renamed(value, owner) for key, value in schema.items()}
    target = renamed.get("$ref")
    if isinstance(target, str) and target.startswith(_REFERENCE):
        renamed["$ref"] = f"{_REFERENCE}{owner}.{target.removeprefix(_REFERENCE)}"
    return renamed
