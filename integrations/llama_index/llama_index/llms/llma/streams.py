"""Carry a request's captures to the moments at which its lazily evaluated answer is read.

Since llama-index-core 0.14 a streaming synthesizer calls the model at the reader's first `next()`,
after every span of the query is closed, and often in another thread or task.
"""

from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from typing import Any

from llama_index.llms.llma.answers import Answer
from llama_index.llms.llma.captured import Capture


class StreamScope:
    """What one streamed answer may copy from, and what the model answered while it was read."""

    __slots__ = ("answers", "captures")

    def __init__(self, captures: tuple[Capture, ...]) -> None:
        self.captures = captures
        self.answers: tuple[Answer, ...] = ()


active_stream: ContextVar[StreamScope | None] = ContextVar("llma_active_stream", default=None)

AtEnd = Callable[[str], None]
"""Called with the whole text once a stream was read to its end; must not raise."""


def in_scope(source: Generator[Any], scope: StreamScope, at_end: AtEnd) -> Generator[Any]:
    """Read `source` with `scope` active during each step only.

    The variable is reset before every `yield`: the next step may run in another thread.
    """
    text: list[str] = []
    try:
        while True:
            token = active_stream.set(scope)
            try:
                item = next(source)
            except StopIteration:
                break
            finally:
                active_stream.reset(token)
            text.append(_text_of(item))
            yield item
        at_end("".join(text))
    finally:
        source.close()


def _text_of(item: Any) -> str:
    """Return the text that a token or a chat response adds."""
    return item if isinstance(item, str) else getattr(item, "delta", None) or ""


async def in_scope_async(
    source: AsyncGenerator[Any], scope: StreamScope, at_end: AtEnd
) -> AsyncGenerator[Any]:
    """Do what `in_scope` does for an asynchronous generator."""
    text: list[str] = []
    try:
        while True:
            token = active_stream.set(scope)
            try:
                item = await anext(source)
            except StopAsyncIteration:
                break
            finally:
                active_stream.reset(token)
            text.append(_text_of(item))
            yield item
        at_end("".join(text))
    finally:
        await source.aclose()
