"""Deliver one request's events to a future, an iterator or an asynchronous iterator."""

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import Self

from llma_rag.result import GenerationChunk, GenerationResult

Event = GenerationChunk | GenerationResult | BaseException | None
"""What reaches a stream; None says that it was closed."""


class FutureSink:
    """Fills a future; cancelling the future stops the model within one forward pass."""

    def __init__(self) -> None:
        self.future: Future[GenerationResult] = Future()

    @property
    def cancelled(self) -> bool:
        """Whether the future was cancelled."""
        return self.future.cancelled()

    def put(self, chunk: GenerationChunk) -> None:
        """Drop the chunk: the result holds the whole text."""

    def done(self, result: GenerationResult) -> None:
        """Set the result, unless the future was cancelled meanwhile."""
        self._settle(lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        """Set the exception, unless the future was cancelled meanwhile."""
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, settle: Callable[[], None]) -> None:
        try:
            settle()
        except InvalidStateError:
            return


class _EventSink:
    """Passes events on to a function and remembers whether the consumer went away."""

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self._deliver = deliver
        self.cancelled = False

    def put(self, chunk: GenerationChunk) -> None:
        self._post(chunk)

    def done(self, result: GenerationResult) -> None:
        self._post(result)

    def fail(self, error: BaseException) -> None:
        self._post(error)

    def _post(self, event: Event) -> None:
        try:
            self._deliver(event)
        except RuntimeError:  # the event loop was closed: nobody waits any more
            self.cancelled = True


class _Stream:
    """What both kinds of stream share: the sink, the result, and the end."""

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self.sink = _EventSink(deliver)
        self._result: GenerationResult | None = None
        self._ended = False

    @property
    def result(self) -> GenerationResult:
        """The finished answer.

        Raises:
            RuntimeError: If the stream has not been read to its end.
        """
        if self._result is None:
            raise RuntimeError("`result` is there once the stream has been read to its end.")
        return self._result

    def _accept(self, event: Event) -> GenerationChunk | None:
        """Return a chunk; None at the end of the stream; raise what the model raised."""
        if isinstance(event, GenerationChunk):
            return event
        self._ended = True
        if isinstance(event, BaseException):
            raise event
        self._result = event
        return None

    def _cancel(self) -> None:
        self.sink.cancelled = True
        self._ended = True

    def __del__(self) -> None:
        if hasattr(self, "sink"):
            self._cancel()


def _into(
    loop: asyncio.AbstractEventLoop, events: "asyncio.Queue[Event]"
) -> Callable[[Event], None]:
    """Return a thread-safe `put` that does not keep the stream alive."""

    def deliver(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    return deliver


class GenerationStream(_Stream):
    """An answer as it is decoded: an iterator of `GenerationChunk`, one per accepted run.

    Closing it, leaving its `with` block or dropping it stops the model within one forward pass.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        super().__init__(self._events.put)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationChunk:
        if self._ended:
            raise StopIteration
        chunk = self._accept(self._events.get())
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Stop decoding; may be called at any time, also twice."""
        self._cancel()
        self._events.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncGenerationStream(_Stream):
    """The same for an event loop, which it never blocks; make it inside the running loop."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        super().__init__(_into(asyncio.get_running_loop(), self._events))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationChunk:
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            self._cancel()
            raise
        chunk = self._accept(event)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop decoding; may be called at any time, also twice."""
        self._cancel()
        self._events.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
