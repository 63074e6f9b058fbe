"""What is retrieved in one statement and asked about in another, and whom it must not reach."""

import asyncio
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from integrations.langchain.tests.matrix import filled, rag
from integrations.langchain.tests.probes import (
    ProbeDecoder,
    UserRetriever,
    chat,
    of,
    text_model,
)
from langchain_llma.capture import recent_documents


@pytest.mark.parametrize("model", [chat, text_model], ids=["chat", "text"])
@pytest.mark.parametrize("fields", [{}, {"capture": False}], ids=str)
def test_a_run_that_calls_a_model_leaves_no_documents(
    decoder: ProbeDecoder, model: Any, fields: Any
) -> None:
    """As in a thread that serves one user after another, who asks about the same sentence."""
    rag(model(decoder, **fields)).invoke("u1")
    model(decoder).invoke(decoder.requests[0].prompt)
    assert decoder.requests[1].marks == frozenset()
    recent = recent_documents.get()
    assert recent is not None
    assert recent.documents == ()


def test_a_failed_run_leaves_no_documents(decoder: ProbeDecoder) -> None:
    """It would be the next user who is cited what the first one never saw."""
    broken = UserRetriever() | RunnableLambda(lambda documents: documents[2])
    with pytest.raises(IndexError):
        broken.invoke("u1")
    recent = recent_documents.get()
    assert recent is not None
    assert recent.documents == ()


async def test_documents_stay_for_every_call_until_more_are_retrieved(
    decoder: ProbeDecoder,
) -> None:
    """However the calls overlap: what they ask with is marked, not taken away."""
    llm, first = chat(decoder), filled(UserRetriever().invoke("u1"))
    llm.invoke(first)
    llm.batch([first] * 3)
    (RunnableLambda(lambda prompt: prompt) | llm).batch([first] * 3)
    await asyncio.gather(*(llm.ainvoke(first) for _ in range(3)))
    assert [request.marks for request in decoder.requests] == of("u1") * 10
    decoder.requests.clear()
    second = filled(UserRetriever().invoke("u2"))
    for prompt in (second, first, second):
        llm.invoke(prompt)
    assert [request.marks for request in decoder.requests] == [*of("u2"), frozenset(), *of("u2")]


@pytest.mark.parametrize("ask", ["alone", "in a batch", "in a chain of a batch"])
def test_documents_of_several_retrievals_are_of_one_call(decoder: ProbeDecoder, ask: str) -> None:
    llm = chat(decoder)
    both = [*UserRetriever().invoke("u1"), *UserRetriever().invoke("u2")]
    whole = RunnableLambda(lambda prompt: prompt) | llm
    answer = {"alone": llm.invoke, "in a batch": lambda prompt: llm.batch([prompt])}
    answer.get(ask, lambda prompt: whole.batch([prompt] * 2))(filled(both))
    assert decoder.requests[0].marks == frozenset().union(*of("u1", "u2"))
    llm.invoke(filled([*both, *UserRetriever().invoke("u3")]))
    assert decoder.requests[-1].marks == of("u3")[0]


def test_a_prompt_without_the_space_around_a_document_shows_it(decoder: ProbeDecoder) -> None:
    class Spaced(UserRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document("\n the contract ends \n", metadata={"m": "x"}), Document(" \n")]

    Spaced().invoke("u1")
    chat(decoder).invoke("<the contract ends>")
    assert decoder.requests[0].marks == {"x"}
    assert len(decoder.requests[0].references) == 1
