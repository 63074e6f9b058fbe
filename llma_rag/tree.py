"""A draft as a tree of nodes, with the places behind each; arrays, written by compiled code."""

from typing import NamedTuple

import numpy as np

from llma_rag.acceptance import RECYCLED_RANKS
from llma_rag.compiled import Floats, Longs, compiled

ROOT = -1
"""Parent of a node that follows the last committed token."""

RECYCLED = -1
"""Position of a token that no text gave."""

MAX_PLACES = 104
"""Most places from which a draft grows."""


class Tree(NamedTuple):
    """A grown draft and what is needed to learn from its verification.

    Rows of `spans`, `successors` and `counts` stand for the root and then for each node.

    Attributes:
        tokens: [nodes] token of each node.
        parents: [nodes] parent of each node.
        positions: [nodes] where each token was copied from; `RECYCLED` for recycled ones.
        paths: [nodes] probability of the path to each node.
        places: [4, MAX_PLACES] position of the token after the context, match length, distance from
            the last copy and source of each place that continues the context.
        pool: Numbers of places, in runs.
        spans: [nodes + 1, 2] the run of `pool` that holds the path to a node: begin and end.
        successors: [nodes + 1, RECYCLED_RANKS] recycled successors that were looked up.
        counts: [nodes + 1] how many these are; -1 where a node's successors were not asked for.
        size: [2] nodes, and numbers in the pool.
    """

    tokens: Longs
    parents: Longs
    positions: Longs
    paths: Floats
    places: Longs
    pool: Longs
    spans: Longs
    successors: Longs
    counts: Longs
    size: Longs


def tree_for(nodes: int) -> Tree:
    """Return an empty tree with room for `nodes`."""
    return Tree(
        tokens=np.empty(nodes, np.int64),
        parents=np.empty(nodes, np.int64),
        positions=np.empty(nodes, np.int64),
        paths=np.empty(nodes, np.float64),
        places=np.empty((4, MAX_PLACES), np.int64),
        # Every node is followed once, and learning follows one of them again.
        pool=np.empty((nodes + 3) * MAX_PLACES, np.int64),
        spans=np.zeros((nodes + 1, 2), np.int64),
        successors=np.empty((nodes + 1, RECYCLED_RANKS), np.int64),
        counts=np.full(nodes + 1, -1, np.int64),
        size=np.zeros(2, np.int64),
    )


@compiled
def clear(tree: Tree, places: int) -> None:
    """Empty a tree whose `places` hold so many places."""
    tree.size[0], tree.size[1] = 0, places
    for number in range(places):
        tree.pool[number] = number
    tree.spans[0, 0], tree.spans[0, 1] = 0, places
    tree.counts[0] = -1


@compiled
def add(
    tree: Tree, token: int, parent: int, path: float, begin: int, end: int, position: int
) -> int:
    """Append a node whose path the places in `pool[begin:end]` hold; return its number."""
    node: int = tree.size[0]
    tree.tokens[node], tree.parents[node], tree.positions[node] = token, parent, position
    tree.paths[node] = path
    tree.spans[node + 1, 0], tree.spans[node + 1, 1] = begin, end
    tree.counts[node + 1] = -1
    tree.size[0] = node + 1
    return node


@compiled
def child(tree: Tree, node: int, token: int) -> int:
    """Return the child of a node that holds `token`; `ROOT` if there is none."""
    for other in range(node + 1, tree.size[0]):
        if tree.tokens[other] == token and tree.parents[other] == node:
            return other
    return ROOT
