"""Grow a chain out of places that continue the context, always by the likeliest token; compiled."""

from llma_rag.budget import Budget, pays
from llma_rag.compiled import compiled, varying
from llma_rag.outlook import Offers, Sources, offer
from llma_rag.tree import ROOT, Tree, add


@compiled
def grow_chain(sources: Sources, tree: Tree, budget: Budget, last: int, offers: Offers) -> None:
    """Draft what the tree's places and successors of `last`, the context's last token, foretell."""
    node, path, gain = varying(ROOT), 1.0, 0.0
    for depth in range(min(budget.nodes, budget.depth)):
        best, likeliest = -1, 0.0
        for number in range(offer(sources, tree, node, depth, last, varying(1), offers)):
            if offers.chances[number] > likeliest:
                best, likeliest = number, offers.chances[number]
        path *= likeliest
        if not pays(budget, path, depth, gain):
            return
        gain += path
        last, position = offers.tokens[best], offers.positions[best]
        begin, end = offers.spans[best, 0], offers.spans[best, 1]
        node = add(tree, last, node, path, begin, end, position)
