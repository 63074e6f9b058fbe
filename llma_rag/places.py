"""Tell what the positions of a request's texts belong to."""

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np

from llma_rag.bearings import LOCI, NOWHERE, Bearings
from llma_rag.index import SuffixIndex
from llma_rag.tree import RECYCLED


class Place(NamedTuple):
    """Where a token was copied from: token `offset` of segment `segment` of the index."""

    segment: int
    offset: int


class Regions:
    """Tells what a position of the index belongs to, in the numbering that callers know."""

    def __init__(self, index: SuffixIndex, *, references: int, earlier: int, repeats: int) -> None:
        """Take an index of so many references, earlier answers, repeats, and the prompt."""
        self._index = index
        self._references = references
        self._extra = earlier + repeats
        self._ends = (references, references + earlier, references + earlier + repeats, -1)

    def bearings(self) -> Bearings:
        """Return bearings before the first copy, which is expected where a repeat begins."""
        starts = self._index.starts
        repeats = starts[self._ends[1] : self._ends[2]]
        loci = [*repeats, *[NOWHERE] * LOCI][:LOCI]
        borders = [starts[end] for end in self._ends]
        return Bearings(
            np.array(loci, np.int64), np.zeros(1, np.int64), np.array(borders, np.int64)
        )

    def place(self, position: int) -> Place | None:
        """Return the place of a position; earlier answers count after the answer."""
        if position == RECYCLED:
            return None
        segment, offset = self._index.locate(position)
        if segment < self._references:
            return Place(segment, offset)
        if segment < self._references + self._extra:
            return Place(segment + 2, offset)
        return Place(segment - self._extra, offset)


class Places(Sequence[Place | None]):
    """The place of each node of a draft, worked out where it is asked for.

    Of several places that offer a node, one is named; `provenance.joined` makes runs of them.
    """

    def __init__(self, positions: Sequence[int], regions: Regions) -> None:
        self._positions = positions
        self._regions = regions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, node: int) -> Place | None: ...

    @overload
    def __getitem__(self, node: slice) -> tuple[Place | None, ...]: ...

    def __getitem__(self, node: int | slice) -> Place | tuple[Place | None, ...] | None:
        if isinstance(node, slice):
            return tuple(map(self._regions.place, self._positions[node]))
        return self._regions.place(self._positions[node])
