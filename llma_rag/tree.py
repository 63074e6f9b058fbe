"""A draft as a tree of nodes, with the places behind each and what is known of what may follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llma_rag.acceptance import (
    NO_SUCCESSORS,
    RECYCLED_RANKS,
    Evidence,
    copy_evidence,
    recycled_evidence,
)
from llma_rag.index import MAX_MATCH_LENGTH, NO_TOKEN

ROOT = -1
"""Parent of a node that follows the last committed token."""

OBSERVED = 3
"""Of what may follow a node, how many tokens are learned from at a time."""

Candidate = tuple[int, int, int, int]
"""Position of the token after the context, match length, distance from the last copy, source."""

Copy = tuple[int, Evidence, Sequence[Candidate], int]
"""A copied token, what is known of it, the places that hold it, its position."""

Offer = tuple[int, Evidence]
"""A token that may follow a node, drafted or not, and what is known of it."""

Successors = Callable[[int], Sequence[int]]
"""Gives the likely successors of a token, best first."""


@dataclass(slots=True)
class Tree:
    """A grown draft and what is needed to learn from its verification.

    Attributes:
        tokens: Token of each node.
        parents: Parent of each node.
        positions: Where each token was copied from; None for recycled tokens.
        probabilities: Probability of the path to each node.
        candidates: For the root and then each node, the places that hold the path to it.
        successors: For the root and then each node, the recycled successors that were looked up.
        copies: For nodes with several places, which tokens follow.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    positions: list[int | None] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    candidates: list[Sequence[Candidate]] = field(default_factory=lambda: [()])
    successors: list[Sequence[int]] = field(default_factory=lambda: [()])
    copies: dict[int, list[Copy]] = field(default_factory=dict)

    def add(
        self,
        token: int,
        parent: int,
        probability: float,
        places: Sequence[Candidate],
        position: int | None,
    ) -> None:
        """Append a node."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.positions.append(position)
        self.probabilities.append(probability)
        self.candidates.append(places)
        self.successors.append(())

    def offered(self, node: int, depth: int, tokens: Sequence[int], turn: int) -> list[Offer]:
        """Return some of what could follow a node with `depth` tokens from the root to it.

        Args:
            node: The node, `ROOT` for the end of the context.
            depth: Tokens from the root to it.
            tokens: Those of the index.
            turn: Any number that grows; chooses, blind to what was right, which to return.
        """
        places, successors = self.candidates[node + 1], self.successors[node + 1]
        copies = self.copies.get(node)
        if copies is None:
            copies = follow(tokens, places, depth, successors) if len(places) == 1 else []
        copied = [copy[0] for copy in copies]
        others = [rank for rank, token in enumerate(successors) if token not in copied]
        size, last = len(copies) + len(others), OBSERVED - 1
        chosen = [*range(last), last + turn % (size - last)] if size > OBSERVED else range(size)
        longest = places[0][1] + depth if places else 0
        found: list[Offer] = []
        for choice in chosen:
            if choice < len(copies):
                found.append((copies[choice][0], copies[choice][1]))
            else:
                rank = others[choice - len(copies)]
                found.append((successors[rank], recycled_evidence(rank, depth, longest)))
        return found

    def copied(self, node: int, depth: int, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that places offer behind a node."""
        copies = self.copies.get(node)
        if copies is not None:
            return [copy[0] for copy in copies]
        return [
            tokens[place[0] + depth]
            for place in self.candidates[node + 1][:1]
            if place[0] + depth < len(tokens)
        ]

    def child(self, node: int, token: int) -> int | None:
        """Return the child of a node that holds `token`, if there is one."""
        place = node
        while True:
            try:
                place = self.tokens.index(token, place + 1)
            except ValueError:
                return None
            if self.parents[place] == node:
                return place

    def cut(self, size: int) -> None:
        """Forget the nodes after the first `size`."""
        for column in (self.tokens, self.parents, self.positions, self.probabilities):
            del column[size:]
        del self.candidates[size + 1 :], self.successors[size + 1 :]


def follow(
    tokens: Sequence[int],
    places: Sequence[Candidate],
    depth: int,
    successors: Sequence[int],
) -> list[Copy]:
    """Group places by the token that follows them.

    Args:
        tokens: Those of the index.
        places: Longest match first.
        depth: Tokens by which the path is longer than where the places begin.
        successors: Recycled successors of the last token, best first.
    """
    if len(places) == 1:
        return _follow_one(tokens, places, depth, successors)
    groups, lengths = _grouped(tokens, places, depth)
    rank = NO_SUCCESSORS
    alike: dict[tuple[int, int, int, int], Evidence] = {}
    found: list[Copy] = []
    for token, group in groups.items():
        if successors:
            rank = successors.index(token) if token in successors else RECYCLED_RANKS
        position, length, distance, source = group[0]
        if len(group) > 1:
            evidence = _evidence(group, depth, lengths, places, rank)
        elif (length, distance, source, rank) in alike:
            evidence = alike[length, distance, source, rank]
        else:
            evidence = _evidence(group, depth, lengths, places, rank)
            alike[length, distance, source, rank] = evidence
        found.append((token, evidence, group, position + depth))
    return found


def _evidence(
    group: Sequence[Candidate],
    depth: int,
    lengths: Sequence[int],
    places: Sequence[Candidate],
    rank: int,
) -> Evidence:
    """Describe the token of a group of `places`, whose match lengths are `lengths`."""
    _, length, distance, source = group[0]
    votes = 1
    if len(group) > 1:
        votes = [place[1] for place in group].count(length)
        distance = min([place[2] for place in group])
    return copy_evidence(
        min(length + depth, MAX_MATCH_LENGTH),
        distance,
        depth,
        source,
        votes,
        lengths.count(length),
        len(group),
        len(places),
        places[0][1] - length,
        rank,
    )


def _grouped(
    tokens: Sequence[int], places: Sequence[Candidate], depth: int
) -> tuple[dict[int, list[Candidate]], list[int]]:
    """Return places by the token that follows them, and the match lengths of all."""
    end = len(tokens) - depth
    groups: dict[int, list[Candidate]] = {}
    lengths: list[int] = []
    for place in places:
        position = place[0]
        if position < end:
            token = tokens[position + depth]
            lengths.append(place[1])
            if token in groups:
                groups[token].append(place)
            else:
                groups[token] = [place]
    groups.pop(NO_TOKEN, None)
    return groups, lengths


def _follow_one(
    tokens: Sequence[int], places: Sequence[Candidate], depth: int, successors: Sequence[int]
) -> list[Copy]:
    """Do what `follow` does where only one place is left."""
    first, length, distance, source = places[0]
    position = first + depth
    if position >= len(tokens) or tokens[position] == NO_TOKEN:
        return []
    token, rank = tokens[position], NO_SUCCESSORS
    if successors:
        rank = successors.index(token) if token in successors else RECYCLED_RANKS
    length = min(length + depth, MAX_MATCH_LENGTH)
    evidence = copy_evidence(length, distance, depth, source, 1, 1, 1, 1, 0, rank)
    return [(token, evidence, places, position)]
