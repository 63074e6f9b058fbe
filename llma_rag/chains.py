"""Grow a chain out of places that continue the context, always by the likeliest token; compiled."""

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


@compiled
def grow_chain(sources: Sources, tree: Tree, budget: Budget, last: int, copies: Copies) -> None:
    """Draft what the tree's places and successors of `last`, the context's last token, foretell."""
    node, path, gain = varying(ROOT), 1.0, 0.0
    for depth in range(min(budget.nodes, budget.depth)):
        look_up(sources, tree, node, last)
        count = follow(sources, tree, node, depth, copies)
        best, number, rank = 0.0, -1, varying(-1)
        for copy in range(count):
            chance = chance_of(sources, tree, node, depth, copies, copy)
            if chance > best:
                best, number = chance, copy
        other = _best_recycled(sources, tree, node, copies, count)
        if other >= 0:
            chance = recycled_chance(sources, tree, node, depth, other)
            if chance > best:
                best, rank = chance, other
        path *= best
        if not pays(budget, path, depth, gain):
            return
        gain += path
        begin = end = tree.size[1]
        position = varying(RECYCLED)
        if rank >= 0:
            last = tree.successors[node + 1, rank]
        else:
            last = copies.tokens[number]
            begin, end = copies.spans[number, 0], copies.spans[number, 1]
            position = tree.places[0, tree.pool[begin]] + depth
        node = add(tree, last, node, path, begin, end, position)


@compiled
def _best_recycled(sources: Sources, tree: Tree, node: int, copies: Copies, count: int) -> int:
    """Return the rank of the best successor that is not copied and may be drafted; -1 for none."""
    for rank in range(tree.counts[node + 1]):
        token = tree.successors[node + 1, rank]
        if not is_copied(copies, count, token) and may_copy(sources.texts, token):
            return rank
    return -1
