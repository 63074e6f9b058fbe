"""Structured output: schemas in every form that others take, and answers that were cut."""

import json
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from pydantic import BaseModel, RootModel

from integrations.langchain.tests.probes import ProbeDecoder, chat


class Trip(BaseModel):
    """A trip."""

    late: bool
    minutes: int


class Stop(BaseModel):
    name: str
    next: "Stop | None" = None


class Flags(RootModel[list[bool]]):
    """Several answers."""


class Either(RootModel[Trip | Stop]):
    """One of two."""


TRIP = Trip.model_json_schema()
STOP = Stop.model_json_schema() | {"title": "Stop"}
CUT = '{"late": true, "minutes": 28'
METHODS: Any = ["json_schema", "json_mode"]


@pytest.mark.parametrize("schema", [Trip, TRIP], ids=["class", "dict"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("reason", "named"), [("length", "cut at `max_tokens`"), ("stop", "no complete JSON")]
)
def test_a_cut_answer_is_no_instance(
    decoder: ProbeDecoder, schema: Any, method: Any, reason: Any, named: str
) -> None:
    """Core repairs it: 28 minutes for 2888."""
    decoder.script, decoder.finish_reason = CUT, reason
    llm = chat(decoder)
    with pytest.raises(OutputParserException, match=named):
        llm.with_structured_output(schema, method=method).invoke("q")
    told = llm.with_structured_output(schema, method=method, include_raw=True).invoke("q")
    assert isinstance(told, dict)
    assert told["parsed"] is None
    assert isinstance(told["parsing_error"], OutputParserException)
    assert told["raw"].content == CUT


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_that_fills_its_limit_is_read(decoder: ProbeDecoder, method: Any) -> None:
    decoder.script, decoder.finish_reason = CUT + "}", "length"
    read = chat(decoder).with_structured_output(Trip, method=method).invoke("q")
    assert read == Trip(late=True, minutes=28)


def test_a_number_may_lack_its_last_digits(decoder: ProbeDecoder) -> None:
    llm = chat(decoder).with_structured_output({"type": "integer"})
    decoder.script = "28"
    assert llm.invoke("q") == 28
    decoder.finish_reason = "length"
    with pytest.raises(OutputParserException, match="cut at `max_tokens`"):
        llm.invoke("q")


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_shows_what_there_is_so_far(decoder: ProbeDecoder, method: Any) -> None:
    decoder.script, decoder.finish_reason = CUT, "length"
    *_, last = chat(decoder).with_structured_output(TRIP, method=method).stream("q")
    assert last == {"late": True, "minutes": 28}


@pytest.mark.parametrize("schema", [Trip, TRIP], ids=["class", "dict"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_cut_call_is_no_instance(decoder: ProbeDecoder, schema: Any, streaming: bool) -> None:
    decoder.script = f'{{"name": "Trip", "arguments": {CUT}'
    decoder.finish_reason = "length"
    llm = chat(decoder, streaming=streaming)
    with pytest.raises(OutputParserException, match="`max_tokens`"):
        llm.with_structured_output(schema, method="function_calling").invoke("q")
    told = llm.with_structured_output(schema, method="function_calling", include_raw=True)
    assert isinstance(told.invoke("q")["parsing_error"], OutputParserException)


WHOLE = [
    STOP,
    {"title": "Either", "anyOf": [TRIP, {"type": "null"}]},
    {"title": "Either", "oneOf": [TRIP, {"type": "null"}]},
    {"title": "Flags", "type": "array", "items": {"type": "boolean"}},
    {"type": "object", "properties": {"untitled": {"type": "null"}}},
    {"title": "Map", "type": "object", "additionalProperties": {"type": "integer"}},
]


def _closed(part: Any) -> Any:
    """As our schemas are: objects hold only what they name."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {key: _closed(value) for key, value in part.items()}
    return {"additionalProperties": False} | closed if "properties" in part else closed


@pytest.mark.parametrize("schema", WHOLE, ids=lambda schema: schema.get("title", "untitled"))
@pytest.mark.parametrize("method", METHODS)
def test_a_json_schema_is_used_as_it_is(decoder: ProbeDecoder, schema: Any, method: Any) -> None:
    decoder.script = "[]"
    chat(decoder).with_structured_output(schema, method=method).invoke("q")
    assert decoder.requests[0].options["json_schema"] == _closed(schema)


def test_a_class_that_holds_itself_is_held_to_itself(decoder: ProbeDecoder) -> None:
    """Core's conversion lets anything stand in the inner one."""
    decoder.script = '{"name": "a"}'
    assert chat(decoder).with_structured_output(Stop).invoke("q") == Stop(name="a")
    assert decoder.requests[0].options["json_schema"] == _closed(STOP)


@pytest.mark.parametrize(
    "schema",
    [
        {"name": "trip", "strict": True, "schema": TRIP},
        {"type": "json_schema", "name": "trip", "schema": TRIP},
        {"type": "json_schema", "json_schema": {"name": "trip", "strict": True, "schema": TRIP}},
    ],
    ids=["inner", "flat", "response_format"],
)
def test_openais_wrappings_are_taken_off(decoder: ProbeDecoder, schema: Any) -> None:
    decoder.script = json.dumps(answer := {"late": True, "minutes": 3})
    for method in METHODS:
        llm = chat(decoder).with_structured_output(schema, method=method)
        assert llm.invoke("q") == answer
        given = decoder.requests[-1].options["json_schema"]
        assert given["properties"] == TRIP["properties"]
    decoder.script = json.dumps({"name": "trip", "arguments": answer})
    llm = chat(decoder).with_structured_output(schema, method="function_calling")
    assert llm.invoke("q") == answer
    arguments = decoder.requests[-1].options["json_schema"]["properties"]["arguments"]
    assert arguments["properties"] == TRIP["properties"]


@pytest.mark.parametrize(
    "function",
    [
        {"name": "trip", "parameters": TRIP},
        {"name": "trip", "input_schema": TRIP},
        {"type": "function", "function": {"name": "trip", "parameters": TRIP}},
    ],
    ids=["function", "anthropic", "tool"],
)
@pytest.mark.parametrize("method", METHODS)
def test_functions_describe_an_answer(decoder: ProbeDecoder, function: Any, method: Any) -> None:
    decoder.script = json.dumps(answer := {"late": True, "minutes": 3})
    assert chat(decoder).with_structured_output(function, method=method).invoke("q") == answer
    given = decoder.requests[0].options["json_schema"]
    assert given["properties"] == TRIP["properties"]


def test_a_call_follows_a_schema_that_refers_to_itself(decoder: ProbeDecoder) -> None:
    decoder.script = '{"name": "Stop", "arguments": {"name": "a", "next": null}}'
    llm = chat(decoder).with_structured_output(STOP, method="function_calling")
    assert llm.invoke("q") == {"name": "a", "next": None}
    arguments = decoder.requests[0].options["json_schema"]["properties"]["arguments"]
    assert arguments["$ref"] == "#/properties/arguments/$defs/Stop"
    assert arguments["$defs"].keys() == {"Stop"}


@pytest.mark.parametrize("schema", [Flags, Either, *WHOLE[1:4]], ids=str)
def test_arguments_must_be_an_object(decoder: ProbeDecoder, schema: Any) -> None:
    with pytest.raises(ValueError, match="`schema` must describe an object"):
        chat(decoder).with_structured_output(schema, method="function_calling")
