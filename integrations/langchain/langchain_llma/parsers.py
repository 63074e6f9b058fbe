"""Read a constrained answer back as an instance of its schema; an answer that was cut is none."""

import json
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_llma.schemas import Schema, function_of
from langchain_llma.structured import Method

_LIMITED = (
    "The answer was cut at `max_tokens` or `timeout` before its JSON was complete; raise the limit."
)
_INCOMPLETE = "The answer is no complete JSON: `max_tokens` or `timeout` may have cut it."


class WholeJsonParser(JsonOutputParser):
    """Reads JSON; core's own repairs what was cut, and so makes up values."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return what the JSON says, or what a piece of it says so far."""
        if not partial:
            _refuse_cut_json(result)
        return super().parse_result(result, partial=partial)


class WholePydanticParser(PydanticOutputParser[Any]):
    """Reads an instance of a pydantic class from whole JSON."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the instance, or None as long as there is too little for one."""
        if not partial:
            _refuse_cut_json(result)
        return super().parse_result(result, partial=partial)


class WholeCallParser(JsonOutputKeyToolsParser):
    """Reads the arguments of a call; core's own returns None for one that was cut."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the arguments of the first call."""
        if not partial:
            _refuse_cut_call(result)
        return super().parse_result(result, partial=partial)


class WholePydanticCallParser(PydanticToolsParser):
    """Reads an instance of a pydantic class from the arguments of a whole call."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the instance that the first call describes."""
        if not partial:
            _refuse_cut_call(result)
        return super().parse_result(result, partial=partial)


def parser_of(schema: Schema | None, method: Method) -> BaseOutputParser[Any]:
    """Return the parser that makes a constrained answer an instance of its schema."""
    model = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    if method == "function_calling":
        if model is not None:
            return WholePydanticCallParser(tools=[model], first_tool_only=True)
        name = function_of(schema)["function"]["name"]  # type: ignore[arg-type]  # not None here
        return WholeCallParser(key_name=name, first_tool_only=True)
    return WholeJsonParser() if model is None else WholePydanticParser(pydantic_object=model)


def with_raw(model: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    """Return the message beside what was parsed of it, or the error in parsing it."""
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _refuse_cut_json(result: Sequence[Generation]) -> None:
    """Raise `OutputParserException` for an answer that ended inside its JSON."""
    message, text = _message(result), result[0].text
    limited = message is not None and message.response_metadata.get("finish_reason") == "length"
    if not _is_whole(text, limited):
        raise OutputParserException(_LIMITED if limited else _INCOMPLETE, llm_output=text)


def _refuse_cut_call(result: Sequence[Generation]) -> None:
    """Raise `OutputParserException` for a message with a call that could not be read."""
    message = _message(result)
    if message is not None and message.invalid_tool_calls:
        call = message.invalid_tool_calls[0]
        raise OutputParserException(call["error"] or _INCOMPLETE, llm_output=call["args"])


def _message(result: Sequence[Generation]) -> AIMessage | None:
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    return message if isinstance(message, AIMessage) else None


def _is_whole(text: str, limited: bool) -> bool:
    """Whether a text is JSON; of a number that a limit ended, the last digits may be missing."""
    try:
        return type(json.loads(text)) not in (int, float) or not limited
    except ValueError:
        return False
