"""Schemas of tool calls: closed, and complete wherever they stand."""

import json

import pytest

from llma_rag import closed_schema, tool_call_schema

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


@pytest.mark.parametrize("key", ["const", "default", "enum"])
def test_values_are_no_schemas(key: str) -> None:
    value = {"properties": {"a": 1}}
    schema = {key: [value] if key == "enum" else value}
    assert closed_schema(schema) == schema


def test_a_property_may_be_called_properties() -> None:
    schema = {"type": "object", "properties": {"properties": INNER}}
    strict = closed_schema(schema)
    assert set(strict["properties"]) == {"properties"}
    assert strict["properties"]["properties"]["additionalProperties"] is False


def test_a_tool_without_parameters_takes_none() -> None:
    call = tool_call_schema([{"function": {"name": "x"}}])
    assert call["properties"]["arguments"]["additionalProperties"] is False
    assert "$defs" not in call


def test_definitions_of_two_tools_stay_apart() -> None:
    other = {**NESTED, "$defs": {**NESTED["$defs"], "Name": {"enum": ["other"]}}}
    schema = tool_call_schema([function("one", NESTED), function("two", other)])
    assert len(schema["anyOf"]) == 2
    assert schema["$defs"]["one.Name"] == {"enum": ["a", "b"]}
    assert schema["$defs"]["two.Name"] == {"enum": ["other"]}
    assert schema["$defs"]["two.Item"]["properties"]["next"] == {"$ref": "#/$defs/two.Name"}


def test_a_grammar_follows_the_references() -> None:
    guidance = pytest.importorskip("llguidance", reason="structured answers are an optional extra")
    from llma_rag.testing import byte_tokenizer

    tokenizer = byte_tokenizer()
    table = guidance.hf.from_tokenizer(tokenizer)
    schema = tool_call_schema([function("one", NESTED), function("two", INNER)])
    grammar = guidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    calls = {
        '{"name":"one","arguments":{"items":[{"size":1,"next":"b"}]}}': True,
        '{"name":"one","arguments":{"items":[{"size":1,"next":"c"}]}}': False,
        '{"name":"two","arguments":{"b":7}}': True,
        '{"name":"two","arguments":{"b":7,"c":7}}': False,
    }
    for text, valid in calls.items():
        matcher = guidance.LLMatcher(table, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        taken = matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
        assert taken is valid, text
