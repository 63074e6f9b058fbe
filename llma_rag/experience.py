"""Keep what the requests of one model leave behind for later ones, apart by namespace."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from llma_rag.acceptance import AcceptanceModel
from llma_rag.recycling import Recycler

MAX_NAMESPACES = 16
"""Namespaces that are remembered; the least recently used one is forgotten."""


@dataclass(slots=True)
class Experience:
    """What earlier requests taught; holds no text and no order of tokens beyond pairs.

    Attributes:
        acceptance: How likely drafted tokens are to be accepted.
        recycler: Which tokens the model held likely after which; None recycles nothing.
    """

    acceptance: AcceptanceModel = field(default_factory=AcceptanceModel.shipped)
    recycler: Recycler | None = None


class Experiences:
    """The experience with each namespace's requests. Not locked: the worker thread uses it."""

    def __init__(self, *, banned_tokens: Collection[int], recycling: bool) -> None:
        """Start without any.

        Args:
            banned_tokens: Ids that are never drafted.
            recycling: False gives every request a new experience, which ends with it.
        """
        self._banned_tokens = banned_tokens
        self._recycling = recycling
        self._known: OrderedDict[str | None, Experience] = OrderedDict()

    def of(self, namespace: str | None) -> Experience:
        """Return the experience with a namespace's requests; those without one share theirs."""
        if not self._recycling:
            return Experience()
        if namespace not in self._known:
            recycler = Recycler(banned_tokens=self._banned_tokens)
            self._known[namespace] = Experience(recycler=recycler)
        self._known.move_to_end(namespace)
        while len(self._known) > MAX_NAMESPACES:
            self._known.popitem(last=False)
        return self._known[namespace]
