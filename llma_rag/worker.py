"""Let one thread own a model; requests from threads and event loops take turns on it."""

import atexit
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from llma_rag.engine.cpu.threads import release_idle_threads
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.step import Pass
from llma_rag.result import GenerationChunk, GenerationResult

MAX_ACTIVE = 8
"""Requests that are decoded in turns; further ones wait until one of them is done."""

Decoding = Generator[Pass | GenerationChunk, Outcome, GenerationResult]
"""A request being decoded: yields passes to run and text to deliver, returns the result."""


Event = TypeVar("Event")

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where the events of one request go; every method may be called from the worker's thread."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this request any more."""
        ...

    def put(self, chunk: GenerationChunk) -> None:
        """Deliver text."""
        ...

    def done(self, result: GenerationResult) -> None:
        """Deliver the end of the answer."""
        ...

    def fail(self, error: BaseException) -> None:
        """Deliver an error as it was raised."""
        ...


@dataclass
class Load:
    """How much a worker has to do.

    Attributes:
        active: Requests that are decoded in turns now.
    """

    active: int = 0


class _Job:
    """A request in the worker: its generator, and the pass that it waits for."""

    def __init__(self, decoding: Decoding, sink: Sink) -> None:
        self.decoding = decoding
        self.sink = sink
        self.wanted: Pass | None = None

    def start(self) -> bool:
        return self._resume(lambda: next(self.decoding))

    def give(self, outcome: Outcome) -> bool:
        return self._resume(lambda: self.decoding.send(outcome))

    def give_error(self, error: BaseException) -> bool:
        return self._resume(lambda: self.decoding.throw(error))

    def close(self) -> None:
        """End the request; whatever its clean-up raises has nobody to go to."""
        with suppress(BaseException):
            self.decoding.close()

    def fail(self, error: BaseException) -> None:
        self.close()
        _deliver(self.sink.fail, error)

    def _resume(self, resume: Callable[[], Pass | GenerationChunk]) -> bool:
        """Run the request up to its next pass; return whether it goes on."""
        try:
            event = resume()
            while isinstance(event, GenerationChunk):
                _deliver(self.sink.put, event)
                event = next(self.decoding)
        except StopIteration as end:
            _deliver(self.sink.done, end.value)
        except BaseException as error:
            self.fail(error)
        else:
            self.wanted = event
            return True
        return False


def _deliver(sink: Callable[[Event], None], event: Event) -> None:
    """Hand over an event; the thread outlives what a caller's callback raises."""
    try:
        sink(event)
    except BaseException:
        logger.exception("A callback of a request raised an error.")


class Worker:
    """A thread that runs all forward passes of one model.

    The thread starts with the first request, is a daemon, and is started again in a forked child.

    Attributes:
        load: What it has to do.
    """

    def __init__(self, run: Callable[[Pass], Outcome]) -> None:
        self.load = Load()
        self._run = run
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last: threading.Thread | None = None
        self._process = os.getpid()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    def submit(self, decoding: Decoding, sink: Sink) -> None:
        """Hand over a request; its events reach the sink from the worker's thread.

        Raises:
            RuntimeError: If the interpreter is about to end.
        """
        if _leaving.is_set():
            raise RuntimeError(ENDED)
        release_idle_threads()
        with self._lock:
            if not self._is_serving:
                last = self._last if self._process == os.getpid() else None
                self._queue = queue.SimpleQueue()
                self._process = os.getpid()
                self._thread = threading.Thread(
                    target=_serve,
                    args=(self._queue, self._run, self.load, last),
                    name="llma-rag",
                    daemon=True,
                )
                _serving[self._thread] = self._queue
                self._thread.start()
            self._queue.put(_Job(decoding, sink))
            if _leaving.is_set():  # meanwhile; the thread may have looked at the queue before
                _fail_waiting(self._queue)

    @property
    def _is_serving(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive() and self._process == os.getpid()

    def stop(self) -> None:
        """End the thread once the requests it has are done; a later request starts a new one."""
        with self._lock:
            self._queue.put(None)
            self._last, self._thread = self._thread or self._last, None

    @property
    def is_current_thread(self) -> bool:
        """Whether the worker's thread asks, or the one before that."""
        return threading.current_thread() in (self._thread, self._last)


_serving: "weakref.WeakKeyDictionary[threading.Thread, queue.SimpleQueue[_Job | None]]" = (
    weakref.WeakKeyDictionary()
)
_leaving = threading.Event()


ENDED = "No more answers are decoded: the thread has ended, as it does before Python ends."


@atexit.register
def _leave() -> None:
    """Stop all workers: a thread that is inside the model when the interpreter goes aborts it."""
    _leaving.set()
    for thread, jobs in list(_serving.items()):
        jobs.put(None)
        thread.join()


def _serve(
    jobs: "queue.SimpleQueue[_Job | None]",
    run: Callable[[Pass], Outcome],
    load: Load,
    last: threading.Thread | None,
) -> None:
    if last is not None:
        last.join()  # what requests share belongs to one thread at a time
        del last
    active: list[_Job] = []
    open_for_more = True
    try:
        while (open_for_more or active) and not _leaving.is_set():
            open_for_more = _admit(jobs, active, open_for_more)
            load.active = len(active)
            active = [job for job in active if _advance(job, run)]
    finally:
        for job in active:
            job.fail(RuntimeError(ENDED))
        _fail_waiting(jobs)


def _fail_waiting(jobs: "queue.SimpleQueue[_Job | None]") -> None:
    """Fail the requests that nobody will start any more."""
    with suppress(queue.Empty):
        while True:
            job = jobs.get_nowait()
            if job is not None:
                job.fail(RuntimeError(ENDED))


def _admit(jobs: "queue.SimpleQueue[_Job | None]", active: list[_Job], open_for_more: bool) -> bool:
    """Start waiting requests while there is room; wait for one if there is nothing to do."""
    if not active and jobs.empty():
        release_idle_threads()
    while open_for_more and len(active) < MAX_ACTIVE:
        try:
            job = jobs.get(block=not active)
        except queue.Empty:
            break
        if job is None:
            return False
        if not job.sink.cancelled and job.start():
            active.append(job)
    return open_for_more


def _advance(job: _Job, run: Callable[[Pass], Outcome]) -> bool:
    """Run the pass a request waits for; return whether the request goes on."""
    if job.sink.cancelled:
        job.close()
        return False
    assert job.wanted is not None
    try:
        outcome = run(job.wanted)
    except BaseException as error:  # the thread must outlive whatever a model raises
        return job.give_error(error)
    return job.give(outcome)
