"""Schemas of tool calls: closed, complete wherever they stand, and of the tools chosen."""

import datetime
import json
from pathlib import Path

import pydantic
import pytest

from llma_rag import chosen_tools, closed_schema, tool_call_schema
from llma_rag.testing import byte_tokenizer

INNER = {"type": "object", "properties": {"b": {"type": "integer"}}}
NESTED = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "maxItems": 2}},
    "required": ["items"],
    "$defs": {
        "Item": {
            "type": "object",
            "properties": {"size": {"enum": [1, 2]}, "next": {"$ref": "#/$defs/Name"}},
            "required": ["size", "next"],
        },
        "Name": {"enum": ["a", "b"]},
    },
}


def function(name: str, parameters: dict) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_objects_hold_only_the_properties_that_are_named() -> None:
    strict = closed_schema(
        {"type": "object", "properties": {"a": {"type": "array", "items": INNER}}}
    )
    assert strict["additionalProperties"] is False
    assert strict["properties"]["a"]["items"]["additionalProperties"] is False
    assert closed_schema({"type": "object"}) == {"type": "object"}
    assert closed_schema(INNER | {"additionalProperties": True})["additionalProperties"] is True


TEXT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
JOINT = {
    "both": {"allOf": [TEXT, INNER | {"required": ["b"]}]},
    "nested": {"allOf": [{"allOf": [TEXT, {"title": "none"}]}, INNER | {"required": ["b"]}]},
    "beside": {**TEXT, "allOf": [INNER | {"required": ["b"]}]},
    "reference": {**TEXT, "$ref": "#/$defs/B~1", "$defs": {"B/": INNER | {"required": ["b"]}}},
    "references": {
        "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "$defs": {"A": TEXT, "B": INNER | {"required": ["b"]}},
    },
    "one of": {**TEXT, "anyOf": [INNER | {"required": ["b"]}]},
}


@pytest.mark.parametrize("kind", JOINT)
def test_schemas_of_one_object_leave_room_for_each_other(kind: str) -> None:
    schema = closed_schema(JOINT[kind])
    assert allowed(schema, '{"a":"x","b":7}')
    assert not allowed(schema, '{"a":"x","b":"7"}')
    call = tool_call_schema([function("f", JOINT[kind])])
    assert allowed(call, '{"name":"f","arguments":{"a":"x","b":7}}')


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [INNER], "title": "one"},
        {"allOf": [{"$ref": "#/$defs/B"}, {"required": ["b"]}], "$defs": {"B": INNER}},
        {"$ref": "#/$defs/B", "description": "one", "$defs": {"B": INNER}},
        {"anyOf": [INNER, {"$ref": "#/$defs/T"}], "$defs": {"T": TEXT}},
        {**INNER, "anyOf": [{"required": ["b"]}, {"maxProperties": 0}]},
        {"$ref": "#/$defs/Gone", **INNER},
        {"allOf": [{"properties": {"c": INNER}, "additionalProperties": False}, {"title": "c"}]},
    ],
)
def test_a_schema_that_describes_an_object_alone_is_closed(schema: dict) -> None:
    text = json.dumps(closed_schema(schema))
    assert text.count('"additionalProperties": false') == text.count('"properties"')


def test_objects_within_joint_schemas_are_closed() -> None:
    schema = closed_schema({"allOf": [{"properties": {"c": INNER}}, TEXT]})
    assert "additionalProperties" not in schema["allOf"][0]
    assert schema["allOf"][0]["properties"]["c"]["additionalProperties"] is False


@pytest.mark.parametrize("key", ["const", "default", "enum"])
def test_values_are_no_schemas(key: str) -> None:
    value = {"properties": {"a": 1}}
    schema = {key: [value] if key == "enum" else value}
    assert closed_schema(schema) == schema


def test_what_no_grammar_holds_is_left_to_the_validator() -> None:
    """Pydantic's schemas of sets, paths, bytes and secrets; `llguidance` refuses them else."""
    llguidance = pytest.importorskip("llguidance")

    class Answer(pydantic.BaseModel):
        tags: set[str]
        path: Path
        data: bytes
        secret: pydantic.SecretStr
        when: datetime.date
        format: str = "any"

    schema = closed_schema(Answer.model_json_schema())
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    assert llguidance.LLMatcher.validate_grammar(grammar) == ""
    assert schema["properties"]["when"]["format"] == "date"
    assert schema["properties"]["format"]["default"] == "any"


def test_a_property_may_be_called_properties() -> None:
    schema = {"type": "object", "properties": {"properties": INNER}}
    strict = closed_schema(schema)
    assert set(strict["properties"]) == {"properties"}
    assert strict["properties"]["properties"]["additionalProperties"] is False


def test_a_tool_without_parameters_takes_none() -> None:
    call = tool_call_schema([{"function": {"name": "x"}}])
    assert call["properties"]["arguments"]["additionalProperties"] is False
    assert "$defs" not in call


LIST = {
    "type": "object",
    "properties": {"value": {"enum": [1]}, "rest": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["value", "rest"],
}
"""A list, by reference to the whole schema."""

OLDER = {
    "type": "object",
    "properties": {"size": {"$ref": "#/definitions/Size"}},
    "required": ["size"],
    "definitions": {"Size": {"enum": [3]}},
}
OTHER = {**NESTED, "$defs": {**NESTED["$defs"], "Name": {"enum": ["other"]}}}
DATA = {
    "type": "object",
    "properties": {"a": {"const": {"$ref": "#/$defs/Name"}}},
    "required": ["a"],
}
TOOLS = [
    function("one", NESTED),
    function("other", OTHER),
    function("list", LIST),
    function("older", OLDER),
    function("data", DATA),
    function("two", INNER),
]
CALLS = {
    ("one", '{"items":[{"size":1,"next":"b"}]}'): True,
    ("one", '{"items":[{"size":1,"next":"other"}]}'): False,
    ("other", '{"items":[{"size":1,"next":"other"}]}'): True,
    ("other", '{"items":[{"size":1,"next":"b"}]}'): False,
    ("list", '{"value":1,"rest":{"value":1,"rest":null}}'): True,
    ("list", '{"value":1,"rest":{"value":2,"rest":null}}'): False,
    ("list", '{"value":1,"rest":{"name":"list","arguments":{}}}'): False,
    ("older", '{"size":3}'): True,
    ("older", '{"size":4}'): False,
    ("data", '{"a":{"$ref":"#/$defs/Name"}}'): True,
    ("data", '{"a":"a"}'): False,
    ("two", '{"b":7}'): True,
    ("two", '{"b":7,"c":7}'): False,
}


def allowed(schema: dict, text: str) -> bool:
    """Whether a grammar of the schema lets a text through."""
    tables = pytest.importorskip("llguidance.hf", reason="structured answers are an extra")
    from llguidance import LLMatcher

    tokenizer = byte_tokenizer()
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = LLMatcher(tables.from_tokenizer(tokenizer), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize("answer", [None, NESTED, LIST], ids=["no answer", "nested", "list"])
@pytest.mark.parametrize("alone", [True, False], ids=["one tool", "six tools"])
@pytest.mark.parametrize(("call", "valid"), CALLS.items())
def test_a_grammar_follows_the_references_of_every_call(
    call: tuple[str, str], valid: bool, alone: bool, answer: dict | None
) -> None:
    name, arguments = call
    tools = [tool for tool in TOOLS if tool["function"]["name"] == name] if alone else TOOLS
    text = f'{{"name":"{name}","arguments":{arguments}}}'
    assert allowed(tool_call_schema(tools, answer), text) is valid


@pytest.mark.parametrize(
    ("answer", "text", "valid"),
    [
        (NESTED, '{"items":[{"size":2,"next":"a"}]}', True),
        (NESTED, '{"items":[{"size":2,"next":"other"}]}', False),
        (LIST, '{"value":1,"rest":{"value":1,"rest":null}}', True),
        (LIST, '{"value":1,"rest":{"name":"two","arguments":{}}}', False),
        (LIST, '{"value":1,"rest":null,"more":1}', False),
    ],
)
def test_an_answer_beside_tools_keeps_its_references(answer: dict, text: str, valid: bool) -> None:
    assert allowed(tool_call_schema(TOOLS, answer), text) is valid


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, []),
        ("auto", []),
        ({"type": "auto"}, []),
        ({"type": "none"}, []),
        ("any", ["one", "two"]),
        ({"type": "any"}, ["one", "two"]),
        ({"type": "required"}, ["one", "two"]),
        ({"type": "any", "disable_parallel_tool_use": True}, ["one", "two"]),
        ({"type": "tool", "name": "two"}, ["two"]),
        ({"type": "any", "name": "two"}, ["two"]),
        ({"type": "function", "function": {"name": "two"}}, ["two"]),
    ],
)
def test_a_choice_in_the_forms_of_others(choice: object, names: list[str]) -> None:
    chosen = chosen_tools([function("one", INNER), function("two", INNER)], choice)
    assert [tool["function"]["name"] for tool in chosen] == names


@pytest.mark.parametrize("choice", ["three", {}, {"type": "function"}, {"type": "tool"}])
def test_a_choice_that_names_no_tool_is_refused(choice: object) -> None:
    with pytest.raises(ValueError, match="`tool_choice` must name a bound tool"):
        chosen_tools([function("one", INNER)], choice)
