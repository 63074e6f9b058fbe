"""Remember which documents appeared in which live run; knows no callbacks and no prompts."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from langchain_core.documents import Document

MAX_DOCUMENTS_PER_ROOT = 256
MAX_LIVE_RUNS = 16_384
"""A hard stop for abandoned generators, whose runs never end."""
MAX_RUNS_PER_DOCUMENT = 16
"""Runs through which a document passed that are remembered, the latest ones."""
MAX_RECENT = 64

Origin = Literal["argument", "retriever", "chain", "tool", "store", "message", "ambient"]
"""How a document was noticed; see `docs/langchain.md`."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A document that appeared near a model's run.

    Attributes:
        document: The document.
        origin: How it was noticed.
        distance: Levels from the run that called the model up to the nearest run that also holds
            the run which produced the document.
        order: Counts up within one root run; higher is later.
    """

    document: Document
    origin: Origin
    distance: int = 0
    order: int = 0


class Recent(deque[Document]):
    """Documents seen lately in one context, and the root run that opened the list."""

    def __init__(self, documents: Iterable[Document] = (), owner: UUID | None = None) -> None:
        super().__init__(documents, maxlen=MAX_RECENT)
        self.owner = owner


@dataclass(slots=True)
class _Record:
    document: Document
    origin: Origin
    runs: "deque[Run]"
    order: int

    def distance(self, levels: dict[int, int]) -> int | None:
        """Return the level of the nearest run that also holds a run which showed the document."""
        found = [level for run in self.runs if (level := run.level_in(levels)) is not None]
        return min(found, default=None)


class Ledger:
    """All documents seen under one root run, the latest 256 of them, each object once."""

    __slots__ = ("_by_identity", "_count", "_records", "recent")

    def __init__(self) -> None:
        self.recent: Recent | None = None
        self._records: deque[_Record] = deque()
        self._by_identity: dict[int, _Record] = {}
        self._count = 0

    def add(self, run: "Run", document: Document, origin: Origin) -> None:
        """Note a document under each run that showed it; a retriever's word outranks others."""
        known = self._by_identity.get(id(document))
        if known is not None:
            known.runs.append(run)
            if origin == "retriever":
                known.origin = origin
            return
        if len(self._records) == MAX_DOCUMENTS_PER_ROOT:
            del self._by_identity[id(self._records.popleft().document)]
        self._count += 1
        record = _Record(document, origin, deque([run], MAX_RUNS_PER_DOCUMENT), self._count)
        self._records.append(record)
        self._by_identity[id(document)] = record
        if self.recent is not None:
            self.recent.append(document)

    def near(self, run: "Run") -> list[Sighting]:
        """Return every document of the root with its distance from `run`."""
        levels = {id(ancestor): level for level, ancestor in enumerate(run.lineage())}
        return [
            Sighting(record.document, record.origin, distance, record.order)
            for record in self._records
            if (distance := record.distance(levels)) is not None
        ]


class Run:
    """A run that has started; its parent chain ends in a root, which owns the ledger."""

    __slots__ = ("ledger", "parent")

    def __init__(self, parent: "Run | None") -> None:
        self.parent = parent
        self.ledger: Ledger = Ledger() if parent is None else parent.ledger

    def lineage(self) -> "Iterable[Run]":
        """Yield the run, its parent, and so on up to the root."""
        run: Run | None = self
        while run is not None:
            yield run
            run = run.parent

    def level_in(self, levels: dict[int, int]) -> int | None:
        """Return the level of the nearest ancestor (or the run itself) that `levels` names."""
        return next((levels[id(run)] for run in self.lineage() if id(run) in levels), None)


class RunTree:
    """The runs of this process that have started and not ended; safe to use from many threads."""

    def __init__(self, max_live_runs: int = MAX_LIVE_RUNS) -> None:
        self.evicted = 0
        self._max_live_runs = max_live_runs
        self._live: OrderedDict[UUID, Run] = OrderedDict()
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

    def close(self, run_id: UUID) -> None:
        """Forget a run that ended; its documents stay as long as its root lives."""
        with self._lock:
            self._live.pop(run_id, None)

    def get(self, run_id: UUID | None) -> Run | None:
        """Return the live run of that id."""
        return self._live.get(run_id) if run_id is not None else None

    def record(self, run: Run, documents: Iterable[Document], origin: Origin) -> None:
        """Note that `run` showed `documents`."""
        with self._lock:
            for document in documents:
                run.ledger.add(run, document, origin)

    def near(self, run_id: UUID | None) -> list[Sighting]:
        """Return the documents of the same root, those of the nearest common ancestor first."""
        run = self.get(run_id)
        if run is None:
            return []
        with self._lock:
            sightings = run.ledger.near(run)
        return sorted(sightings, key=lambda sighting: (sighting.distance, -sighting.order))

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
