"""Remember which documents appeared in which live run; knows no callbacks and no prompts."""

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

from langchain_core.documents import Document

MAX_DOCUMENTS = 256
"""Documents that a run keeps of those shown under it, that a call gets, and that stay recent."""
MAX_LIVE_RUNS = 16_384
"""A hard stop for abandoned generators, whose runs never end."""

Origin = Literal["argument", "retriever", "chain", "tool", "store", "message", "ambient"]
"""How a document was noticed; see `docs/langchain.md`."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A document that appeared near a model's run.

    Attributes:
        document: The document.
        origin: How it was noticed.
        distance: Levels from the run that called the model up to the nearest run that also holds
            the run which showed the document.
        order: Counts events; what one event shows has one number and keeps its order.
    """

    document: Document
    origin: Origin
    distance: int = 0
    order: int = 0


class Recent:
    """Documents that a context retrieved outside of runs that call a model, the latest first.

    Attributes:
        documents: The documents.
        asked: Set once one of our models was called; the copies of later roots share it.
    """

    __slots__ = ("asked", "documents")

    def __init__(self, earlier: "Recent | None" = None) -> None:
        self.documents: tuple[Document, ...] = earlier.documents if earlier else ()
        self.asked: threading.Event = earlier.asked if earlier else threading.Event()

    def add(self, documents: Sequence[Document]) -> None:
        """Put documents first; they replace those that a model was asked with or after."""
        if documents:
            kept = () if self.asked.is_set() else self.documents
            self.documents = (*documents, *kept)[:MAX_DOCUMENTS]
            self.asked = threading.Event()


class Run:
    """A run that has started, and the latest documents shown by it and by what runs under it.

    Attributes:
        parent: The run that called it, if it is no root.
        recent: The recent documents of a root's context.
        asked: Whether one of our models was called under a root.
    """

    __slots__ = ("_shown", "asked", "parent", "recent")

    def __init__(self, parent: "Run | None") -> None:
        self.parent = parent
        self.recent: Recent | None = None
        self.asked = False
        self._shown: OrderedDict[int, Sighting] = OrderedDict()

    def lineage(self) -> "Iterable[Run]":
        """Yield the run, its parent, and so on up to the root."""
        run: Run | None = self
        while run is not None:
            yield run
            run = run.parent

    def add(self, sightings: Iterable[Sighting]) -> None:
        """Keep each document once, as it was first shown or as a retriever last ranked it."""
        for sighting in sightings:
            key = id(sighting.document)
            known = self._shown.get(key)
            if known is None or known.origin == "message" or sighting.origin == "retriever":
                self._shown[key] = sighting
                self._shown.move_to_end(key)
        while len(self._shown) > MAX_DOCUMENTS:
            self._shown.popitem(last=False)

    def documents(self) -> list[Document]:
        """Return the documents shown under the run, the latest first."""
        latest = sorted(self._shown.values(), key=lambda sighting: -sighting.order)
        return [sighting.document for sighting in latest]

    def near(self) -> list[Sighting]:
        """Return the documents of the lineage, each at the level where it first appears.

        A retriever's word outranks others; what messages carry along is told apart.
        """
        found: dict[tuple[int, bool], Sighting] = {}
        for level, run in enumerate(self.lineage()):
            for identity, shown in run._shown.items():
                key = identity, shown.origin == "message"
                known = found.get(key)
                if known is None:
                    found[key] = Sighting(shown.document, shown.origin, level, shown.order)
                elif shown.origin == "retriever" and known.origin != "retriever":
                    found[key] = replace(known, origin="retriever")
        nearest = sorted(found.values(), key=lambda entry: (entry.distance, -entry.order))
        return nearest[:MAX_DOCUMENTS]


class RunTree:
    """The runs of this process that have started and not ended; safe to use from many threads."""

    def __init__(self, max_live_runs: int = MAX_LIVE_RUNS) -> None:
        self.evicted = 0
        self._max_live_runs = max_live_runs
        self._live: OrderedDict[UUID, Run] = OrderedDict()
        self._events = itertools.count()
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._live

    def open(self, run_id: UUID, parent_id: UUID | None) -> Run:
        """Add a run; one whose parent is not live is a root."""
        with self._lock:
            run = Run(self._live.get(parent_id) if parent_id is not None else None)
            self._live[run_id] = run
            if len(self._live) > self._max_live_runs:
                self._live.popitem(last=False)
                self.evicted += 1
        return run

    def close(self, run_id: UUID, *, failed: bool = False) -> None:
        """Forget a run that ended; its documents stay with the runs above it.

        Those of a root stay recent in its context, unless it failed or a model was asked there.
        """
        with self._lock:
            run = self._live.pop(run_id, None)
            if run is not None and run.recent is not None and not (failed or run.asked):
                run.recent.add(run.documents())

    def get(self, run_id: UUID | None) -> Run | None:
        """Return the live run of that id."""
        return self._live.get(run_id) if run_id is not None else None

    def record(self, run: Run, documents: Sequence[Document], origin: Origin) -> None:
        """Note that `run` showed `documents`, the best first if they are ranked."""
        if not documents:
            return
        order = next(self._events)
        sightings = [Sighting(each, origin, order=order) for each in documents[:MAX_DOCUMENTS]]
        with self._lock:
            for each in run.lineage():
                each.add(sightings)

    def near(self, run_id: UUID | None) -> list[Sighting]:
        """Return the documents of the same root, those of the nearest common ancestor first."""
        run = self.get(run_id)
        if run is None:
            return []
        with self._lock:
            return run.near()

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
