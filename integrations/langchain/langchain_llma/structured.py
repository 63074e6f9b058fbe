"""Constrain answers to a schema."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from langchain_llma.schemas import Schema, function_of, json_schema_of, unwrapped
from langchain_llma.tool_calls import Tool
from llma_rag import chosen_tools, closed_schema, tool_call_schema

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]


def answer_schema(
    tools: Sequence[Tool], tool_choice: Any, response_format: Mapping[str, Any] | type | None
) -> dict[str, Any] | None:
    """Return the JSON schema that an answer must follow; None leaves it free.

    With a response format and tools together the model may either call a tool or answer.
    """
    chosen = chosen_tools(tools, tool_choice)
    if chosen:
        return tool_call_schema(chosen)
    answer = None if response_format is None else _schema_of(response_format)
    return answer if answer is None or not tools else tool_call_schema(tools, answer)


def _schema_of(response_format: Mapping[str, Any] | type) -> dict[str, Any] | None:
    """Read OpenAI's `response_format`, or a class that describes the answer.

    Raises:
        ValueError: If it has another form.
    """
    if isinstance(response_format, type):
        return dict(closed_schema(json_schema_of(response_format)))
    told = response_format if isinstance(response_format, Mapping) else {}
    kind = told.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return dict(closed_schema(told.get("schema") or {"type": "object"}))
    wrapped = told.get("json_schema")
    schema = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
    if kind != "json_schema" or schema is None:
        msg = (
            '`response_format` must be {"type": "json_schema", "json_schema": {"schema": ...}}, '
            f'{{"type": "json_object"}}, or a class, got {response_format!r}.'
        )
        raise ValueError(msg)
    return dict(closed_schema(schema))


def bind_arguments(schema: Schema | None, method: Method) -> dict[str, Any]:
    """Return what a model is bound to for structured output, tracing information included.

    Raises:
        ValueError: If the method is unknown or needs a schema.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        msg = f"`method` must be 'json_schema', 'function_calling' or 'json_mode', got {method!r}."
        raise ValueError(msg)
    if schema is None and method != "json_mode":
        msg = f"`schema` must be given for method {method!r}, got None."
        raise ValueError(msg)
    schema = None if schema is None else unwrapped(schema)
    traced = {"kwargs": {"method": method}, "schema": schema}
    if method == "json_mode":
        known = {} if schema is None else {"schema": json_schema_of(schema)}
        return {
            "response_format": {"type": "json_object", **known},
            "ls_structured_output_format": traced,
        }
    if method == "json_schema":
        formatted = json_schema_of(schema)  # type: ignore[arg-type]  # not None here
        name = formatted.get("title", "answer")
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": name, "schema": formatted},
            },
            "ls_structured_output_format": traced,
        }
    tool = function_of(schema)  # type: ignore[arg-type]  # not None here
    return {
        "tools": [tool],
        "tool_choice": tool["function"]["name"],
        "ls_structured_output_format": traced | {"schema": tool},
    }
