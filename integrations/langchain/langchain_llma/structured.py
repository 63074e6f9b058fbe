"""Constrain answers to a schema, and read them back."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, TypeAlias

from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_llma.tool_calls import Tool
from llma_rag import chosen_tools, closed_schema, tool_call_schema

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]
Schema: TypeAlias = dict[str, Any] | type


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
        return dict(closed_schema(convert_to_json_schema(response_format)))
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return dict(closed_schema(response_format.get("schema") or {"type": "object"}))
    schema = (response_format.get("json_schema") or {}).get("schema")
    if kind != "json_schema" or schema is None:
        msg = (
            '`response_format` must be {"type": "json_schema", "json_schema": {"schema": ...}} or '
            f'{{"type": "json_object"}}, got {dict(response_format)!r}.'
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
    traced = {"kwargs": {"method": method}, "schema": schema}
    if method == "json_mode":
        known = {} if schema is None else {"schema": convert_to_json_schema(schema)}
        return {
            "response_format": {"type": "json_object", **known},
            "ls_structured_output_format": traced,
        }
    if method == "json_schema":
        formatted = convert_to_json_schema(schema)  # type: ignore[arg-type]  # not None here
        name = formatted.get("title", "answer")
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": name, "schema": formatted},
            },
            "ls_structured_output_format": traced,
        }
    tool = convert_to_openai_tool(schema)  # type: ignore[arg-type]  # not None here
    return {
        "tools": [schema],
        "tool_choice": tool["function"]["name"],
        "ls_structured_output_format": traced | {"schema": tool},
    }


def parser_of(schema: Schema | None, method: Method) -> BaseOutputParser[Any]:
    """Return the parser that makes a constrained answer an instance of its schema."""
    model = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    if method == "function_calling":
        if model is not None:
            return PydanticToolsParser(tools=[model], first_tool_only=True)
        name = convert_to_openai_tool(schema)["function"]["name"]  # type: ignore[arg-type]
        return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return JsonOutputParser() if model is None else PydanticOutputParser(pydantic_object=model)


def with_raw(model: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    """Return the message beside what was parsed of it, or the error in parsing it."""
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
