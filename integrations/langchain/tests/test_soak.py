"""Many tenants at once, each with a canary document: nothing of one reaches another.

`LLMA_RAG_SOAK` sets the number of requests; 10,000 take some minutes.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough

from integrations.langchain.tests.probes import joined
from langchain_llma import ChatLLMA
from llma_rag import Decoder, Reference

REQUESTS = int(os.environ.get("LLMA_RAG_SOAK", "120"))
TENANTS = 20
NOUNS = ("river", "garden", "bridge", "castle", "harbour")
VERBS = ("opened", "closed", "burned", "moved")
PROMPT = ChatPromptTemplate.from_template(
    "Answer the question based only on the following context:\n{context}\n\nQuestion: {question}\n"
)


class Watched(Decoder):
    """A decoder that keeps the references of each prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[str, Sequence[Reference]]] = []

    def submit(self, prompt: Any, *, references: Any = (), **options: Any) -> Any:
        self.seen.append((self.tokenizer.decode(prompt), references))
        return super().submit(prompt, references=references, **options)


class Tenants(BaseRetriever):
    """Returns one canary document for a question that names its tenant."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [_canary(query)]


def _canary(question: str) -> Document:
    tenant = question.split()[-1].rstrip("?")
    number = int(tenant.removeprefix("T"))
    noun, verb = NOUNS[number % len(NOUNS)], VERBS[number % len(VERBS)]
    text = f"The {noun} of tenant {tenant} {verb} in the spring of {1800 + number}."
    return Document(text, id=tenant)


def _question(number: int) -> str:
    tenant = number % TENANTS
    return f"What happened to the {NOUNS[tenant % len(NOUNS)]} of tenant T{tenant}?"


@pytest.fixture(scope="module")
def decoder() -> Watched:
    model = Path(__file__).parents[3] / "llma_rag" / "demo" / "model"
    return Watched.from_pretrained(model, dtype="float32")  # type: ignore[return-value]


def _chain(decoder: Decoder, **fields: Any) -> Runnable[Any, Any]:
    inputs = {"context": Tenants() | joined, "question": RunnablePassthrough()}
    return inputs | PROMPT | ChatLLMA.from_decoder(decoder, max_tokens=24, temperature=0, **fields)


@pytest.mark.slow
async def test_tenants_never_meet(decoder: Watched) -> None:
    questions = [_question(number) for number in range(TENANTS)]
    alone = {question: _chain(decoder, draft=False).invoke(question) for question in questions}
    decoder.seen.clear()
    chain = _chain(decoder)
    asked = [_question(number) for number in range(REQUESTS)]
    loop, few = asyncio.get_running_loop(), asyncio.Semaphore(64)

    async def awaited(question: str) -> Any:
        async with few:
            return await chain.ainvoke(question)

    with ThreadPoolExecutor(32) as pool:
        answers = await asyncio.gather(
            *(
                loop.run_in_executor(pool, chain.invoke, question)
                if number % 2
                else awaited(question)
                for number, question in enumerate(asked)
            )
        )
    assert len(decoder.seen) == REQUESTS
    for prompt, references in decoder.seen:
        assert len(references) == 1
        assert references[0].text in prompt
    for question, answer in zip(asked, answers, strict=True):
        assert answer.content == alone[question].content
        for citation in answer.response_metadata.get("citations", ()):
            assert citation["extras"]["document_id"] == question.split()[-1].rstrip("?")
    cited = sum("citations" in answer.response_metadata for answer in answers)
    assert cited > REQUESTS / 2, "the model copied too little for this test to mean anything"
