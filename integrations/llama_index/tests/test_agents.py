import json
import re

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import QueryEngineTool

from integrations.llama_index.tests.probes import make_index
from integrations.llama_index.tests.saying import (
    ADD,
    NOW,
    STRICT,
    TOOL,
    SayingDecoder,
    make,
    prompts_of,
)
from llama_index.llms.llma import LLMA


async def test_function_agent():
    llm = make(ADD, "The sum is 5.")
    agent = FunctionAgent(tools=[TOOL], llm=llm)
    output = await agent.run("2 + 3?", memory=ChatMemoryBuffer.from_defaults())
    assert str(output) == "The sum is 5."
    assert "tool: 5" in prompts_of(llm)[1]


async def test_function_agent_with_mistrals_template():
    llm = make("[TOOL_CALLS] " + json.dumps([{"name": "add", "arguments": {"a": 2, "b": 3}}]), "5")
    llm.decoder.tokenizer.chat_template = STRICT
    agent = FunctionAgent(tools=[TOOL], llm=llm)
    assert str(await agent.run("2 + 3?", memory=ChatMemoryBuffer.from_defaults())) == "5"
    assert re.search(r'\{"content": "5", "call_id": "\w{9}"\}', prompts_of(llm)[1])


def called(name, arguments="{}"):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (called("nope"), "Tool nope not found. Please select a tool that is available."),
        (called("nope", '{"a": }'), "Tool nope not found. Please select a tool that is available."),
        (called("add", '{"a": 1, "b": }'), "missing 2 required positional arguments: 'a' and 'b'"),
        (called("add", "[1, 2]"), "missing 2 required positional arguments: 'a' and 'b'"),
        (called("now", '{"zone": }'), "Tool invalid not found."),
        ("<tool_call>{broken</tool_call>", "Tool invalid not found."),
        (ADD + called("nope"), "tool: Tool nope not found."),
        (ADD + called("add", '{"a": }'), "missing 2 required positional arguments: 'a' and 'b'"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agent_answers_a_wrong_call_with_an_error(said, answered, streaming):
    llm = make(said, "recovered")
    agent = FunctionAgent(tools=[TOOL, NOW], llm=llm, streaming=streaming)
    output = await agent.run("q", memory=ChatMemoryBuffer.from_defaults())
    assert str(output) == "recovered"
    assert answered in prompts_of(llm)[1]
    assert ("tool: 5" in prompts_of(llm)[1]) == (ADD in said)
    assert "noon" not in prompts_of(llm)[1]


@pytest.mark.parametrize("said", ['{"name": "nope", "arguments": {}}', "A <tool_call> is a tag."])
async def test_function_agent_ends_with_text_that_is_no_call(said):
    agent = FunctionAgent(tools=[TOOL], llm=make(said))
    assert str(await agent.run("q", memory=ChatMemoryBuffer.from_defaults())) == said


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
