"""Learn from a verified draft what it tells of the model of acceptance; compiled."""

from llma_rag.acceptance import observe, recycled_evidence
from llma_rag.bearings import Bearings, note_copy
from llma_rag.compiled import Longs, compiled, varying
from llma_rag.outlook import Offers, Sources, evidence_of, follow, is_copied, longest
from llma_rag.tree import ROOT, Tree, child


@compiled
def learn(sources: Sources, tree: Tree, offers: Offers, bearings: Bearings, new: Longs) -> None:
    """Compare the last draft with the tokens that followed.

    Args:
        sources: What the request drafts from; its weights change.
        tree: The draft.
        offers: Scratch.
        bearings: Receive where the last accepted copy was.
        new: Tokens that followed the context of the draft.
    """
    node = varying(ROOT)
    for depth in range(len(new) + 1):
        following = varying(ROOT)
        if depth < len(new):
            _observe_offers(sources, tree, offers, node, depth, new[depth])
            following = child(tree, node, new[depth])
        if following == ROOT:
            note_copy(bearings, tree, node, depth, len(new) - depth)
            return
        node = following


@compiled
def _observe_offers(
    sources: Sources, tree: Tree, offers: Offers, node: int, depth: int, token: int
) -> None:
    """Learn from all that was seen to follow a node, drafted or not; `token` was right."""
    # A node with several places was followed if its successors were asked for, too.
    used, count = tree.size[1], varying(0)
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    if tree.counts[node + 1] >= 0 or end - begin == 1:
        count = follow(sources, tree, node, depth, offers)
        tree.size[1] = used
    for copy in range(count):
        right = offers.tokens[copy] == token
        copied = evidence_of(sources, tree, node, depth, offers, copy)
        observe(sources.weights, sources.precisions, sources.lean, copied, right)
    for rank in range(tree.counts[node + 1]):
        if not is_copied(offers, count, tree.successors[node + 1, rank]):
            right = tree.successors[node + 1, rank] == token
            recycled = recycled_evidence(rank, depth, longest(tree, node, depth))
            observe(sources.weights, sources.precisions, sources.lean, recycled, right)
