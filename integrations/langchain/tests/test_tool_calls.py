"""Tool calls: forced by a schema, read from text, kept out of what is streamed."""

import json
import re
from typing import Any

import pytest
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_llma.structured import answer_schema
from langchain_llma.tool_calls import HeldText, read_answer, read_parsed


@tool
def search(query: str) -> str:
    """Search."""
    return query


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


TOOLS = [convert_to_openai_tool(each) for each in (search, add)]
CALL = {"name": "search", "arguments": {"query": "x"}}
JSON = json.dumps(CALL)


def test_a_call_is_read() -> None:
    """In which notations, `tests/test_tool_calls.py` of the core shows."""
    answer = read_answer(f"Let me look.<tool_call>{JSON}</tool_call>", TOOLS)
    assert answer.content == "Let me look."
    assert [(call["name"], call["args"]) for call in answer.calls] == [("search", {"query": "x"})]
    assert not answer.invalid


def test_a_broken_call_is_reported() -> None:
    answer = read_answer("<tool_call>{broken</tool_call>", TOOLS)
    assert not answer.calls
    assert answer.invalid[0]["args"] == "{broken"


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_call_keeps_unicode(ascii_only: bool) -> None:
    call = {"name": "search", "arguments": {"query": "\u4f60\u597d"}}
    text = f"<tool_call>{json.dumps(call, ensure_ascii=ascii_only)}</tool_call>"
    assert read_answer(text, TOOLS).calls[0]["args"] == {"query": "\u4f60\u597d"}


def test_several_calls_get_ids_of_their_own() -> None:
    answer = read_answer(f"<tool_call>{JSON}</tool_call> and <tool_call>{JSON}</tool_call>", TOOLS)
    assert len({call["id"] for call in answer.calls}) == 2


def test_ids_have_the_form_that_mistrals_templates_ask_for() -> None:
    answer = read_answer(f"<tool_call>{JSON}</tool_call><tool_call>{{broken</tool_call>", TOOLS)
    for call in (*answer.calls, *answer.invalid):
        assert re.fullmatch("[a-zA-Z0-9]{9}", call["id"] or "")


def test_the_tokenizers_own_reading() -> None:
    answer = read_parsed(
        {"content": "words", "tool_calls": [{"type": "function", "function": CALL}]}
    )
    assert answer.content == "words"
    assert answer.calls[0]["args"] == {"query": "x"}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "plain words, a < b and <tool but no call",
        f"Let me look. <tool_call>{JSON}</tool_call>",
        f"<tool_call>{JSON}</tool_call>",
        f"words\n\n<tool_call>{JSON}</tool_call> more words",
        JSON,
        "{ not a call",
        "   spaces before ```code```",
        " ends with a space ",
        "",
    ],
)
def test_a_streamed_text_is_the_invoked_one(text: str, size: int) -> None:
    held, shown = HeldText(hold=True), ""
    for start in range(0, len(text), size):
        shown += held.feed(text[start : start + size])
        assert "tool_call" not in shown
    content = read_answer(text, TOOLS).content
    assert shown + held.rest_of(content) == content


def test_text_is_shown_at_once_when_there_are_no_tools() -> None:
    assert HeldText(hold=False).feed("{ <tool_call>") == "{ <tool_call>"


def _schema(choice: Any, response_format: Any = None, tools: Any = TOOLS) -> Any:
    return answer_schema(tools, choice, response_format)


@pytest.mark.parametrize("choice", [None, "auto", False])
def test_a_free_choice_constrains_nothing(choice: Any) -> None:
    assert _schema(choice) is None


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_any_tool(choice: Any) -> None:
    names = [option["properties"]["name"]["const"] for option in _schema(choice)["anyOf"]]
    assert names == ["search", "add"]


@pytest.mark.parametrize(
    "choice", ["add", {"type": "function", "function": {"name": "add"}}, {"name": "add"}]
)
def test_one_tool(choice: Any) -> None:
    schema = _schema(choice)
    assert schema["properties"]["name"] == {"const": "add"}
    assert set(schema["properties"]["arguments"]["properties"]) == {"a", "b"}
    assert schema["required"] == ["name", "arguments"]


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(ValueError, match="`tool_choice` must name a bound tool, got 'fly'"):
        _schema("fly")


def test_response_formats() -> None:
    inner: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}
    strict = inner | {"additionalProperties": False}
    assert _schema(None, wrapped, ()) == strict
    assert _schema(None, {"type": "json_object"}, ()) == {"type": "object"}
    assert _schema(None, {"type": "json_object", "schema": inner}, ()) == strict
    assert _schema(None, {"type": "text"}, ()) is None
    with pytest.raises(ValueError, match="`response_format` must be"):
        _schema(None, {"type": "yaml"}, ())


def test_an_agent_may_call_or_answer() -> None:
    schema = _schema(None, {"type": "json_object"})
    assert len(schema["anyOf"]) == 3
    assert schema["anyOf"][-1] == {"type": "object"}


def test_an_answer_beside_tools_keeps_its_definitions() -> None:
    """What may be said instead of a call refers to its own definitions, wherever they stand."""
    inner = {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": [1]}}}
    schema = _schema(None, {"type": "json_object", "schema": inner})
    assert schema["anyOf"][2]["properties"]["a"] == {"$ref": "#/anyOf/2/$defs/A"}
    assert schema["anyOf"][2]["$defs"] == {"A": {"enum": [1]}}


def test_a_free_answer_beside_tools_is_free() -> None:
    assert _schema(None, {"type": "text"}) is None
