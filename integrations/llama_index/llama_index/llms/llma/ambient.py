"""Remember what was retrieved in this context, for a model call that shares no span with it."""

import threading
from collections import OrderedDict
from contextvars import ContextVar
from typing import NamedTuple

from llama_index.llms.llma.captured import Capture, CapturedNode, stands_in

MAX_AMBIENT = 4
"""Most captures one context remembers."""


class _Remembered(NamedTuple):
    """Captures, newest first, and whether a model was called in this context after them."""

    captures: tuple[Capture, ...] = ()
    called: bool = False


_NOTHING = _Remembered()
_ambient: ContextVar[_Remembered] = ContextVar("llma_ambient", default=_NOTHING)


def remember(captures: tuple[Capture, ...]) -> None:
    """Keep the captures of a retrieval that ended in this context, newest first.

    They join those before them until a model was called; then they take their place.
    """
    kept = _ambient.get()
    earlier = () if kept.called else kept.captures
    _ambient.set(_Remembered((captures + earlier)[:MAX_AMBIENT]))


def note_call() -> None:
    """Note that a model was called here; what is remembered stays for further calls.

    A call in a task or thread of its own is noted there: what its siblings see does not depend on
    which of them is first.
    """
    kept = _ambient.get()
    if kept.captures and not kept.called:
        _ambient.set(kept._replace(called=True))


def remembered_in(prompt: str) -> Capture | None:
    """Return the remembered nodes whose text stands in `prompt`; of equal texts the newest.

    A thread that serves one user after the other may remember nodes of another user's bare
    retrieval. Of those only what the prompt holds anyway is found.
    """
    nodes: dict[str, CapturedNode] = {}
    for capture in _ambient.get().captures:
        for node in capture.nodes:
            if node.text not in nodes and stands_in(node.text, prompt):
                nodes[node.text] = node
    return Capture(tuple(nodes.values())) if nodes else None


class ProcessScope:
    """Nodes retrieved anywhere in this process, found again by their whole text.

    Opt-in, for programs that serve one user: two users may own the same text under different ids.
    """

    MAX_KEPT = 256

    def __init__(self) -> None:
        self.enabled = False
        self._lock = threading.Lock()
        self._nodes: OrderedDict[tuple[str | None, str], CapturedNode] = OrderedDict()

    def add(self, captures: tuple[Capture, ...]) -> None:
        """Keep nodes, newest last; does nothing until an LLM asks for this scope."""
        if not self.enabled:
            return
        with self._lock:
            for capture in captures:
                for node in capture.nodes:
                    self._nodes[node.id, node.text] = node
                    self._nodes.move_to_end((node.id, node.text))
            while len(self._nodes) > self.MAX_KEPT:
                self._nodes.popitem(last=False)

    def look_up(self, prompt: str) -> Capture | None:
        """Return the nodes whose whole text stands in `prompt`."""
        with self._lock:
            kept = tuple(self._nodes.values())
        nodes = tuple(node for node in kept if stands_in(node.text, prompt))
        return Capture(nodes) if nodes else None


process_scope = ProcessScope()
