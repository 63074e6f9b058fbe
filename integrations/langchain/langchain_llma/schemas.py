"""Read what a caller gives as a schema: a class, a JSON schema, or a provider's wrapping of one."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from langchain_llma.tool_calls import Tool

Schema: TypeAlias = dict[str, Any] | type

_FUNCTION_KEYS = ("parameters", "input_schema", "toolSpec")
"""What OpenAI, Anthropic and Bedrock put a function's own schema under."""


def unwrapped(schema: Schema) -> Schema:
    """Return a schema without the names and switches that OpenAI puts around it."""
    if not isinstance(schema, Mapping):
        return schema
    outer = schema.get("json_schema", schema) if schema.get("type") == "json_schema" else schema
    if not isinstance(outer, Mapping) or not isinstance(outer.get("schema"), Mapping):
        return schema
    named = {"title": outer["name"]} if "name" in outer else {}
    return {**outer["schema"], **named}


def json_schema_of(schema: Schema) -> dict[str, Any]:
    """Return the JSON schema of an answer.

    A JSON schema is used as it is, and a pydantic class by its own: core's conversion leaves out
    what has no properties at its top, and what a class says of itself.
    """
    schema = unwrapped(schema)
    if isinstance(schema, Mapping):
        return convert_to_json_schema(schema) if _is_function(schema) else dict(schema)
    own = getattr(schema, "model_json_schema", None)
    if own is None:
        return convert_to_json_schema(schema)
    return {"title": schema.__name__, **own()}


def function_of(schema: Schema) -> Tool:
    """Return the function whose arguments are an answer.

    Raises:
        ValueError: If it has no name, or the answer is no object, as arguments are.
    """
    schema = unwrapped(schema)
    tool = convert_to_openai_tool(schema)
    if isinstance(schema, Mapping) and not _is_function(schema):
        told = ("title", "description")
        parameters = {key: value for key, value in schema.items() if key not in told}
        tool["function"]["parameters"] = parameters
    function = tool["function"]
    if not _is_object(function.get("parameters") or {"type": "object"}):
        msg = (
            "`schema` must describe an object for method 'function_calling', got "
            f"{function['parameters']!r}. Use method 'json_schema', or put it into an object."
        )
        raise ValueError(msg)
    return tool


def _is_function(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "function" or any(key in schema for key in _FUNCTION_KEYS)


def _is_object(schema: Mapping[str, Any]) -> bool:
    """Whether a schema, or the part of it that its top refers to, is one of an object."""
    part: Any = schema
    for step in schema.get("$ref", "#").removeprefix("#").split("/")[1:]:
        part = part.get(step, {})
    return part.get("type") == "object" or "properties" in part
