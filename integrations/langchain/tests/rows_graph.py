"""Rows of the matrix: LangGraph and LangChain's agents."""

import dataclasses
import json
import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from pydantic import BaseModel

from integrations.langchain.tests.matrix import Bench, Expected, Rows, drained, filled, run
from integrations.langchain.tests.probes import QUESTION, UserRetriever, joined, of

ROWS = Rows("langgraph")
AGENTS = ("langchain",)


class State(TypedDict):
    q: str
    docs: list[Any]
    a: str


class PydanticState(BaseModel):
    q: str
    docs: list[Any] = []
    a: str = ""


@dataclasses.dataclass
class DataclassState:
    q: str
    docs: list[Any] = dataclasses.field(default_factory=list)
    a: str = ""


class FanOut(TypedDict):
    qs: list[str]
    out: Annotated[list[Any], operator.add]


def _graph(
    llm: Any,
    search: Callable[[str], Any],
    state: type = State,
    get: Callable[[Any, str], Any] = operator.getitem,
) -> Any:
    from langgraph.graph import END, START, StateGraph

    graph = StateGraph(state)
    graph.add_node("retrieve", lambda s: {"docs": search(get(s, "q"))})
    graph.add_node(
        "generate", lambda s: {"a": llm.invoke(filled(get(s, "docs"), get(s, "q"))).content}
    )
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "generate")
    graph.add_edge("generate", END)
    return graph.compile()


def _async_graph(llm: Any) -> Any:
    from langgraph.graph import START, StateGraph

    async def retrieve(state: State) -> Any:
        return {"docs": await UserRetriever().ainvoke(state["q"])}

    async def generate(state: State) -> Any:
        return {"a": (await llm.ainvoke(filled(state["docs"], state["q"]))).content}

    graph = StateGraph(State)
    graph.add_node("retrieve", retrieve)
    graph.add_node("generate", generate)
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "generate")
    return graph.compile()


@ROWS.add("LangGraph: invoke")
def graph_invoke(bench: Bench) -> Expected:
    _graph(bench.chat(), UserRetriever().invoke).invoke({"q": "u1"})
    return of("u1")


@ROWS.add("LangGraph: ainvoke")
def graph_ainvoke(bench: Bench) -> Expected:
    run(_async_graph(bench.chat()).ainvoke({"q": "u1"}))
    return of("u1")


@ROWS.add("LangGraph: batch")
def graph_batch(bench: Bench) -> Expected:
    users = ["u1", "u2", "u3"]
    _graph(bench.chat(), UserRetriever().invoke).batch([{"q": user} for user in users])
    return of(*users)


@ROWS.add("LangGraph: stream_mode=messages")
def graph_messages(bench: Bench) -> Expected:
    graph = _graph(bench.chat(streams=True), UserRetriever().invoke)
    list(graph.stream({"q": "u1"}, stream_mode="messages"))
    return of("u1")


@ROWS.add("LangGraph: stream_events v3")
def graph_v3(bench: Bench) -> Expected:
    graph = _graph(bench.chat(streams=True), UserRetriever().invoke)
    list(graph.stream_events({"q": "u1"}, version="v3"))
    return of("u1")


@ROWS.add("LangGraph: astream_events v2")
def graph_events(bench: Bench) -> Expected:
    graph = _graph(bench.chat(streams=True), UserRetriever().invoke)
    run(drained(graph.astream_events({"q": "u1"}, version="v2")))
    return of("u1")


@ROWS.add("LangGraph: astream messages, async nodes")
def graph_amessages(bench: Bench) -> Expected:
    graph = _async_graph(bench.chat(streams=True))
    run(drained(graph.astream({"q": "u1"}, stream_mode="messages")))
    return of("u1")


def _search(bench: Bench) -> Callable[[str], Any]:
    return lambda question: bench.store.similarity_search(question, k=2)


@ROWS.add("LangGraph: a node calls similarity_search, TypedDict state")
def graph_search(bench: Bench) -> Expected:
    _graph(bench.chat(), _search(bench)).invoke({"q": QUESTION})
    return [bench.found(QUESTION)]


@ROWS.add("LangGraph: a node calls similarity_search, pydantic state")
def graph_pydantic(bench: Bench) -> Expected:
    _graph(bench.chat(), _search(bench), PydanticState, getattr).invoke({"q": QUESTION})
    return [bench.found(QUESTION)]


@ROWS.add("LangGraph: a node calls similarity_search, dataclass state")
def graph_dataclass(bench: Bench) -> Expected:
    _graph(bench.chat(), _search(bench), DataclassState, getattr).invoke({"q": QUESTION})
    return [bench.found(QUESTION)]


@ROWS.add("LangGraph: a subgraph retrieves, the parent answers")
def graph_subgraph(bench: Bench) -> Expected:
    from langgraph.graph import START, StateGraph

    inner = StateGraph(State)
    inner.add_node("r", lambda s: {"docs": UserRetriever().invoke(s["q"])})
    inner.add_edge(START, "r")
    llm = bench.chat()
    outer = StateGraph(State)
    outer.add_node("sub", inner.compile())
    outer.add_node("gen", lambda s: {"a": llm.invoke(filled(s["docs"], s["q"])).content})
    outer.add_edge(START, "sub")
    outer.add_edge("sub", "gen")
    outer.compile().invoke({"q": "u1"})
    return of("u1")


@ROWS.add("LangGraph: interrupted between retrieval and answer, resumed (new root)")
def graph_resumed(bench: Bench) -> Expected:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import START, StateGraph
    from langgraph.types import Command, interrupt

    def ask(state: State) -> Any:
        interrupt("ok?")
        return {}

    llm = bench.chat()
    graph = StateGraph(State)
    graph.add_node("r", lambda s: {"docs": UserRetriever().invoke(s["q"])})
    graph.add_node("ask", ask)
    graph.add_node("gen", lambda s: {"a": llm.invoke(filled(s["docs"], s["q"])).content})
    graph.add_edge(START, "r")
    graph.add_edge("r", "ask")
    graph.add_edge("ask", "gen")
    app = graph.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    app.invoke({"q": "u1"}, thread)
    app.invoke(Command(resume="y"), thread)
    return of("u1")


@ROWS.add("LangGraph: Send fan-out, one root for three users")
def graph_send(bench: Bench) -> Expected:
    from langgraph.graph import START, StateGraph
    from langgraph.types import Send

    llm = bench.chat()

    def work(state: Any) -> Any:
        return {"out": [llm.invoke(filled(UserRetriever().invoke(state["q"]), state["q"])).content]}

    graph = StateGraph(FanOut)
    graph.add_node("work", work)
    graph.add_conditional_edges(
        START, lambda s: [Send("work", {"q": user}) for user in s["qs"]], ["work"]
    )
    graph.compile().invoke({"qs": ["u1", "u2", "u3"], "out": []})
    return of("u1", "u2", "u3")


@ROWS.add("LangGraph: functional API")
def graph_functional(bench: Bench) -> Expected:
    from langgraph.func import entrypoint, task

    llm = bench.chat()

    @task
    def retrieve(question: str) -> Any:
        return UserRetriever().invoke(question)

    @task
    def answer(question: str, documents: Any) -> Any:
        return llm.invoke(filled(documents, question)).content

    @entrypoint()
    def flow(question: str) -> Any:
        return answer(question, retrieve(question).result()).result()

    flow.invoke("u1")
    return of("u1")


def _calls_search(query: str) -> Callable[[str], str]:
    call = json.dumps({"name": "search", "arguments": {"query": query}})
    call = f"<tool_call>{call}</tool_call>"
    return lambda prompt: "final answer" if "<tool>" in prompt else call


def _agent(bench: Bench, tools: list[Any], query: str, *, streams: bool = False, **kw: Any) -> Any:
    from langchain.agents import create_agent

    return create_agent(bench.chat(_calls_search(query), streams=streams), tools, **kw)


def _retriever_tool(returns: str) -> Any:
    from langchain_core.tools import create_retriever_tool

    return create_retriever_tool(UserRetriever(), "search", "s", response_format=returns)


def _add_agent_rows(returns: str) -> None:
    @ROWS.add(f"create_agent with create_retriever_tool({returns})", *AGENTS)
    def agent(bench: Bench) -> Expected:
        made = _agent(bench, [_retriever_tool(returns)], "u1")
        made.invoke({"messages": [("human", "hi")]})
        return [frozenset(), *of("u1")]

    @ROWS.add(f"create_agent with create_retriever_tool({returns}), astream messages", *AGENTS)
    def agent_async(bench: Bench) -> Expected:
        made = _agent(bench, [_retriever_tool(returns)], "u1", streams=True)
        run(drained(made.astream({"messages": [("human", "hi")]}, stream_mode="messages")))
        return [frozenset(), *of("u1")]


_add_agent_rows("content")
_add_agent_rows("content_and_artifact")


@ROWS.add("create_agent with a tool that searches and returns text", *AGENTS, hook=True)
def agent_text_tool(bench: Bench) -> Expected:
    from langchain_core.tools import tool

    @tool
    def search(query: str) -> str:
        """Search."""
        return joined(bench.store.similarity_search(QUESTION, k=2))

    _agent(bench, [search], QUESTION).invoke({"messages": [("human", "hi")]})
    return [frozenset(), bench.found(QUESTION)]


@ROWS.add("create_agent with a tool that returns content and artifact", *AGENTS)
def agent_artifact_tool(bench: Bench) -> Expected:
    from langchain_core.tools import tool

    @tool(response_format="content_and_artifact")
    def search(query: str) -> Any:
        """Search."""
        found = bench.store.similarity_search(QUESTION, k=2)
        return joined(found), found

    _agent(bench, [search], QUESTION).invoke({"messages": [("human", "hi")]})
    return [frozenset(), bench.found(QUESTION)]


def _two_turns(bench: Bench, returns: str) -> Expected:
    from langgraph.checkpoint.memory import InMemorySaver

    made = _agent(bench, [_retriever_tool(returns)], "u1", checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    made.invoke({"messages": [("human", "hi")]}, thread)
    made.invoke({"messages": [("human", "more")]}, thread)
    return [frozenset(), *of("u1", "u1")]


@ROWS.add("create_agent, second turn, artifact kept in the thread", *AGENTS)
def agent_second_turn(bench: Bench) -> Expected:
    return _two_turns(bench, "content_and_artifact")


@ROWS.add("create_agent, second turn, content only", *AGENTS, never=True)
def agent_second_turn_content(bench: Bench) -> Expected:
    return _two_turns(bench, "content")


def _with_middleware(bench: Bench, context: Callable[[], str]) -> None:
    from langchain.agents import create_agent
    from langchain.agents.middleware import dynamic_prompt

    @dynamic_prompt
    def prompt(request: Any) -> str:
        return "Context:\n" + context()

    agent = create_agent(bench.chat(), [], middleware=[prompt])
    agent.invoke({"messages": [("human", QUESTION)]})


@ROWS.add("create_agent, dynamic_prompt middleware that searches", *AGENTS, hook=True)
def agent_middleware_search(bench: Bench) -> Expected:
    _with_middleware(bench, lambda: joined(bench.store.similarity_search(QUESTION, k=2)))
    return [bench.found(QUESTION)]


@ROWS.add("create_agent, dynamic_prompt middleware with a retriever", *AGENTS)
def agent_middleware_retriever(bench: Bench) -> Expected:
    _with_middleware(bench, lambda: joined(UserRetriever().invoke("u1")))
    return of("u1")
