"""Keep what each open span of a request has captured, and say what a span may see of it."""

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.instrumentation.span import active_span_id

from llama_index.llms.llma.answers import Answer, joined
from llama_index.llms.llma.captured import Capture
from llama_index.llms.llma.roles import NOBODY, Role

if TYPE_CHECKING:
    from llama_index.llms.llma.streams import StreamScope

MAX_SPANS = 8192
"""Most open spans; the oldest goes first and only loses its references."""

MAX_CAPTURES = 64
"""Most captures of one span; the oldest goes first."""


class Span:
    """An open call of the framework inside a request.

    A plain object with slots: attributes of a pydantic model cost microseconds each. Most spans
    capture and answer nothing, so that what they hold is replaced, not grown. `holder` is the
    response object that is being written, where that is known before the span ends.
    """

    __slots__ = (
        "answers",
        "captures",
        "entry",
        "holder",
        "id",
        "is_run",
        "parent",
        "role",
        "stream",
    )

    def __init__(
        self,
        span_id: str,
        parent: "Span | None",
        entry: int,
        stream: "StreamScope | None",
        role: Role,
        is_run: bool,
    ) -> None:
        self.id = span_id
        self.parent = parent
        self.entry = entry
        self.stream = stream
        self.role = role
        self.is_run = is_run
        self.captures: tuple[tuple[int, Capture], ...] = ()
        self.answers: tuple[Answer, ...] = ()
        self.holder: weakref.ref[Any] | None = None


class SpanTree(dict[str, Span]):
    """The open spans of all requests by id; one without a tracked parent is a request's root.

    A dictionary itself: every span of the framework is looked up here twice, in cold caches.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._clock = itertools.count(1)

    def open(
        self,
        span_id: str,
        parent: Span | None,
        stream: "StreamScope | None" = None,
        role: Role = NOBODY,
        is_run: bool = False,
    ) -> Span:
        """Add a span; it sees what its ancestors captured before now."""
        span = self[span_id] = Span(span_id, parent, next(self._clock), stream, role, is_run)
        if len(self) > MAX_SPANS:
            for oldest in tuple(self)[: len(self) - MAX_SPANS]:
                self.pop(oldest, None)
        return span

    def capture(self, span: Span, capture: Capture) -> None:
        """Give a span what one call handled."""
        with self._lock:
            arrived = (next(self._clock), capture)
            span.captures = (*span.captures, arrived)[-MAX_CAPTURES:]

    def answered(self, span: Span, answers: Sequence[Answer]) -> None:
        """Give a span, or its nearest ancestor that is still open, what the model answered."""
        node: Span | None = span
        while node is not None and self.get(node.id) is not node:
            node = node.parent
        if node is None:
            return
        with self._lock:
            node.answers = joined(node.answers, answers)

    def hand_up(self, span: Span) -> None:
        """Give the parent what a span that ends has captured and answered, as arriving now."""
        parent = span.parent
        if parent is None:
            return
        with self._lock:
            arrived = [(next(self._clock), capture) for _, capture in span.captures]
            parent.captures = (*parent.captures, *arrived)[-MAX_CAPTURES:]
            parent.answers = joined(parent.answers, span.answers)

    def visible(self, span: Span) -> tuple[Capture, ...]:
        """Return what a call inside `span` may copy from, nearest and newest first.

        Its own captures, and those its ancestors had before it was entered: siblings that run at
        the same time never see each other. The climb ends at the nearest engine with captures, so
        that two queries made by one workflow step stay apart.
        """
        found: list[Capture] = []
        before: float = float("inf")
        node: Span | None = span
        while node is not None:
            found.extend(
                capture for arrival, capture in reversed(node.captures) if arrival < before
            )
            if node.role.engine and found:
                break
            before, node = node.entry, node.parent
        return tuple(found)


tree = SpanTree()
"""One for the process, as the dispatcher that feeds it is."""


def active_span() -> Span | None:
    """Return the tracked span this context runs in."""
    span_id = active_span_id.get()
    return tree.get(span_id) if span_id else None
