"""Grow a token tree out of places that continue the context, likeliest paths first; compiled."""

from heapq import heappop, heappush

from llma_rag.acceptance import RECYCLED_RANKS
from llma_rag.budget import Budget, pays
from llma_rag.compiled import compiled, varying
from llma_rag.outlook import MAX_OFFERS, Offers, Sources, offer
from llma_rag.tree import ROOT, Tree, add

Entry = tuple[float, int, int, int, int, int, int, int]
"""Negated probability, number, token, parent, depth, begin and end in the pool, position."""


@compiled
def grow_tree(sources: Sources, tree: Tree, budget: Budget, last: int, offers: Offers) -> None:
    """Draft what the tree's places and successors of `last`, the context's last token, foretell."""
    node, depth, path, gain = varying(ROOT), varying(0), 1.0, 0.0
    heap = [(path, node, last, node, depth, node, node, node)]
    heap.pop()
    while tree.size[0] < budget.nodes:
        if depth < budget.depth:
            _expand(sources, tree, budget, offers, heap, node, depth, path, last)
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
    offers: Offers,
    heap: list[Entry],
    node: int,
    depth: int,
    path: float,
    last: int,
) -> None:
    """Offer what may follow a node to the heap."""
    # Among equals the offers of a node keep their order, and nodes that of their drafting.
    first = (node + 1) * MAX_OFFERS
    count = offer(sources, tree, node, depth, last, varying(RECYCLED_RANKS), offers)
    for number in range(count):
        likely = path * offers.chances[number]
        if likely > budget.least:
            token, position = offers.tokens[number], offers.positions[number]
            begin, end = offers.spans[number, 0], offers.spans[number, 1]
            entry = (-likely, first + number, token, node, depth + 1, begin, end, position)
            heappush(heap, entry)
