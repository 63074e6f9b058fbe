"""Rows of the matrix: functions, scripts, tracing, and vector stores that are called directly."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import MagicMock

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import (
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    chain,
)

from integrations.langchain.tests.matrix import (
    CHAT_PROMPT,
    Bench,
    Expected,
    Rows,
    filled,
    rag,
    run,
)
from integrations.langchain.tests.probes import QUESTION, UserRetriever, joined, of

ROWS = Rows()


def _local_tracing() -> Any:
    """Trace into the void: a client whose session answers nothing."""
    from langsmith import Client
    from langsmith.run_helpers import tracing_context

    client = Client(api_key="none", session=MagicMock(), auto_batch_tracing=False, info={})
    return tracing_context(enabled="local", client=client)


@ROWS.add("LangSmith @traceable between chain and model", "langsmith")
def traceable_inside(bench: Bench) -> Expected:
    from langsmith import traceable

    llm = bench.chat()

    @traceable
    def answer(documents: Any, question: str) -> Any:
        return llm.invoke(filled(documents, question))

    both = RunnableParallel(documents=UserRetriever(), question=RunnablePassthrough())
    whole = both | (lambda inputs: answer(inputs["documents"], inputs["question"]))
    with _local_tracing():
        whole.invoke("u1")
    return of("u1")


@ROWS.add("LangSmith @traceable outermost, chain streams inside", "langsmith")
def traceable_outside(bench: Bench) -> Expected:
    from langsmith import traceable

    inner = rag(bench.chat(streams=True))

    @traceable
    def application(question: str) -> Any:
        return list(inner.stream(question))

    with _local_tracing():
        application("u1")
    return of("u1")


@ROWS.add("chain.map() over users, one root run")
def mapped(bench: Bench) -> Expected:
    rag(bench.chat()).map().invoke(["u1", "u2", "u3"])
    return of("u1", "u2", "u3")


@ROWS.add("bind, with_retry, with_fallbacks, with_config")
def wrapped(bench: Bench) -> Expected:
    context = {"context": UserRetriever() | joined, "question": RunnablePassthrough()}
    llm = bench.chat().bind(stop=["x"]).with_retry().with_fallbacks([bench.chat()])
    whole = context | CHAT_PROMPT | llm | StrOutputParser()
    whole.with_config(tags=["a"]).invoke("u1", config={"callbacks": [], "metadata": {"z": 1}})
    return of("u1")


@ROWS.add("@chain function that passes no config on")
def function(bench: Bench) -> Expected:
    llm = bench.chat()

    @chain
    def answer(question: str) -> Any:
        return llm.invoke(filled(UserRetriever().invoke(question)))

    answer.invoke("u1")
    return of("u1")


@ROWS.add("@chain async function that passes no config on")
def async_function(bench: Bench) -> Expected:
    llm = bench.chat()

    @chain
    async def answer(question: str) -> Any:
        return await llm.ainvoke(filled(await UserRetriever().ainvoke(question)))

    run(answer.ainvoke("u1"))
    return of("u1")


@ROWS.add("@chain generator function, the model streams inside")
def generator(bench: Bench) -> Expected:
    llm = bench.chat(streams=True)

    @chain
    def answer(question: str) -> Iterator[Any]:
        for piece in llm.stream(filled(UserRetriever().invoke(question))):
            yield piece.content

    list(answer.stream("u1"))
    return of("u1")


@ROWS.add("script: retriever.invoke, then llm.invoke (two roots)")
def script(bench: Bench) -> Expected:
    bench.chat().invoke(filled(UserRetriever().invoke("u1")))
    return of("u1")


@ROWS.add("script, async (two roots)")
def async_script(bench: Bench) -> Expected:
    async def go() -> None:
        await bench.chat().ainvoke(filled(await UserRetriever().ainvoke("u1")))

    run(go())
    return of("u1")


@ROWS.add("script, async streaming (two roots)")
def async_stream_script(bench: Bench) -> Expected:
    async def go() -> None:
        prompt = filled(await UserRetriever().ainvoke("u1"))
        async for _ in bench.chat(streams=True).astream(prompt):
            pass

    run(go())
    return of("u1")


@ROWS.add("script, retriever in the user's own ThreadPoolExecutor", never=True)
def own_pool(bench: Bench) -> Expected:
    with ThreadPoolExecutor(1) as pool:
        documents = pool.submit(UserRetriever().invoke, "u1").result()
    bench.chat().invoke(filled(documents))
    return of("u1")


@ROWS.add("retrieval chain, then the model as a second root")
def chain_then_model(bench: Bench) -> Expected:
    documents = (RunnableLambda(lambda question: question) | UserRetriever()).invoke("u1")
    bench.chat().invoke(filled(documents))
    return of("u1")


def _asked(bench: Bench, context: Any) -> Expected:
    whole = {"context": context, "question": RunnablePassthrough()} | CHAT_PROMPT | bench.chat()
    expected = [bench.found(QUESTION)]
    whole.invoke(QUESTION)
    return expected


@ROWS.add("similarity_search in one lambda, formatting in the next")
def search_then_format(bench: Bench) -> Expected:
    search = RunnableLambda(lambda question: bench.store.similarity_search(question, k=2))
    return _asked(bench, search | joined)


@ROWS.add("similarity_search_with_score in a lambda that returns pairs")
def search_with_score(bench: Bench) -> Expected:
    search = RunnableLambda(
        lambda question: bench.store.similarity_search_with_score(question, k=2)
    )
    return _asked(bench, search | (lambda pairs: joined([document for document, _ in pairs])))


@ROWS.add("similarity_search and formatting in ONE lambda", hook=True)
def search_and_format(bench: Bench) -> Expected:
    return _asked(
        bench, RunnableLambda(lambda question: joined(bench.store.similarity_search(question, k=2)))
    )


@ROWS.add("script: similarity_search, then llm.invoke (no runnable)", hook=True)
def search_script(bench: Bench) -> Expected:
    bench.chat().invoke(filled(bench.store.similarity_search(QUESTION, k=2)))
    return [bench.found(QUESTION)]


@ROWS.add("documents put into the prompt template as they are")
def unformatted(bench: Bench) -> Expected:
    return _asked(
        bench, RunnableLambda(lambda question: bench.store.similarity_search(question, k=2))
    )
