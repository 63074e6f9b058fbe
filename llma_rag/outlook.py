"""Tell which tokens may follow a node of a draft, and how probable they are; compiled."""

from typing import NamedTuple

import numpy as np

from llma_rag.acceptance import (
    NO_SUCCESSORS,
    RECYCLED_RANKS,
    Evidence,
    Floats,
    copy_evidence,
    probability,
    recycled_evidence,
)
from llma_rag.compiled import compiled, varying
from llma_rag.matching import MAX_MATCH_LENGTH, NO_TOKEN, Longs, Texts
from llma_rag.recycling import Successors, row_of
from llma_rag.tree import MAX_PLACES, Tree


class Sources(NamedTuple):
    """What a request drafts from, and what is known of how likely drafts are accepted.

    Attributes:
        texts: The request's texts.
        recycled: Successors seen in logits; without rows, nothing is recycled.
        weights: Weights of the model of acceptance.
        precisions: Their inverse variances.
        lean: State of the request's `Lean`.
    """

    texts: Texts
    recycled: Successors
    weights: Floats
    precisions: Floats
    lean: Floats


class Copies(NamedTuple):
    """The copied tokens that may follow one node, in order of their first places.

    Attributes:
        tokens: [MAX_PLACES] the tokens.
        spans: [MAX_PLACES, 2] the run of the tree's pool with the places of each.
        number: [MAX_PLACES] scratch: which of the copies each place of the node belongs to.
    """

    tokens: Longs
    spans: Longs
    number: Longs


def no_copies() -> Copies:
    """Return room for copies."""
    return Copies(
        np.empty(MAX_PLACES, np.int64),
        np.empty((MAX_PLACES, 2), np.int64),
        np.empty(MAX_PLACES, np.int64),
    )


@compiled
def look_up(sources: Sources, tree: Tree, node: int, last: int) -> None:
    """Note the recycled successors of a node's token `last`."""
    row = row_of(sources.recycled, last)
    count = min(RECYCLED_RANKS, sources.recycled.counts[row])
    for rank in range(count):
        tree.successors[node + 1, rank] = sources.recycled.table[row, rank]
    tree.counts[node + 1] = count


@compiled
def follow(sources: Sources, tree: Tree, node: int, depth: int, copies: Copies) -> int:
    """Group a node's places by the token that follows them, in runs at the end of the pool.

    Args:
        sources: What the request drafts from.
        tree: The draft so far.
        node: The node, `ROOT` for the end of the context.
        depth: Tokens from the root to it.
        copies: Receives the copied tokens.

    Returns:
        How many there are.
    """
    texts, pool, spans = sources.texts, tree.pool, copies.spans
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    count = varying(0)
    for place in range(begin, end):
        position = tree.places[0, pool[place]] + depth
        token = texts.tokens[position] if position < texts.size[0] else NO_TOKEN
        number = -1
        if token != NO_TOKEN:
            number = 0
            while number < count and copies.tokens[number] != token:
                number += 1
            if number == count:
                copies.tokens[count] = token
                spans[count, 1] = 0
                count += 1
            spans[number, 1] += 1
        copies.number[place - begin] = number
    used = tree.size[1]
    for number in range(count):
        size = spans[number, 1]
        spans[number, 0] = spans[number, 1] = used
        used += size
    for place in range(begin, end):
        number = copies.number[place - begin]
        if number >= 0:
            pool[spans[number, 1]] = pool[place]
            spans[number, 1] += 1
    tree.size[1] = used
    return count


@compiled
def evidence_of(
    sources: Sources, tree: Tree, node: int, depth: int, copies: Copies, number: int
) -> Evidence:
    """Describe a copied token that may follow a node, one of those that `follow` found."""
    pool, places = tree.pool, tree.places
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    first = pool[copies.spans[number, 0]]
    length, distance, source = places[1, first], places[2, first], places[3, first]
    votes, voters = varying(0), varying(0)
    for place in range(copies.spans[number, 0], copies.spans[number, 1]):
        votes += places[1, pool[place]] == length
        distance = min(distance, places[2, pool[place]])
    for place in range(begin, end):
        inside = places[0, pool[place]] + depth < sources.texts.size[0]
        voters += inside and places[1, pool[place]] == length
    return copy_evidence(
        min(length + depth, MAX_MATCH_LENGTH),
        distance,
        depth,
        source,
        votes,
        voters,
        copies.spans[number, 1] - copies.spans[number, 0],
        end - begin,
        places[1, pool[begin]] - length,
        _rank(tree, node, copies.tokens[number]),
    )


@compiled
def chance_of(
    sources: Sources, tree: Tree, node: int, depth: int, copies: Copies, number: int
) -> float:
    """Return how probable a copied token is, one of those that `follow` found."""
    evidence = evidence_of(sources, tree, node, depth, copies, number)
    return probability(sources.weights, sources.lean, evidence)


@compiled
def recycled_chance(sources: Sources, tree: Tree, node: int, depth: int, rank: int) -> float:
    """Return how probable a recycled successor of a node is that is not copied there."""
    evidence = recycled_evidence(rank, depth, longest(tree, node, depth))
    return probability(sources.weights, sources.lean, evidence)


@compiled
def is_copied(copies: Copies, count: int, token: int) -> bool:
    """Return whether a token is among the first `count` copies."""
    number = 0
    while number < count and copies.tokens[number] != token:
        number += 1
    return number < count


@compiled
def longest(tree: Tree, node: int, depth: int) -> int:
    """Return the longest match that offers a token behind a node; 0 for none."""
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    return tree.places[1, tree.pool[begin]] + depth if end > begin else 0


@compiled
def _rank(tree: Tree, node: int, token: int) -> int:
    """Return the rank of a token among a node's recycled successors."""
    count = tree.counts[node + 1]
    if count <= 0:
        return NO_SUCCESSORS
    for rank in range(count):
        if tree.successors[node + 1, rank] == token:
            return rank
    return RECYCLED_RANKS
