"""Rows of the capture matrix: chat engines, agents, workflows, programs without an engine."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step

from integrations.llama_index.tests.matrix import FAISS, INDEX, QUESTION, last, row
from integrations.llama_index.tests.matrix_engines import ending, engine, truth
from integrations.llama_index.tests.probes import ProbeLLM, adrain, ids
from llama_index.llms.llma.ambient import process_scope
from llama_index.llms.llma.explicit import references


def memory():
    """The framework's default memory leaves SQLite connections open."""
    return ChatMemoryBuffer.from_defaults()


def add_chat_engine(cls, chatty):
    kind = f"{cls.__name__}{' chat-model' if chatty else ''}"

    def make(llm):
        retriever = INDEX.as_retriever(similarity_top_k=2)
        return cls.from_defaults(retriever=retriever, llm=llm, memory=memory())

    @row(f"{kind}.chat, second turn", chatty=chatty)
    def _(llm):
        chat = make(llm)
        chat.chat("hello there iota")
        llm.calls.clear()
        return ending(llm, chat.chat(QUESTION))

    @row(f"{kind}.achat, second turn", chatty=chatty)
    async def _(llm):
        chat = make(llm)
        await chat.achat("hello there iota")
        llm.calls.clear()
        return ending(llm, await chat.achat(QUESTION))

    @row(f"{kind}.stream_chat", chatty=chatty)
    def _(llm):
        response = make(llm).stream_chat(QUESTION)
        "".join(response.response_gen)
        return ending(llm, response)

    @row(f"{kind}.astream_chat", chatty=chatty)
    async def _(llm):
        response = await make(llm).astream_chat(QUESTION)
        await adrain(response)
        return ending(llm, response)


for each in (ContextChatEngine, CondensePlusContextChatEngine):
    for with_chat_model in (False, True):
        add_chat_engine(each, with_chat_model)


@row("CondenseQuestionChatEngine.chat")
def _(llm):
    chat = CondenseQuestionChatEngine.from_defaults(
        query_engine=engine(llm), llm=llm, memory=memory()
    )
    return ending(llm, chat.chat(QUESTION))


@row("CondenseQuestionChatEngine.stream_chat")
def _(llm):
    asked = engine(llm, streaming=True)
    chat = CondenseQuestionChatEngine.from_defaults(query_engine=asked, llm=llm, memory=memory())
    response = chat.stream_chat(QUESTION)
    "".join(response.response_gen)
    return ending(llm, response)


@row("index.as_chat_engine().stream_chat")
def _(llm):
    chat = INDEX.as_chat_engine(
        "condense_plus_context", llm=llm, similarity_top_k=2, memory=memory()
    )
    response = chat.stream_chat(QUESTION)
    "".join(response.response_gen)
    return ending(llm, response)


def tools(llm):
    return [QueryEngineTool.from_defaults(engine(llm), name="qe", description="d")]


@row("FunctionAgent with a query engine", function=True)
async def _(llm):
    inner = ProbeLLM()
    await FunctionAgent(tools=tools(inner), llm=llm, system_prompt="s").run(
        QUESTION, memory=memory()
    )
    return truth(), llm.calls[1:] + inner.calls


@row("FunctionAgent without streaming", function=True)
async def _(llm):
    inner = ProbeLLM()
    await FunctionAgent(tools=tools(inner), llm=llm, streaming=False).run(QUESTION, memory=memory())
    return truth(), llm.calls[1:] + inner.calls


@row("FunctionAgent with a retriever", function=True)
async def _(llm):
    retriever = INDEX.as_retriever(similarity_top_k=2)
    tool = RetrieverTool.from_defaults(retriever, name="qe", description="d")
    await FunctionAgent(tools=[tool], llm=llm).run(QUESTION, memory=memory())
    return truth(question=f"input is {QUESTION}"), llm.calls[1:]


@row("AgentWorkflow of a FunctionAgent", function=True)
async def _(llm):
    inner = ProbeLLM()
    agent = FunctionAgent(name="A", description="d", tools=tools(inner), llm=llm)
    await AgentWorkflow(agents=[agent]).run(user_msg=QUESTION, memory=memory())
    return truth(), llm.calls[1:] + inner.calls


@row("ReActAgent with a query engine")
async def _(llm):
    await ReActAgent(tools=tools(llm), llm=llm).run(QUESTION, memory=memory())
    return truth(), llm.calls[2:]


class Retrieved(Event):
    nodes: list[Any]


def written(nodes, end=""):
    return "Context:\n" + "\n".join(node.node.get_content() for node in nodes) + end


class RetrieveThenAnswer(Workflow):
    def __init__(self, llm, mode, **options):
        super().__init__(**options)
        self.llm, self.mode = llm, mode

    @step
    async def retrieve(self, ctx: Context, ev: StartEvent) -> Retrieved:
        await ctx.store.set("question", ev.question)
        retriever = INDEX.as_retriever(similarity_top_k=2)
        return Retrieved(nodes=await retriever.aretrieve(ev.question))

    @step
    async def answer(self, ctx: Context, ev: Retrieved) -> StopEvent:
        question = await ctx.store.get("question")
        streaming, response = self.mode == "stream", None
        if self.mode in ("synthesize", "stream"):
            synthesizer = get_response_synthesizer(llm=self.llm, streaming=streaming)
            response = await synthesizer.asynthesize(question, nodes=ev.nodes)
        else:
            nodes = ev.nodes if self.mode == "bare" else []
            await self.llm.acomplete(written(nodes, question))
        return StopEvent(result=(ids(ev.nodes), response))


def add_workflow(mode, described):
    @row(f"Workflow: retrieve step, then {described}")
    async def _(llm):
        found, response = await RetrieveThenAnswer(llm, mode).run(question=QUESTION)
        if response is not None and mode == "stream":
            await adrain(response)
        return found, llm.calls


add_workflow("synthesize", "synthesizer step")
add_workflow("bare", "bare complete step")
add_workflow("no context", "complete step without the nodes in its prompt")
add_workflow("stream", "stream read by the caller")


class SyncSteps(Workflow):
    def __init__(self, llm, **options):
        super().__init__(**options)
        self.llm = llm

    @step
    def retrieve(self, ev: StartEvent) -> Retrieved:
        return Retrieved(nodes=INDEX.as_retriever(similarity_top_k=2).retrieve(ev.question))

    @step
    def answer(self, ev: Retrieved) -> StopEvent:
        self.llm.complete(written(ev.nodes))
        return StopEvent(result=ids(ev.nodes))


@row("Workflow with synchronous steps in executor threads")
async def _(llm):
    return await SyncSteps(llm).run(question=QUESTION), llm.calls


def retrieve(index=INDEX, question=QUESTION):
    return index.as_retriever(similarity_top_k=2).retrieve(question)


async def gathered():
    first, second = await asyncio.gather(
        INDEX.as_retriever(similarity_top_k=2).aretrieve(QUESTION),
        FAISS.as_retriever(similarity_top_k=2).aretrieve("theta topic seven"),
    )
    return first + second


@row("bare: retrieve, complete")
def _(llm):
    nodes = retrieve()
    llm.complete(written(nodes))
    return ids(nodes), llm.calls


@row("bare: retrieve, stream_complete")
def _(llm):
    nodes = retrieve()
    list(llm.stream_complete(written(nodes)))
    return ids(nodes), llm.calls


@row("bare: retrieve once, complete twice")
def _(llm):
    nodes = retrieve()
    llm.complete(written(nodes, "1"))
    llm.complete(written(nodes, "2"))
    return ids(nodes), llm.calls


@row("bare async: aretrieve, achat")
async def _(llm):
    nodes = await INDEX.as_retriever(similarity_top_k=2).aretrieve(QUESTION)
    await llm.achat([ChatMessage(content=written(nodes))])
    return ids(nodes), llm.calls


@row("bare async: gathered retrievers, acomplete", short=1)
async def _(llm):
    nodes = await gathered()
    await llm.acomplete(written(nodes))
    return ids(nodes), llm.calls


@row("bare: retrieve in a pool, complete here", short=1)
def _(llm):
    with ThreadPoolExecutor(1) as pool:
        nodes = pool.submit(retrieve).result()
    llm.complete(written(nodes))
    return ids(nodes), llm.calls


@row("bare async: retrieve in a thread, acomplete", short=1)
async def _(llm):
    nodes = await asyncio.to_thread(retrieve)
    await llm.acomplete(written(nodes))
    return ids(nodes), llm.calls


@row("bare: vector store without a retriever", short=1)
def _(llm):
    nodes = list(INDEX.docstore.docs.values())[:2]
    llm.complete("Context:\n" + "\n".join(node.get_content() for node in nodes))
    return {node.node_id for node in nodes}, llm.calls


@row("bare async: gathered retrievers, process scope", process_scope=True)
async def _(llm):
    process_scope.enabled = True
    try:
        nodes = await gathered()
        await llm.acomplete(written(nodes))
    finally:
        process_scope.enabled = False
    return ids(nodes), llm.calls


@row("bare async: gathered retrievers, explicit references")
async def _(llm):
    nodes = await gathered()
    with references(nodes):
        await llm.acomplete("anything")
    return ids(nodes), last(llm)
