"""Propose the tokens that come next, without a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ROOT = -1
"""Parent of a node that follows the last committed token."""


class Place(NamedTuple):
    """Where a token was copied from: token `offset` of segment `segment` of the index."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens as a tree; a chain is a tree without branches.

    Nodes stand in an order in which a parent precedes its children.

    Attributes:
        tokens: Token id of each node.
        parents: Index of each node's parent, `ROOT` for a node that follows the context.
        places: Where each token was copied from; None for a token that no text gave.
        probabilities: Estimated probability that the whole path to the node is accepted; empty
            where the drafter does not estimate it.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    places: tuple[Place | None, ...] = ()
    probabilities: tuple[float, ...] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int], places: Sequence[Place | None] = ()) -> "Draft":
        """Return the draft of one run of tokens.

        >>> Draft.chain([5, 6]).parents
        (-1, 0)
        """
        return cls(
            tokens=tuple(tokens),
            parents=tuple(range(-1, len(tokens) - 1)),
            places=tuple(places) if places else (None,) * len(tokens),
        )

    @property
    def is_chain(self) -> bool:
        """Whether every node follows the node before it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def __len__(self) -> int:
        return len(self.tokens)


class Drafter(Protocol):
    """Proposes continuations of one request's context; made anew for every request."""

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose at most `budget` nodes that may follow `context`.

        Args:
            context: Token ids of the prompt and of the answer so far; between two calls it only
                grows, so that what followed the last draft tells which of its nodes were right.
            budget: Most nodes the caller will verify, at least 0.
        """
        ...
