"""Grow a token tree out of places that continue the context, likeliest paths first; compiled."""

from heapq import heappop, heappush

from llma_rag.budget import Budget, pays
from llma_rag.compiled import compiled, varying
from llma_rag.matching import may_copy
from llma_rag.outlook import (
    Copies,
    Sources,
    chance_of,
    follow,
    is_copied,
    look_up,
    recycled_chance,
)
from llma_rag.tree import RECYCLED, ROOT, Tree, add

Entry = tuple[float, int, int, int, int, int, int, int]
"""Negated probability, number, token, parent, depth, begin and end in the pool, position."""


@compiled
def grow_tree(sources: Sources, tree: Tree, budget: Budget, last: int, copies: Copies) -> None:
    """Draft what the tree's places and successors of `last`, the context's last token, foretell."""
    node, depth, path, gain = varying(ROOT), varying(0), 1.0, 0.0
    heap = [(path, node, last, node, depth, node, node, node)]
    heap.pop()
    while tree.size[0] < budget.nodes:
        if depth < budget.depth:
            _expand(sources, tree, budget, copies, heap, node, depth, path, last)
        if not heap:
            return
        least, _, last, parent, depth, begin, end, position = heappop(heap)
        path = -least
        if not pays(budget, path, tree.size[0], gain):
            return
        gain += path
        node = add(tree, last, parent, path, begin, end, position)


@compiled
def _expand(
    sources: Sources,
    tree: Tree,
    budget: Budget,
    copies: Copies,
    heap: list[Entry],
    node: int,
    depth: int,
    path: float,
    last: int,
) -> None:
    """Offer what may follow a node to the heap."""
    look_up(sources, tree, node, last)
    count = follow(sources, tree, node, depth, copies)
    # Among equals the copies of a node come first, and nodes in the order of their drafting.
    order = (node + 1) * len(tree.pool)
    for copy in range(count):
        likely = path * chance_of(sources, tree, node, depth, copies, copy)
        if likely > budget.least:
            begin, end = copies.spans[copy, 0], copies.spans[copy, 1]
            position = tree.places[0, tree.pool[begin]] + depth
            token = copies.tokens[copy]
            order += 1
            heappush(heap, (-likely, order, token, node, depth + 1, begin, end, position))
    for rank in range(tree.counts[node + 1]):
        token = tree.successors[node + 1, rank]
        if is_copied(copies, count, token) or not may_copy(sources.texts, token):
            continue
        likely = path * recycled_chance(sources, tree, node, depth, rank)
        if likely > budget.least:
            order += 1
            heappush(heap, (-likely, order, token, node, depth + 1, 0, 0, RECYCLED))
