import json
import re

import pytest
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode

from integrations.llama_index.tests.saying import (
    ADD,
    NOW,
    TOOL,
    SayingDecoder,
    make,
    prompts_of,
)
from llama_index.llms.llma import LLMA, LLMAFunctionCalling
from llama_index.llms.llma.tool_calls import calls_in


class Song(BaseModel):
    """A song."""

    title: str
    year: int


def test_metadata():
    llm = make()
    assert isinstance(llm, FunctionCallingLLM)
    assert llm.metadata.is_function_calling_model
    assert llm.metadata.is_chat_model


def test_tools_reach_the_template_and_calls_come_back():
    llm = make("I will add." + ADD)
    response = llm.chat_with_tools([TOOL], user_msg="2 + 3?")
    assert prompts_of(llm)[0].startswith("TOOLS [")
    assert '"name": "add"' in prompts_of(llm)[0]
    assert response.message.content == "I will add."
    (selection,) = llm.get_tool_calls_from_response(response)
    assert (selection.tool_name, selection.tool_kwargs) == ("add", {"a": 2, "b": 3})


@pytest.mark.parametrize(
    ("text", "visible", "calls"),
    [
        (f"I will add.{ADD}", "I will add.", 1),
        (ADD, "", 1),
        ("I add <b> tags", "I add <b> tags", 0),
        ('{"no": "call"}', '{"no": "call"}', 0),
        ("ends in <tool_", "ends in <tool_", 0),
    ],
)
async def test_a_stream_holds_the_notation_of_a_call_back(text, visible, calls):
    llm = make(text, text)
    chunks = list(llm.stream_chat_with_tools([TOOL], user_msg="q"))
    streamed = await llm.astream_chat_with_tools([TOOL], user_msg="q")
    for read in (chunks, [chunk async for chunk in streamed]):
        assert "".join(chunk.delta for chunk in read) == visible
        assert (read[-1].message.content or "") == visible
        assert len(calls_in(read[-1].message)) == calls


def test_an_answer_without_a_call():
    llm = make("No tool is needed.", "No tool is needed.")
    response = llm.chat_with_tools([TOOL], user_msg="q")
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"at least one tool call, .* 'No tool is needed.'.$"):
        llm.get_tool_calls_from_response(response)


def test_every_call_has_an_id_of_its_own_that_strict_templates_take():
    """Mistral's templates take nine letters and digits."""
    llm = make(ADD + ADD, ADD)
    ids = [
        selection.tool_id
        for _ in range(2)
        for selection in llm.get_tool_calls_from_response(
            llm.chat_with_tools([TOOL], user_msg="q", allow_parallel_tool_calls=True)
        )
    ]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-zA-Z]{9}", one) for one in ids)


@pytest.mark.parametrize(("allowed", "expected"), [(False, 1), (True, 2)])
async def test_one_call_unless_several_are_allowed(allowed, expected):
    llm = make(*[ADD + ADD] * 4)
    options = {"user_msg": "q", "allow_parallel_tool_calls": allowed}
    responses = [
        llm.chat_with_tools([TOOL], **options),
        await llm.achat_with_tools([TOOL], **options),
        list(llm.stream_chat_with_tools([TOOL], **options))[-1],
        [chunk async for chunk in await llm.astream_chat_with_tools([TOOL], **options)][-1],
    ]
    assert [len(calls_in(response.message)) for response in responses] == [expected] * 4


def test_chat_itself_returns_all_calls():
    response = make(ADD + ADD).chat([ChatMessage(content="q")], tools=[TOOL])
    assert len(calls_in(response.message)) == 2


def test_a_template_without_tools_is_refused():
    llm = make("x")
    llm.decoder.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(NotImplementedError, match="knows no tools"):
        llm.chat_with_tools([TOOL], user_msg="q")


async def synthesized(llm, **options):
    """Ask a synthesizer; it answers "Empty Response" to a ValueError of a model call."""
    nodes = [NodeWithScore(node=TextNode(text=words)) for words in ("one text", "another text")]
    synthesizer = get_response_synthesizer(llm=llm, response_mode="refine", **options)
    return str(await synthesizer.asynthesize("q", nodes))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "options", [{"output_cls": Song}, {"structured_answer_filtering": True}], ids=str
)
async def test_an_engine_says_that_a_template_knows_no_tools(options, streaming):
    llm = make(*["x"] * 4)
    llm.decoder.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(NotImplementedError, match="knows no tools"):
        await synthesized(llm, streaming=streaming, **options)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LLMAFunctionCalling, {"output_cls": Song}),
        (LLMAFunctionCalling, {"structured_answer_filtering": True}),
        (LLMA, {"output_cls": Song}),
    ],
)
async def test_an_engine_says_that_the_limit_cut_an_object(cls, options):
    cut = SayingDecoder(*['{"name": "So'] * 4, finish_reason="length")
    with pytest.raises(RuntimeError, match="cut at the limit of tokens: raise `max_new_tokens`"):
        await synthesized(cls(decoder=cut), **options)
    complete = SayingDecoder(*['{"name": "So'] * 4)
    assert await synthesized(cls(decoder=complete), **options) == "Empty Response"


async def test_an_engine_that_filters_answers_says_that_a_prompt_does_not_fit():
    llm = LLMAFunctionCalling(decoder=SayingDecoder(), context_window=1200)
    nodes = [NodeWithScore(node=TextNode(text="word " * 400))]
    synthesizer = get_response_synthesizer(
        llm=llm, response_mode="refine", structured_answer_filtering=True
    )
    with pytest.raises(RuntimeError, match="context window of 1200"):
        synthesizer.synthesize("q", nodes)
    with pytest.raises(RuntimeError, match="context window of 1200"):
        await synthesizer.asynthesize("q", nodes)


async def test_calling_an_unknown_tool_is_said_in_words():
    llm = make(*['<tool_call>{"name": "nope", "arguments": {}}</tool_call>'] * 2)
    message = "^The model called `nope`; the tools are `add`, `now`"
    with pytest.raises(LookupError, match=message):
        llm.predict_and_call([TOOL, NOW], user_msg="q")
    with pytest.raises(LookupError, match=message):
        await llm.apredict_and_call([TOOL, NOW], user_msg="q")


async def test_predict_and_call():
    llm = make(ADD, ADD)
    assert str(llm.predict_and_call([TOOL], user_msg="q")) == "5"
    assert str(await llm.apredict_and_call([TOOL], user_msg="q")) == "5"


def test_a_required_call_is_constrained():
    llm = make('{"name": "add", "arguments": {"a": 1, "b": 2}}')
    response = llm.chat_with_tools([TOOL], user_msg="q", tool_required=True)
    schema = llm.decoder.calls[0].options["json_schema"]
    assert schema["properties"]["name"] == {"const": "add"}
    assert set(schema["properties"]["arguments"]["properties"]) == {"a", "b"}
    assert calls_in(response.message)[0].arguments == {"a": 1, "b": 2}


def named(schema):
    """Return the tools of which a schema asks for one call."""
    return [one["properties"]["name"]["const"] for one in schema.get("anyOf", [schema])]


@pytest.mark.parametrize(
    ("options", "offered", "forced"),
    [
        ({}, ["add", "now"], None),
        ({"tool_choice": None}, ["add", "now"], None),
        ({"tool_choice": "auto"}, ["add", "now"], None),
        ({"tool_choice": "none"}, [], None),
        ({"tool_choice": {"type": "none"}}, [], None),
        ({"tool_choice": {"type": "any"}}, ["add", "now"], ["add", "now"]),
        ({"tool_choice": "any"}, ["add", "now"], ["add", "now"]),
        ({"tool_choice": "required"}, ["add", "now"], ["add", "now"]),
        ({"tool_required": True}, ["add", "now"], ["add", "now"]),
        ({"tool_choice": "now"}, ["now"], ["now"]),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, ["now"], ["now"]),
        ({"tool_choice": {"name": "now"}}, ["now"], ["now"]),
        ({"tool_choice": "now", "tool_required": True}, ["now"], ["now"]),
        ({"tool_choice": "auto", "tool_required": True}, ["add", "now"], None),
        ({"tool_choice": "none", "tool_required": True}, [], None),
    ],
)
def test_which_tools_a_choice_offers_and_forces(options, offered, forced):
    said = '{"name": "now", "arguments": {}}'
    llm = make(said)
    response = llm.chat_with_tools([TOOL, NOW], user_msg="q", **options)
    assert_offered(llm, response, said, offered, forced)


def assert_offered(llm, response, said, offered, forced):
    options = llm.decoder.calls[0].options
    assert options.keys() <= {"max_new_tokens", "json_schema"}
    schema = options.get("json_schema")
    assert (named(schema) if schema else None) == forced
    assert [name for name in ("add", "now") if f'"name": "{name}"' in prompts_of(llm)[0]] == offered
    assert len(calls_in(response.message)) == (1 if offered else 0)
    assert response.message.content == ("" if offered else said)


@pytest.mark.parametrize("as_dicts", [True, False])
@pytest.mark.parametrize(
    ("choice", "offered", "forced"),
    [
        (None, ["add", "now"], None),
        ("none", [], None),
        ("any", ["add", "now"], ["add", "now"]),
        ("now", ["now"], ["now"]),
    ],
)
def test_chat_takes_tools_and_a_choice(as_dicts, choice, offered, forced):
    said = '{"name": "now", "arguments": {}}'
    llm = make(said)
    tools = [tool.metadata.to_openai_tool() if as_dicts else tool for tool in (TOOL, NOW)]
    response = llm.chat([ChatMessage(content="q")], tools=tools, tool_choice=choice)
    assert_offered(llm, response, said, offered, forced)


@pytest.mark.parametrize(
    "choice", ["ad", {"type": "function", "function": {"name": "ad"}}, {"type": "ad"}, {}, 1]
)
async def test_an_unknown_tool_choice_is_refused(choice):
    llm = make()
    with pytest.raises(ValueError, match=r"`tool_choice` must .* got .* are `add`, `now`"):
        llm.chat_with_tools([TOOL, NOW], user_msg="q", tool_choice=choice)
    with pytest.raises(ValueError, match="`tool_choice`"):
        await llm.astream_chat_with_tools([TOOL], user_msg="q", tool_choice=choice)


async def test_structured_predict():
    said = json.dumps({"name": "Song", "arguments": {"title": "Sea", "year": 1901}})
    llm = make(said, said)
    prompt = PromptTemplate("a song about {topic}")
    song = Song(title="Sea", year=1901)
    assert llm.structured_predict(Song, prompt, topic="the sea") == song
    assert await llm.astructured_predict(Song, prompt, topic="the sea") == song
    assert "json_schema" in llm.decoder.calls[0].options


async def test_structured_predict_says_that_the_limit_cut_its_answer():
    llm = make('{"name": "So', '{"name": "So', finish_reason="length")
    prompt = PromptTemplate("a song about {topic}")
    message = r"got the answer '\{\"name\": \"So'\. It was cut .* raise `max_new_tokens`"
    with pytest.raises(RuntimeError, match=message):
        llm.structured_predict(Song, prompt, topic="the sea")
    with pytest.raises(RuntimeError, match=message):
        await llm.astructured_predict(Song, prompt, topic="the sea")


def test_structured_predict_without_function_calling():
    llm = LLMA(decoder=SayingDecoder('{"title": "Sea", "year": 1901}'))
    song = llm.structured_predict(
        Song, PromptTemplate("a song"), llm_kwargs={"json_schema": Song.model_json_schema()}
    )
    assert song == Song(title="Sea", year=1901)
    assert llm.decoder.calls[0].options["json_schema"]["title"] == "Song"
