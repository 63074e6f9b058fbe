"""Documents of one user never reach another's answer, and nothing is kept after a run."""

import asyncio
import gc
import operator
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from integrations.langchain.tests.probes import (
    ProbeDecoder,
    UserRetriever,
    chat,
    joined,
    text_model,
)
from langchain_llma import ChatLLMA
from langchain_llma.capture import HANDLER
from langchain_llma.run_tree import RunTree

USERS = [f"user{index}" for index in range(300)]
CHAT = ChatPromptTemplate.from_messages(
    [("system", "Answer:\n{context}"), ("human", "Q={question}.")]
)
TEXT = PromptTemplate.from_template("Answer:\n{context}\nQ={question}.")


def _chain(llm: Any, retriever: Any = None) -> Runnable[Any, Any]:
    prompt = CHAT if isinstance(llm, ChatLLMA) else TEXT
    context = (retriever or UserRetriever()) | joined
    return {"context": context, "question": RunnablePassthrough()} | prompt | llm


def _asker(prompt: str) -> str:
    return re.findall(r"Q=(\w+)\.", prompt)[0]


def _check(decoder: ProbeDecoder, expected: int, *, in_prompt_only: bool = False) -> None:
    """Every call got its own user's two documents and none of another's."""
    assert len(decoder.requests) == expected
    for request in decoder.requests:
        user = _asker(request.prompt)
        marks = {
            reference.metadata["m"]
            for reference in request.references
            if not in_prompt_only or reference.text in request.prompt
        }
        assert marks == {f"{user}#0", f"{user}#1"}


async def _all(ask: Callable[[str], Any]) -> None:
    await asyncio.gather(*(ask(user) for user in USERS))


async def test_ainvoke_of_300_users_in_one_loop(decoder: ProbeDecoder) -> None:
    await _all(_chain(chat(decoder, streams=False)).ainvoke)
    _check(decoder, 300)


async def test_astream_of_300_users_in_one_loop(decoder: ProbeDecoder) -> None:
    chain = _chain(chat(decoder))

    async def ask(user: str) -> None:
        async for _ in chain.astream(user):
            await asyncio.sleep(0)

    await _all(ask)
    _check(decoder, 300)


@pytest.mark.parametrize("streams", [False, True])
def test_sixteen_threads(decoder: ProbeDecoder, streams: bool) -> None:
    chain = _chain(chat(decoder, streams=streams))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda user: list(chain.stream(user)), USERS))
    _check(decoder, 300)


def test_batch(decoder: ProbeDecoder) -> None:
    _chain(chat(decoder)).batch(USERS)
    _check(decoder, 300)


def test_text_model_batch_in_one_generate(decoder: ProbeDecoder) -> None:
    _chain(text_model(decoder)).batch(USERS)
    _check(decoder, 300)


async def test_text_model_abatch_in_one_generate(decoder: ProbeDecoder) -> None:
    await _chain(text_model(decoder)).abatch(USERS)
    _check(decoder, 300)


def test_map_over_300_users_in_one_root(decoder: ProbeDecoder) -> None:
    """More documents than one run keeps."""
    _chain(chat(decoder)).map().invoke(USERS)
    _check(decoder, 300)


async def test_awaited_map_over_300_users_in_one_root(decoder: ProbeDecoder) -> None:
    """All have retrieved before the first one asks."""
    await _chain(chat(decoder, streams=False), SlowRetriever()).map().ainvoke(USERS)
    _check(decoder, 300)


def test_send_of_300_documents_in_one_root(decoder: ProbeDecoder) -> None:
    """LangGraph's map and reduce: each document is asked about alone."""
    pytest.importorskip("langgraph", reason="langgraph is an optional companion")
    from langgraph.graph import START, StateGraph
    from langgraph.types import Send

    llm = chat(decoder)

    def ask(state: Any) -> Any:
        prompt = CHAT.invoke({"context": joined(state["docs"]), "question": state["user"]})
        return {"answers": [llm.invoke(prompt).content]}

    def fan_out(state: Any) -> list[Send]:
        return [Send("ask", {"docs": UserRetriever().invoke(user), "user": user}) for user in USERS]

    graph = StateGraph(Answers)
    graph.add_node("ask", ask)
    graph.add_conditional_edges(START, fan_out, ["ask"])
    graph.compile().invoke({"answers": []})
    _check(decoder, 300)


def test_equal_texts_of_two_users_keep_their_names(decoder: ProbeDecoder) -> None:
    """In one root run; whose text it is shows in a citation and in what else holds the text."""

    class Terms(UserRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document("The terms of 2023 apply.", metadata={"m": query})]

    _chain(chat(decoder), Terms()).map().invoke(USERS[:5])
    for request in decoder.requests:
        assert request.marks == {_asker(request.prompt)}


def test_map_over_documents_of_100_users_in_one_root(decoder: ProbeDecoder) -> None:
    """The root's own input holds everybody's documents."""
    inputs = [{"docs": UserRetriever().invoke(user), "question": user} for user in USERS[:100]]
    formatted = RunnablePassthrough.assign(context=lambda given: joined(given["docs"]))
    (formatted | CHAT | chat(decoder)).map().invoke(inputs)
    _check(decoder, 100)


def test_loop_over_100_users_in_one_root(decoder: ProbeDecoder) -> None:
    chain = _chain(chat(decoder))
    RunnableLambda(lambda users: [chain.invoke(user) for user in users]).invoke(USERS[:100])
    _check(decoder, 100)


def test_siblings_in_one_run_share_references_but_not_prompts(decoder: ProbeDecoder) -> None:
    """The known limit: one function that retrieves and asks for 50 users in a loop."""
    llm = chat(decoder)

    def loop(users: list[str]) -> None:
        for user in users:
            documents = UserRetriever().invoke(user)
            llm.invoke(CHAT.invoke({"context": joined(documents), "question": user}))

    RunnableLambda(loop).invoke(USERS[:50])
    _check(decoder, 50, in_prompt_only=True)


def test_script_in_reused_threads(decoder: ProbeDecoder) -> None:
    """As in a server with a thread pool; every second request retrieves nothing."""
    llm = chat(decoder)

    def ask(user: str) -> None:
        documents = UserRetriever().invoke(user) if int(user[4:]) % 2 == 0 else []
        llm.invoke(CHAT.invoke({"context": joined(documents), "question": user}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, USERS))
    for request in decoder.requests:
        user = _asker(request.prompt)
        expected = {f"{user}#0", f"{user}#1"} if int(user[4:]) % 2 == 0 else set()
        assert request.marks == expected


async def test_async_script_after_a_warm_up_in_the_parent_context(decoder: ProbeDecoder) -> None:
    """A server's start-up context, which every request's task inherits, has retrieved before."""
    llm = chat(decoder)

    async def ask(user: str) -> None:
        documents = await UserRetriever().ainvoke(user)
        await asyncio.sleep(random.random() / 100)
        await llm.ainvoke(CHAT.invoke({"context": joined(documents), "question": user}))

    await ask("warmup")
    decoder.requests.clear()
    await asyncio.gather(*(asyncio.create_task(ask(user)) for user in USERS))
    _check(decoder, 300)


def test_conversations_of_100_users_in_one_root(decoder: ProbeDecoder) -> None:
    """Their messages carry documents; one user's has none, and that of the root has them all."""
    conversations = []
    for user in USERS[:100]:
        found = UserRetriever().invoke(user) if user != USERS[7] else None
        attached = ToolMessage("found", tool_call_id="1", artifact=found)
        conversations.append([HumanMessage("hi"), attached, HumanMessage(f"Q={user}.")])
    chat(decoder).map().invoke(conversations)
    for request in decoder.requests:
        user = _asker(request.prompt)
        assert request.marks == (frozenset() if user == USERS[7] else {f"{user}#0", f"{user}#1"})


class Answers(TypedDict):
    answers: Annotated[list[str], operator.add]


class SlowRetriever(UserRetriever):
    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        await asyncio.sleep(0.01)
        return self._get_relevant_documents(query, run_manager=run_manager)


class BrokenRetriever(UserRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        raise RuntimeError("the index is gone")


def test_no_run_is_left_after_errors(decoder: ProbeDecoder) -> None:
    chain = _chain(chat(decoder), BrokenRetriever())
    for _ in range(200):
        with pytest.raises(RuntimeError, match="the index is gone"):
            chain.invoke("u")
    assert len(HANDLER.tree) == 0


def test_no_run_is_left_after_streams_closed_early(decoder: ProbeDecoder) -> None:
    chain = _chain(chat(decoder))
    for _ in range(200):
        stream = chain.stream("u")
        next(stream)
        stream.close()
    assert len(HANDLER.tree) == 0
    assert all(stream.closed for stream in decoder.streams)


def test_abandoned_streams_are_forgotten_with_their_generators(decoder: ProbeDecoder) -> None:
    chain = _chain(chat(decoder))
    held = [chain.stream("u") for _ in range(200)]
    for stream in held:
        next(stream)
    assert len(HANDLER.tree) == 200
    held.clear()
    del stream
    gc.collect()
    assert len(HANDLER.tree) == 0


async def test_no_run_is_left_after_cancelled_tasks(decoder: ProbeDecoder) -> None:
    started = asyncio.Semaphore(0)

    async def never(prompt: Any, **arguments: Any) -> Any:
        started.release()
        await asyncio.Event().wait()

    decoder.agenerate = never  # type: ignore[method-assign]
    chain = _chain(chat(decoder, streams=False))
    tasks = [asyncio.create_task(chain.ainvoke(user)) for user in USERS[:100]]
    for _ in tasks:
        await started.acquire()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(HANDLER.tree) == 0


async def test_no_run_is_left_after_closed_async_streams(decoder: ProbeDecoder) -> None:
    chain = _chain(chat(decoder))
    streams = [chain.astream("u") for _ in range(100)]
    for stream in streams:
        await anext(stream)
    for stream in streams:
        await stream.aclose()
    del stream, streams
    for _ in range(100):  # the loop closes inner generators one level at a time
        gc.collect()
        if not len(HANDLER.tree):
            break
        await asyncio.sleep(0)
    assert len(HANDLER.tree) == 0


def test_the_number_of_live_runs_is_capped(
    decoder: ProbeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = RunTree(max_live_runs=50)
    monkeypatch.setattr(HANDLER, "tree", tree)
    chain = _chain(chat(decoder))
    held = [chain.stream(user) for user in USERS[:100]]
    for stream in held:
        next(stream)
    assert len(tree) <= 50
    assert tree.evicted > 0
    decoder.requests.clear()
    chain.invoke("z")
    _check(decoder, 1)
    for stream in held:
        stream.close()


def test_runs_hold_no_documents_after_they_end(decoder: ProbeDecoder) -> None:
    """Objects of documents are counted, for a leak would keep every one of them."""
    chain = _chain(chat(decoder))
    for user in USERS[:50]:
        chain.invoke(user)
    decoder.requests.clear()
    gc.collect()
    before = _alive()
    for user in USERS[:200]:
        chain.invoke(user)
    decoder.requests.clear()
    gc.collect()
    assert _alive() - before <= 2


def _alive() -> int:
    return sum(type(thing) is Document for thing in gc.get_objects())
