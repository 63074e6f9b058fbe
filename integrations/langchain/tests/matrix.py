"""The capture matrix: ways in which chains retrieve, and the documents each model call should get.

Run as a script it prints one line per row:
`python -m integrations.langchain.tests.matrix [--with-store-hook] [--json]`.
"""

import asyncio
import importlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from integrations.langchain.tests.probes import (
    ProbeDecoder,
    Request,
    UserRetriever,
    chat,
    joined,
    new_store,
    text_model,
)
from langchain_llma import LLMA, ChatLLMA, instrument_vectorstores

CHAT_PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from context:\n{context}"), ("human", "{question}")]
)
TEXT_PROMPT = PromptTemplate.from_template("Context:\n{context}\nQ: {question}\nA:")
MODULES = ("rows_lcel", "rows_plain", "rows_classic", "rows_graph")

Expected = list[frozenset[str]]
"""The documents of each model call, in any order."""


class Bench:
    """Makes probe models for one row and keeps everything they were asked."""

    def __init__(self) -> None:
        self.decoders: list[ProbeDecoder] = []
        self.store = new_store()

    @property
    def requests(self) -> list[Request]:
        return [request for decoder in self.decoders for request in decoder.requests]

    def chat(
        self, script: Callable[[str], str] | str = "the answer is ok", *, streams: bool = False
    ) -> ChatLLMA:
        return chat(self._decoder(script), streams=streams)

    def llm(
        self, script: Callable[[str], str] | str = "the answer is ok", *, streams: bool = False
    ) -> LLMA:
        return text_model(self._decoder(script), streams=streams)

    def found(self, question: str, k: int = 2) -> frozenset[str]:
        """Names of what the store finds."""
        return frozenset(
            document.metadata["m"] for document in self.store.similarity_search(question, k=k)
        )

    def _decoder(self, script: Callable[[str], str] | str) -> ProbeDecoder:
        self.decoders.append(ProbeDecoder(script))
        return self.decoders[-1]


@dataclass(frozen=True)
class Row:
    """One way to retrieve and ask.

    Attributes:
        name: What is done.
        body: Does it and returns what each model call should have got.
        needs: Packages that must be installed.
        hook: The documents are noticed only with `instrument_vectorstores()`.
        never: Nothing notices the documents of some call; the prompt itself remains.
    """

    name: str
    body: Callable[[Bench], Expected]
    needs: tuple[str, ...] = ()
    hook: bool = False
    never: bool = False

    @property
    def missing(self) -> list[str]:
        return [package for package in self.needs if find_spec(package) is None]


@dataclass(frozen=True)
class Outcome:
    """What a row gave."""

    name: str
    right: bool
    got: list[list[str]]
    expected: list[list[str]]
    error: str | None = None


class Rows(list[Row]):
    """A list of rows with a decorator that adds to it."""

    def __init__(self, *needs: str) -> None:
        super().__init__()
        self.needs = needs

    def add(
        self, name: str, *needs: str, hook: bool = False, never: bool = False
    ) -> Callable[[Callable[[Bench], Expected]], Callable[[Bench], Expected]]:
        def decorate(body: Callable[[Bench], Expected]) -> Callable[[Bench], Expected]:
            self.append(Row(name, body, (*self.needs, *needs), hook, never))
            return body

        return decorate


def rag(llm: Any, retriever: Any = None) -> Runnable[Any, Any]:
    """Return the chain of every tutorial."""
    prompt = CHAT_PROMPT if isinstance(llm, ChatLLMA) else TEXT_PROMPT
    context = (retriever or UserRetriever()) | joined
    inputs = {"context": context, "question": RunnablePassthrough()}
    return inputs | prompt | llm | StrOutputParser()


def filled(documents: Sequence[Any], question: str = "q") -> Any:
    """Return the chat prompt over documents."""
    return CHAT_PROMPT.invoke({"context": joined(documents), "question": question})


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end in a loop of its own."""
    return asyncio.run(coroutine)


async def drained(items: Any) -> list[Any]:
    """Return everything that an asynchronous iterator gives."""
    return [item async for item in items]


def all_rows() -> list[Row]:
    """Return every row of the matrix."""
    package = __name__ if __name__ != "__main__" else "integrations.langchain.tests.matrix"
    folder = package.rpartition(".")[0]
    return [row for name in MODULES for row in importlib.import_module(f"{folder}.{name}").ROWS]


def judge(row: Row) -> Outcome:
    """Run a row in a fresh context and compare what reached the decoder, call by call."""
    bench = Bench()
    try:
        expected = copy_context().run(row.body, bench)
    except Exception as error:
        return Outcome(row.name, False, [], [], f"{type(error).__name__}: {error}")
    got = [request.marks for request in bench.requests]
    return Outcome(
        row.name,
        Counter(got) == Counter(expected) and not strangers(bench.requests),
        sorted(map(sorted, got)),
        sorted(map(sorted, expected)),
    )


def strangers(requests: Sequence[Request]) -> list[str]:
    """Return documents of users who are not named in the prompt that they came with."""
    return [
        mark
        for request in requests
        for mark in request.marks
        if "#" in mark and mark.partition("#")[0] not in request.prompt
    ]


def main() -> None:
    warnings.simplefilter("ignore")
    if "--with-store-hook" in sys.argv:
        instrument_vectorstores()
    outcomes = [judge(row) for row in all_rows() if not row.missing]
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps([asdict(outcome) for outcome in outcomes]) + "\n")
        return
    for outcome in outcomes:
        line = "right" if outcome.right else f"wrong {outcome.error or outcome.got}"
        sys.stdout.write(f"{outcome.name:80s} {line}\n")
    right = sum(outcome.right for outcome in outcomes)
    sys.stdout.write(f"{right} of {len(outcomes)} rows right\n")


if __name__ == "__main__":
    main()
