"""Tell which tokens may follow a node of a draft, and how probable they are; compiled."""

from typing import NamedTuple

import numpy as np

from llma_rag.acceptance import (
    NO_SUCCESSORS,
    RECYCLED_RANKS,
    Evidence,
    copy_evidence,
    probability,
    recycled_evidence,
)
from llma_rag.compiled import Floats, Longs, compiled, varying
from llma_rag.matching import MAX_MATCH_LENGTH, NO_TOKEN, Texts, may_copy
from llma_rag.recycling import Successors, row_of
from llma_rag.tree import MAX_PLACES, RECYCLED, Tree

MAX_OFFERS = MAX_PLACES + RECYCLED_RANKS
"""Most tokens that may follow a node."""


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


class Offers(NamedTuple):
    """The tokens that may follow one node: copied ones by their first places, then recycled ones.

    Attributes:
        tokens: [MAX_OFFERS] the tokens.
        spans: [MAX_OFFERS, 2] the run of the tree's pool with the places of each.
        positions: [MAX_OFFERS] where each token stands, `RECYCLED` where no text gives it.
        chances: [MAX_OFFERS] how probable each is if the node is right.
        number: [MAX_PLACES] scratch: which of the copies each place of the node belongs to.
    """

    tokens: Longs
    spans: Longs
    positions: Longs
    chances: Floats
    number: Longs


def no_offers() -> Offers:
    """Return room for offers."""
    return Offers(
        np.empty(MAX_OFFERS, np.int64),
        np.empty((MAX_OFFERS, 2), np.int64),
        np.empty(MAX_OFFERS, np.int64),
        np.empty(MAX_OFFERS, np.float64),
        np.empty(MAX_PLACES, np.int64),
    )


@compiled
def offer(
    sources: Sources, tree: Tree, node: int, depth: int, last: int, recycled: int, offers: Offers
) -> int:
    """Find what may be drafted behind a node.

    Args:
        sources: What the request drafts from.
        tree: The draft so far; remembers the recycled successors that are looked up.
        node: The node, `ROOT` for the end of the context.
        depth: Tokens from the root to it.
        last: The node's token.
        recycled: Most recycled tokens that are offered, best first.
        offers: Receives the tokens.

    Returns:
        How many there are.
    """
    _look_up(sources, tree, node, last)
    copied = follow(sources, tree, node, depth, offers)
    for number in range(copied):
        evidence = evidence_of(sources, tree, node, depth, offers, number)
        offers.chances[number] = probability(sources.weights, sources.lean, evidence)
        offers.positions[number] = tree.places[0, tree.pool[offers.spans[number, 0]]] + depth
    count = copied
    for rank in range(tree.counts[node + 1]):
        token = tree.successors[node + 1, rank]
        if count - copied == recycled:
            break
        if not is_copied(offers, copied, token) and may_copy(sources.texts, token):
            known = recycled_evidence(rank, depth, longest(tree, node, depth))
            offers.chances[count] = probability(sources.weights, sources.lean, known)
            offers.tokens[count], offers.positions[count] = token, RECYCLED
            offers.spans[count, 0] = offers.spans[count, 1] = 0
            count += 1
    return count


@compiled
def _look_up(sources: Sources, tree: Tree, node: int, last: int) -> None:
    """Note the recycled successors of a node's token `last`."""
    row = row_of(sources.recycled, last)
    count = min(RECYCLED_RANKS, sources.recycled.counts[row])
    for rank in range(count):
        tree.successors[node + 1, rank] = sources.recycled.table[row, rank]
    tree.counts[node + 1] = count


@compiled
def follow(sources: Sources, tree: Tree, node: int, depth: int, offers: Offers) -> int:
    """Group a node's places by the token that follows them, in runs at the end of the pool.

    Args:
        sources: What the request drafts from.
        tree: The draft so far.
        node: The node, `ROOT` for the end of the context.
        depth: Tokens from the root to it.
        offers: Receives the copied tokens.

    Returns:
        How many there are.
    """
    texts, pool, spans = sources.texts, tree.pool, offers.spans
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    count = varying(0)
    for place in range(begin, end):
        position = tree.places[0, pool[place]] + depth
        token = texts.tokens[position] if position < texts.size[0] else NO_TOKEN
        number = -1
        if token != NO_TOKEN:
            number = 0
            while number < count and offers.tokens[number] != token:
                number += 1
            if number == count:
                offers.tokens[count] = token
                spans[count, 1] = 0
                count += 1
            spans[number, 1] += 1
        offers.number[place - begin] = number
    used = tree.size[1]
    for number in range(count):
        size = spans[number, 1]
        spans[number, 0] = spans[number, 1] = used
        used += size
    for place in range(begin, end):
        number = offers.number[place - begin]
        if number >= 0:
            pool[spans[number, 1]] = pool[place]
            spans[number, 1] += 1
    tree.size[1] = used
    return count


@compiled
def evidence_of(
    sources: Sources, tree: Tree, node: int, depth: int, offers: Offers, number: int
) -> Evidence:
    """Describe a copied token that may follow a node, one of those that `follow` found."""
    pool, places = tree.pool, tree.places
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    first = pool[offers.spans[number, 0]]
    length, distance, source = places[1, first], places[2, first], places[3, first]
    votes, voters = varying(0), varying(0)
    for place in range(offers.spans[number, 0], offers.spans[number, 1]):
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
        offers.spans[number, 1] - offers.spans[number, 0],
        end - begin,
        places[1, pool[begin]] - length,
        _rank(tree, node, offers.tokens[number]),
    )


@compiled
def is_copied(offers: Offers, count: int, token: int) -> bool:
    """Return whether a token is among the first `count` offers."""
    number = 0
    while number < count and offers.tokens[number] != token:
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
