"""Many tenants at once, each with a canary document: nothing of one reaches another.

`LLMA_RAG_SOAK` sets the number of requests; 10,000 take some minutes.
"""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough

from integrations.langchain.tests.probes import joined
from langchain_llma import ChatLLMA
from llma_rag import Decoder
from llma_rag.drafting import Draft, ReferenceDrafter

REQUESTS = int(os.environ.get("LLMA_RAG_SOAK", "120"))
TENANTS = 20
NOUNS = ("river", "garden", "bridge", "castle", "harbour")
VERBS = ("opened", "closed", "burned", "moved")
PROMPT = ChatPromptTemplate.from_template(
    "Answer the question based only on the following context:\n{context}\n\nQuestion: {question}\n"
)


class Watched(ReferenceDrafter):
    """A drafter that looks for each token it drafts where it says that it comes from."""

    drafters, tokens = 0, 0
    strange: ClassVar[list[object]] = []
    decode: ClassVar[Callable[[Sequence[int]], str]]

    def __init__(
        self, references: Sequence[Sequence[int]], prompt: Sequence[int], **options: Any
    ) -> None:
        super().__init__(references, prompt, **options)
        self._texts = [*references, prompt]
        owners = [tuple(sorted(_tenants(type(self).decode(text)))) for text in self._texts]
        Watched.drafters += 1
        if len(owners) != 2 or len(owners[0]) != 1 or owners[0] != owners[1]:
            self.strange.append(owners)

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        draft = super().draft(context, budget)
        Watched.tokens += len(draft)
        texts = [*self._texts, context[len(self._texts[-1]) :]]
        for token, place in zip(draft.tokens, draft.places, strict=True):
            known = place is not None and place.segment < len(texts)
            if not known or texts[place.segment][place.offset] != token:
                self.strange.append((type(self).decode(context), token, place))
        return draft


def _tenants(text: str) -> set[str]:
    return set(re.findall(r"T\d+", text))


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
def decoder() -> Decoder:
    model = Path(__file__).parents[3] / "llma_rag" / "demo" / "model"
    return Decoder.from_pretrained(model, dtype="float32")


@pytest.fixture
def watched(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    """Let every request draft by a watched drafter; nothing was seen yet."""
    monkeypatch.setattr("llma_rag.drafters.ReferenceDrafter", Watched)
    monkeypatch.setattr(Watched, "decode", decoder.tokenizer.decode, raising=False)
    monkeypatch.setattr(Watched, "strange", [])
    monkeypatch.setattr(Watched, "drafters", 0)
    monkeypatch.setattr(Watched, "tokens", 0)
    return Watched


def _chain(decoder: Decoder, **fields: Any) -> Runnable[Any, Any]:
    inputs = {"context": Tenants() | joined, "question": RunnablePassthrough()}
    return inputs | PROMPT | ChatLLMA.from_decoder(decoder, max_tokens=24, temperature=0, **fields)


@pytest.mark.slow
async def test_tenants_never_meet(decoder: Decoder, watched: type[Watched]) -> None:
    questions = [_question(number) for number in range(TENANTS)]
    alone = {question: _chain(decoder, draft=False).invoke(question) for question in questions}
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
    assert watched.drafters == REQUESTS
    assert watched.tokens == sum(
        answer.response_metadata["llma"]["drafted_tokens"] for answer in answers
    )
    assert not watched.strange
    for question, answer in zip(asked, answers, strict=True):
        assert answer.content == alone[question].content
        for citation in answer.response_metadata.get("citations", ()):
            assert citation["extras"]["document_id"] == question.split()[-1].rstrip("?")
    cited = sum("citations" in answer.response_metadata for answer in answers)
    assert cited > REQUESTS / 2, "the model copied too little for this test to mean anything"
