"""Structured answers and agents over a real decoder: nothing between the class and the model."""

import json
from typing import Literal

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context

from integrations.llama_index.tests.conftest import make_model, make_tokenizer
from integrations.llama_index.tests.probes import make_index, read
from integrations.llama_index.tests.saying import TEMPLATE
from llama_index.llms.llma import LLMA, LLMAFunctionCalling, results_of
from llma_rag import closed_schema
from llma_rag.testing import ScriptedModel

pytest.importorskip("llguidance", reason="structured answers are an optional extra")

CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
END = 2
"""The tokenizer's end of text."""


class Song(BaseModel):
    """A song."""

    title: str = Field(max_length=6)
    year: int = Field(ge=1900, le=1999)
    kind: Literal["ballad", "march"]


class Album(BaseModel):
    """An album, whose schema refers to that of a song."""

    songs: list[Song] = Field(min_length=1, max_length=2)


PROMPT = PromptTemplate("Invent a song about {topic}.")


def tokenizer():
    made = make_tokenizer()
    made.chat_template = TEMPLATE
    return made


def untrained(cls, max_new_tokens=200):
    """A model that knows nothing of JSON: only a constraint can make its answers valid."""
    model = make_model()
    model.generation_config.eos_token_id = END
    return cls(
        model=model,
        tokenizer=tokenizer(),
        context_window=2048,
        max_new_tokens=max_new_tokens,
    )


def telling(cls, *texts):
    """A model that gives one answer after the other, whatever it is asked."""
    words = tokenizer()
    scripts = [[*words(text, add_special_tokens=False)["input_ids"], END] for text in texts]
    model = ScriptedModel([], eos_token_id=END, context_length=4096)
    model.generation_config.pad_token_id = 0

    def begin(model, args, kwargs):
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() == 0 and scripts:
            model.script = scripts.pop(0)

    llm = cls(model=model, tokenizer=words, context_window=4096, max_new_tokens=200)
    model.register_forward_pre_hook(begin, with_kwargs=True)
    return llm, scripts


def test_the_untrained_model_writes_no_json_by_itself():
    """Without this the other tests would prove nothing."""
    assert "{" not in untrained(LLMAFunctionCalling).complete("x").text[:1]


async def test_objects_that_grow():
    llm = untrained(LLMAFunctionCalling)
    whole = llm.structured_predict(Song, PROMPT, topic="the sea", llm_kwargs={"draft": False})
    read = list(llm.stream_structured_predict(Song, PROMPT, topic="the sea"))
    streamed = await llm.astream_structured_predict(Song, PROMPT, topic="the sea")
    assert len(read) > 3
    assert len({str(song) for song in read}) > 2
    for song in (read[-1], [song async for song in streamed][-1]):
        assert {type(value) for value in song.model_dump().values()} == {str, int}
        assert Song.model_validate(song.model_dump()).kind in ("ballad", "march")
    messages = PROMPT.format_messages(topic="the sea")
    chunks = list(llm.as_structured_llm(Song).stream_chat(messages))
    assert Song.model_validate_json(chunks[-1].message.content)
    assert isinstance(whole, Song)


async def test_structured_predict():
    llm = untrained(LLMAFunctionCalling)
    songs = [
        llm.structured_predict(Song, PROMPT, topic="the sea"),
        llm.structured_predict(Song, PROMPT, topic="the sea", llm_kwargs={"draft": False}),
        await llm.astructured_predict(Song, PROMPT, topic="the sea"),
        llm.as_structured_llm(Song).complete(PROMPT.format(topic="the sea")).raw,
    ]
    assert isinstance(songs[0], Song)
    assert songs == [songs[0]] * 4


def test_structured_predict_of_nested_models():
    album = untrained(LLMAFunctionCalling, max_new_tokens=400).structured_predict(
        Album, PROMPT, topic="the sea"
    )
    assert isinstance(album.songs[0], Song)


def test_structured_predict_without_function_calling():
    llm, schema = untrained(LLMA), closed_schema(Song.model_json_schema())
    song = llm.structured_predict(Song, PROMPT, topic="the sea", llm_kwargs={"json_schema": schema})
    assert isinstance(song, Song)


def test_a_query_engine_with_an_output_class():
    llm = untrained(LLMAFunctionCalling)
    engine = make_index(size=3, length=12).as_query_engine(
        llm=llm, similarity_top_k=2, output_cls=Song
    )
    response = engine.query("alpha topic zero")
    assert isinstance(response.response, Song)
    assert results_of(response)[0].stats.references_used == 2


@pytest.mark.parametrize("cls", [LLMA, LLMAFunctionCalling])
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_overflow_is_not_swallowed_where_objects_are_asked_for(cls, streaming):
    """Synthesizers answer "Empty Response" to a ValueError of a model call."""
    llm = cls(decoder=untrained(cls).decoder, context_window=1200)
    index = make_index(size=2, length=300)
    engine = index.as_query_engine(llm=llm, output_cls=Song, streaming=streaming)
    with pytest.raises(RuntimeError, match="context window of 1200"):
        str(engine.query("alpha"))
    with pytest.raises(RuntimeError, match="context window of 1200"):
        await read(engine, "alpha")


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


TOOL = FunctionTool.from_defaults(add)


class Amount(BaseModel):
    a: int = Field(ge=0, le=99)


def test_a_required_call_of_an_untrained_model():
    tool = FunctionTool.from_defaults(lambda a: 2 * a, name="double", fn_schema=Amount)
    llm = untrained(LLMAFunctionCalling)
    response = llm.chat_with_tools([TOOL, tool], user_msg="2 * 3?", tool_choice="double")
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "double"
    assert 0 <= call.tool_kwargs["a"] <= 99


@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agent(streaming):
    llm, left = telling(LLMAFunctionCalling, f"I will add.{CALL}", "The sum is 5.")
    agent = FunctionAgent(tools=[TOOL], llm=llm, streaming=streaming)
    output = await agent.run("2 + 3?", memory=ChatMemoryBuffer.from_defaults())
    assert str(output) == "The sum is 5."
    assert [call.tool_output.raw_output for call in output.tool_calls] == [5]
    assert left == []


@pytest.mark.parametrize("streaming", [True, False])
async def test_react_agent(streaming):
    llm, left = telling(
        LLMA,
        'Thought: I need a tool.\nAction: add\nAction Input: {"a": 2, "b": 3}',
        "Thought: I can answer without using any more tools.\nAnswer: five",
    )
    agent = ReActAgent(tools=[TOOL], llm=llm, streaming=streaming)
    output = await agent.run("2 + 3?", memory=ChatMemoryBuffer.from_defaults())
    assert str(output) == "five"
    assert [call.tool_output.raw_output for call in output.tool_calls] == [5]
    assert left == []


async def test_function_agent_over_a_query_engine():
    ask = '<tool_call>{"name": "docs", "arguments": {"input": "alpha topic zero"}}</tool_call>'
    llm, left = telling(LLMAFunctionCalling, ask, "alpha topic zero fact0w1", "It is zero.")
    engine = make_index(size=3, length=12).as_query_engine(llm=llm, similarity_top_k=2)
    tool = QueryEngineTool.from_defaults(engine, name="docs", description="d")
    output = await FunctionAgent(tools=[tool], llm=llm).run(
        "q", memory=ChatMemoryBuffer.from_defaults()
    )
    assert str(output) == "It is zero."
    assert str(output.tool_calls[0].tool_output) == "alpha topic zero fact0w1"
    assert left == []


@pytest.mark.filterwarnings("ignore:Skipping serialization of known unserializable key")
async def test_a_workflows_context_survives_json():
    """Its state holds our messages and responses; LlamaIndex leaves the memory itself out."""
    llm, left = telling(LLMAFunctionCalling, CALL, "The sum is 5.", "As I said, 5.")
    agent = FunctionAgent(tools=[TOOL], llm=llm)
    context, memory = Context(agent), ChatMemoryBuffer.from_defaults()
    await agent.run("2 + 3?", ctx=context, memory=memory)
    kept = json.loads(json.dumps(context.to_dict()))
    again = Context.from_dict(agent, kept)
    output = await agent.run("and again?", ctx=again, memory=memory)
    assert str(output) == "As I said, 5."
    assert left == []
