"""Deliver one request's events to a future, an iterator or an asynchronous iterator."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import Self

from llma_rag.result import GenerationChunk, GenerationResult

Event = GenerationChunk | GenerationResult | BaseException | None
"""What reaches a stream; None says that it was closed."""


class _Answer(Future[GenerationResult]):
    """A future whose cancelling wakes up those who wait for it together with others."""

    def __init__(self) -> None:
        super().__init__()
        self._first = threading.Lock()

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled and self._first.acquire(blocking=False):
            self.set_running_or_notify_cancel()
        return cancelled


class FutureSink:
    """Fills a future; cancelling the future stops the model within one forward pass."""

    def __init__(self) -> None:
        self.future: Future[GenerationResult] = _Answer()

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


TWO_READERS = "A stream has one reader at a time, and somebody else waits for its next chunk."


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

    def wake(self) -> None:
        """Wake up who waits for the next event of a stream that was closed."""
        self._post(None)

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
        self._reading = threading.Lock()
        super().__init__(self._events.put)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationChunk:
        if not self._reading.acquire(blocking=False):
            raise RuntimeError(TWO_READERS)
        try:
            chunk = None if self._ended else self._accept(self._events.get())
        finally:
            self._reading.release()
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Stop decoding; may be called at any time, also twice."""
        self._cancel()
        self.sink.wake()

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
        self._loop = asyncio.get_running_loop()
        self._is_read = False
        super().__init__(_into(self._loop, self._events))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationChunk:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("Read a stream in the event loop in which `astream` was called.")
        if self._is_read:
            raise RuntimeError(TWO_READERS)
        self._is_read = True
        try:
            chunk = None if self._ended else self._accept(await self._events.get())
        except asyncio.CancelledError:
            self._cancel()
            raise
        finally:
            self._is_read = False
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop decoding; may be called at any time, also twice."""
        self._cancel()
        self.sink.wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
