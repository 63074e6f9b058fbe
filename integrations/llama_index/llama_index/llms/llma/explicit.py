"""Let a caller name the nodes that the next model calls may copy from."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from llama_index.core.schema import BaseNode, NodeWithScore

from llama_index.llms.llma.captured import Capture, snapshot
from llma_rag import Reference

Given = NodeWithScore | BaseNode | Reference | str
"""What a caller may name as a reference."""

_given: ContextVar[tuple[Capture, ...]] = ContextVar("llma_given", default=())


@contextmanager
def references(nodes: Iterable[Given]) -> Iterator[None]:
    """Let every LLMA call inside the `with` block copy from `nodes`.

    For code in which nothing links retrieval and model call, such as `asyncio.gather` of several
    retrievers followed by a bare `complete`. References never change an answer.
    """
    capture = snapshot(nodes)
    token = _given.set((capture, *_given.get()) if capture else _given.get())
    try:
        yield
    finally:
        _given.reset(token)


def given_references() -> tuple[Capture, ...]:
    """Return what the enclosing `with references(...)` blocks named, innermost first."""
    return _given.get()
