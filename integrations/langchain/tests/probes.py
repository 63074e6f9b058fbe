"""A decoder without a model, and retrievers whose documents tell whose they are."""

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseLLM
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_llma import LLMA, ChatLLMA
from llma_rag import CopiedSpan, DecodingStats, GenerationChunk, GenerationResult, Reference
from llma_rag.result import FinishReason

TEXTS = (
    "the red fox lives in the forest near the river",
    "solar panels turn light into power for the house",
    "the contract ends after thirty days of written notice",
    "water boils at one hundred degrees at sea level",
    "python lists are mutable sequences of objects",
    "the treaty was signed in the year nineteen ninety",
)
QUESTION = "when does the contract end after notice"


@dataclass(frozen=True)
class Request:
    """What reached the decoder."""

    prompt: str
    references: tuple[Reference, ...]
    options: dict[str, Any]
    entry: str

    @property
    def marks(self) -> frozenset[str]:
        """Names of the documents that reached the decoder."""
        return frozenset(reference.metadata.get("m", "?") for reference in self.references)


class ProbeTokenizer:
    """A token for four characters, but one for each in a chat, so that prompts can be read back."""

    chat_template = "a template that knows tools"

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text) // 4))}

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tools: Any = None, **options: Any
    ) -> dict[str, list[int]]:
        self.last = (conversation, tools, options)
        lines = [f"<{entry['role']}>{entry['content']}" for entry in conversation]
        return {"input_ids": [ord(character) for character in "\n".join(lines)]}


def copied_spans(answer: str, prompt: str, references: Sequence[Reference]) -> tuple[Any, ...]:
    """Where whole references stand in an answer."""
    spans = []
    for index, reference in enumerate(references):
        start = answer.find(reference.text)
        if start >= 0 and reference.text:
            end = start + len(reference.text)
            spans.append(
                CopiedSpan(
                    start,
                    end,
                    reference.id,
                    index,
                    0,
                    len(reference.text),
                    reference.text in prompt,
                )
            )
    return tuple(spans)


class ProbeStream:
    """Gives an answer word by word, to `for` and to `async for`."""

    def __init__(self, result: GenerationResult) -> None:
        self.result = result
        self.closed = False
        self._pieces = iter(re.findall(r"\s*\S+|\s+", result.text))

    def __iter__(self) -> Iterator[GenerationChunk]:
        return self

    def __next__(self) -> GenerationChunk:
        return GenerationChunk(next(self._pieces), (1,))

    def __enter__(self) -> "ProbeStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def __aiter__(self) -> AsyncIterator[GenerationChunk]:
        return self  # type: ignore[return-value]

    async def __anext__(self) -> GenerationChunk:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> "ProbeStream":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.closed = True


class ProbeDecoder:
    """Answers by a script and writes down what it was asked."""

    def __init__(self, script: Callable[[str], str] | str = "the answer is ok") -> None:
        self.script = script
        self.requests: list[Request] = []
        self.streams: list[ProbeStream] = []
        self.tokenizer = ProbeTokenizer()
        self.model = SimpleNamespace(config=SimpleNamespace(name_or_path="probe"))
        self.context_length = 4096
        self.finish_reason: FinishReason = "stop"
        self._lock = threading.Lock()

    def generate(self, prompt: Any, **arguments: Any) -> GenerationResult:
        return self._answer("generate", prompt, **arguments)

    async def agenerate(self, prompt: Any, **arguments: Any) -> GenerationResult:
        return self._answer("agenerate", prompt, **arguments)

    def submit(self, prompt: Any, **arguments: Any) -> Future[GenerationResult]:
        future: Future[GenerationResult] = Future()
        future.set_result(self._answer("submit", prompt, **arguments))
        return future

    def stream(self, prompt: Any, **arguments: Any) -> ProbeStream:
        return self._stream("stream", prompt, **arguments)

    def astream(self, prompt: Any, **arguments: Any) -> ProbeStream:
        return self._stream("astream", prompt, **arguments)

    def _stream(self, entry: str, prompt: Any, **arguments: Any) -> ProbeStream:
        self.streams.append(ProbeStream(self._answer(entry, prompt, **arguments)))
        return self.streams[-1]

    def _answer(
        self, entry: str, prompt: Any, *, references: Sequence[Reference], **options: Any
    ) -> GenerationResult:
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        with self._lock:
            self.requests.append(Request(text, tuple(references), options, entry))
        answer = self.script if isinstance(self.script, str) else self.script(text)
        return GenerationResult(
            text=answer,
            token_ids=tuple(range(len(answer.split()))),
            finish_reason=self.finish_reason,
            copied_spans=copied_spans(answer, text, references),
            stats=DecodingStats(
                prompt_tokens=len(prompt),
                generated_tokens=len(answer.split()),
                forward_passes=2,
                drafted_tokens=3,
                accepted_tokens=2,
                references_used=len(references),
                total_time=0.5,
            ),
        )


class InvokeOnlyLLM(LLMA):
    """A text model that does not stream."""

    _stream = BaseLLM._stream
    _astream = BaseLLM._astream


def chat(decoder: ProbeDecoder, *, streams: bool = True, **fields: Any) -> ChatLLMA:
    """Make a chat model over a probe, with or without streaming of its own."""
    return ChatLLMA.from_decoder(decoder, disable_streaming=not streams, **fields)


def text_model(decoder: ProbeDecoder, *, streams: bool = True, **fields: Any) -> LLMA:
    """Make a text model over a probe, with or without streaming of its own."""
    return (LLMA if streams else InvokeOnlyLLM).from_decoder(decoder, **fields)


class UserRetriever(BaseRetriever):
    """Returns two documents that name the query, so that a leak is visible."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [
            Document(
                page_content=f"secret text number {index} about <{query}> and nothing else at all",
                metadata={"m": f"{query}#{index}", "source": f"{query}.txt"},
            )
            for index in range(2)
        ]


class HashedWords(Embeddings):
    """Bags of words, hashed into 64 places."""

    def embed_query(self, text: str) -> list[float]:
        counts = [0.0] * 64
        for word in re.findall(r"\w+", text.lower()):
            counts[hashlib.sha256(word.encode()).digest()[0] % 64] += 1
        length = sum(count * count for count in counts) ** 0.5 or 1
        return [count / length for count in counts]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def new_store() -> InMemoryVectorStore:
    """Return a store over `TEXTS`."""
    store = InMemoryVectorStore(HashedWords())
    store.add_documents(
        [
            Document(page_content=text, metadata={"m": f"D{index}"}, id=f"id{index}")
            for index, text in enumerate(TEXTS)
        ]
    )
    return store


def joined(documents: Sequence[Document]) -> str:
    """Format documents as most tutorials do."""
    return "\n\n".join(document.page_content for document in documents)


def of(*users: str) -> list[frozenset[str]]:
    """Return the documents of each user's call."""
    return [frozenset({f"{user}#0", f"{user}#1"}) for user in users]


async def ticks(interval: float = 0.02) -> int:
    """Count ticks that come before the next one is due, until cancelled."""
    loop, count = asyncio.get_running_loop(), 0
    due = loop.time()
    try:
        while True:
            due += interval
            await asyncio.sleep(max(0.0, due - loop.time()))
            count += loop.time() < due + interval
    except asyncio.CancelledError:
        return count
