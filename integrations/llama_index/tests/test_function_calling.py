import json
import re

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool, QueryEngineTool

from integrations.llama_index.tests.probes import make_index
from integrations.llama_index.tests.scripted import ScriptedDecoder
from llama_index.llms.llma import LLMA, LLMAFunctionCalling
from llama_index.llms.llma.tool_calls import ToolCall, calls_in, with_calls

TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "; {% endfor %}assistant: "
)
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


STRICT = (
    "{% for m in messages %}{% if m.tool_calls is defined %}[TOOL_CALLS] ["
    "{% for c in m.tool_calls %}{% if c.id is not defined or c.id|length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}{{ c.function | tojson }}, {{ c.id }}{% endfor %}]"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id|length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    '{% endif %}[TOOL_RESULTS] {"content": "{{ m.content }}", "call_id": "{{ m.tool_call_id }}"}'
    "{% else %}[{{ m.role }}] {{ m.content }}{% endif %}{% endfor %}"
    "{% if tools is not none %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}"
)
"""Mistral's, shortened: it checks ids, and shows an empty list of tools."""


class SayingDecoder(ScriptedDecoder):
    """Says one text after the other, whatever it is asked."""

    def __init__(self, *texts):
        super().__init__()
        self.tokenizer.chat_template = TEMPLATE
        self.texts = list(texts)

    def generate(self, prompt, **arguments):
        result = super().generate(prompt, **arguments)
        text = self.texts.pop(0)
        values = {name: getattr(result, name) for name in ("finish_reason", "stats")}
        return type(result)(text=text, token_ids=tuple(text.encode()), copied_spans=(), **values)


def make(*texts, **options):
    return LLMAFunctionCalling(decoder=SayingDecoder(*texts), **options)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def now() -> str:
    """Tell the time."""
    return "noon"


TOOL = FunctionTool.from_defaults(add)
NOW = FunctionTool.from_defaults(now)


def prompts_of(llm):
    return [llm.decoder.tokenizer.decode(call.prompt[1:]) for call in llm.decoder.calls]


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
    with pytest.raises(ValueError, match="at least one tool call"):
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


async def test_function_agent_with_mistrals_template():
    llm = make("[TOOL_CALLS] " + json.dumps([{"name": "add", "arguments": {"a": 2, "b": 3}}]), "5")
    llm.decoder.tokenizer.chat_template = STRICT
    agent = FunctionAgent(tools=[TOOL], llm=llm)
    assert str(await agent.run("2 + 3?", memory=ChatMemoryBuffer.from_defaults())) == "5"
    assert re.search(r'\{"content": "5", "call_id": "\w{9}"\}', prompts_of(llm)[1])


def test_one_call_unless_several_are_allowed():
    for allowed, expected in ((False, 1), (True, 2)):
        response = make(ADD + ADD).chat_with_tools(
            [TOOL], user_msg="q", allow_parallel_tool_calls=allowed
        )
        assert len(calls_in(response.message)) == expected


def test_calls_and_results_enter_the_next_prompt():
    llm = make("5")
    call = with_calls(ChatMessage(role="assistant", content=""), [ToolCall("c", "add", {"a": 1})])
    result = ChatMessage(role="tool", content="5", additional_kwargs={"tool_call_id": "c"})
    llm.chat([ChatMessage(content="q"), call, result])
    assert prompts_of(llm)[0] == (
        'user: q; assistant: <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>; '
        "tool: 5; assistant: "
    )


def test_a_template_without_tools_is_refused():
    llm = make("x")
    llm.decoder.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match="knows no tools"):
        llm.chat_with_tools([TOOL], user_msg="q")


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
    schema = llm.decoder.calls[0].options.get("json_schema")
    assert (named(schema) if schema else None) == forced
    assert [name for name in ("add", "now") if f'"name": "{name}"' in prompts_of(llm)[0]] == offered
    assert len(calls_in(response.message)) == (1 if offered else 0)
    assert response.message.content == ("" if offered else said)


@pytest.mark.parametrize(
    "choice", ["ad", {"type": "function", "function": {"name": "ad"}}, {"type": "any"}, {}, 1]
)
async def test_an_unknown_tool_choice_is_refused(choice):
    llm = make()
    with pytest.raises(ValueError, match=r"`tool_choice` must .* got .* are `add`, `now`"):
        llm.chat_with_tools([TOOL, NOW], user_msg="q", tool_choice=choice)
    with pytest.raises(ValueError, match="`tool_choice`"):
        await llm.astream_chat_with_tools([TOOL], user_msg="q", tool_choice=choice)


def test_no_tools_after_earlier_calls_are_no_empty_list():
    llm = make("5")
    llm.decoder.tokenizer.chat_template = STRICT
    call = with_calls(ChatMessage(role="assistant", content=""), [ToolCall("c" * 9, "add", {})])
    llm.chat_with_tools([TOOL], chat_history=[call], tool_choice="none")
    assert "AVAILABLE_TOOLS" not in prompts_of(llm)[0]


class Song(BaseModel):
    """A song."""

    title: str
    year: int


async def test_structured_predict():
    said = json.dumps({"name": "Song", "arguments": {"title": "Sea", "year": 1901}})
    llm = make(said, said)
    prompt = PromptTemplate("a song about {topic}")
    song = Song(title="Sea", year=1901)
    assert llm.structured_predict(Song, prompt, topic="the sea") == song
    assert await llm.astructured_predict(Song, prompt, topic="the sea") == song
    assert "json_schema" in llm.decoder.calls[0].options


def test_structured_predict_without_function_calling():
    llm = LLMA(decoder=SayingDecoder('{"title": "Sea", "year": 1901}'))
    song = llm.structured_predict(
        Song, PromptTemplate("a song"), llm_kwargs={"json_schema": Song.model_json_schema()}
    )
    assert song == Song(title="Sea", year=1901)
    assert llm.decoder.calls[0].options["json_schema"]["title"] == "Song"


async def test_function_agent():
    llm = make(ADD, "The sum is 5.")
    agent = FunctionAgent(tools=[TOOL], llm=llm)
    output = await agent.run("2 + 3?", memory=ChatMemoryBuffer.from_defaults())
    assert str(output) == "The sum is 5."
    assert "tool: 5" in prompts_of(llm)[1]


async def test_function_agent_copies_from_what_its_tool_retrieved():
    ask = '<tool_call>{"name": "docs", "arguments": {"input": "alpha"}}</tool_call>'
    llm = make(ask, "an answer of the engine", "final")
    engine = make_index(size=3, length=20).as_query_engine(llm=llm, similarity_top_k=2)
    tool = QueryEngineTool.from_defaults(engine, name="docs", description="d")
    await FunctionAgent(tools=[tool], llm=llm).run("q", memory=ChatMemoryBuffer.from_defaults())
    assert [len(call.references) for call in llm.decoder.calls] == [0, 2, 2]


async def test_react_agent_runs_on_llma():
    llm = LLMA(
        decoder=SayingDecoder(
            'Thought: I need a tool.\nAction: add\nAction Input: {"a": 2, "b": 3}',
            "Thought: I can answer.\nAnswer: five",
        )
    )
    agent = ReActAgent(tools=[TOOL], llm=llm)
    assert str(await agent.run("2 + 3?", memory=ChatMemoryBuffer.from_defaults())) == "five"


def test_calls_survive_this_version_of_the_framework():
    message = with_calls(ChatMessage(role="assistant", content="t"), [ToolCall("c", "n", {"a": 1})])
    again = ChatMessage.model_validate_json(message.model_dump_json())
    assert calls_in(again) == [ToolCall("c", "n", {"a": 1})]
    assert again.content == "t"
