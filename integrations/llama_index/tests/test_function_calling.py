import json

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


TOOL = FunctionTool.from_defaults(add)


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
