"""Learn from a verified draft what it tells of the model of acceptance; compiled."""

from llma_rag.acceptance import FAR, observe, recycled_evidence
from llma_rag.compiled import compiled, varying
from llma_rag.matching import Longs
from llma_rag.outlook import Copies, Sources, evidence_of, follow, is_copied, longest
from llma_rag.tree import ROOT, Tree, child

OBSERVED = 3
"""Of what may follow a node, how many tokens are learned from at a time."""

LOCI = 2
"""Places of the last accepted copy that are remembered (a reference and its copy in the prompt)."""

NOWHERE = -FAR
"""Position to which no text is near."""


@compiled
def learn(sources: Sources, tree: Tree, copies: Copies, new: Longs, loci: Longs, turn: int) -> None:
    """Compare the last draft with the tokens that followed.

    Args:
        sources: What the request drafts from; its weights change.
        tree: The draft.
        copies: Scratch.
        new: Tokens that followed the context of the draft.
        loci: [LOCI] receives where the last accepted copy goes on, `NOWHERE` for none.
        turn: Any number that grows; chooses, blind to what was right, what to learn from.
    """
    node = varying(ROOT)
    for depth in range(len(new) + 1):
        begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
        if depth == len(new):
            break
        _observe_offers(sources, tree, copies, node, depth, new[depth], turn)
        following = child(tree, node, new[depth])
        if following == ROOT:
            break
        node = following
    if node != ROOT and end > begin:
        for place in range(LOCI):
            loci[place] = NOWHERE
            if begin + place < end:
                loci[place] = tree.places[0, tree.pool[begin + place]] + depth - 1


@compiled
def _observe_offers(
    sources: Sources, tree: Tree, copies: Copies, node: int, depth: int, token: int, turn: int
) -> None:
    """Learn from some of what could follow a node, drafted or not, of which `token` was right."""
    used, count, others = tree.size[1], varying(0), 0
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    if tree.counts[node + 1] >= 0 or end - begin == 1:
        count = follow(sources, tree, node, depth, copies)
        tree.size[1] = used
    for rank in range(tree.counts[node + 1]):
        others += not is_copied(copies, count, tree.successors[node + 1, rank])
    size = count + others
    for choice in range(min(OBSERVED, size)):
        chosen = choice
        if choice == OBSERVED - 1 and size > OBSERVED:
            chosen += turn % (size - choice)
        if chosen < count:
            evidence = evidence_of(sources, tree, node, depth, copies, chosen)
            right = copies.tokens[chosen] == token
            observe(sources.weights, sources.precisions, sources.lean, evidence, right)
        else:
            rank = _other(tree, node, copies, count, chosen - count)
            right = tree.successors[node + 1, rank] == token
            known = recycled_evidence(rank, depth, longest(tree, node, depth))
            observe(sources.weights, sources.precisions, sources.lean, known, right)


@compiled
def _other(tree: Tree, node: int, copies: Copies, count: int, number: int) -> int:
    """Return the rank of a node's successor number `number` that is not copied."""
    rank = varying(0)
    while True:
        if not is_copied(copies, count, tree.successors[node + 1, rank]):
            if number == 0:
                return rank
            number -= 1
        rank += 1
