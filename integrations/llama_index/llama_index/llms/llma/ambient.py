"""Remember what was retrieved in this context, for a model call that shares no span with it."""

import threading
from collections import OrderedDict
from contextvars import ContextVar

from llama_index.llms.llma.captured import Capture, CapturedNode

MAX_AMBIENT = 4
"""Most captures one context remembers."""

_ambient: ContextVar[tuple[Capture, ...]] = ContextVar("llma_ambient", default=())


def remember(captures: tuple[Capture, ...]) -> None:
    """Keep the captures of a request that ended in this context, newest first."""
    _ambient.set((captures + _ambient.get())[:MAX_AMBIENT])
    process_scope.add(captures)


def forget() -> None:
    """Forget what this context remembers."""
    _ambient.set(())


def remembered_in(prompt: str) -> Capture | None:
    """Return the remembered nodes whose text stands in `prompt`; of equal texts the newest.

    Those conditions keep a pooled thread from handing one user's nodes to the next.
    """
    nodes: dict[str, CapturedNode] = {}
    for capture in _ambient.get():
        for node in capture.nodes:
            if node.text not in nodes and stands_in(node.text, prompt):
                nodes[node.text] = node
    return Capture(tuple(nodes.values())) if nodes else None


def stands_in(text: str, prompt: str) -> bool:
    """Say whether a whole text stands in the prompt.

    A part of it would not do: documents of two users may begin with the same letterhead.
    """
    text = text.strip()
    return bool(text) and text in prompt


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
