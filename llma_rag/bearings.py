"""Keep in mind where the last accepted copy was, and where which kind of text stands; compiled."""

from typing import NamedTuple

from llma_rag.acceptance import ANSWER, EARLIER, FAR, PROMPT, REFERENCE, REPEAT
from llma_rag.compiled import Longs, compiled
from llma_rag.matching import NO_TOKEN, Texts
from llma_rag.tree import ROOT, Tree

KINDS = (REFERENCE, EARLIER, REPEAT, PROMPT, ANSWER)
"""What texts are, in their order in the index."""

LOCI = 2
"""Places of the last accepted copy that are remembered (a reference and its copy in the prompt)."""

NOWHERE = -FAR
"""Position to which no text is near."""


class Bearings(NamedTuple):
    """Where the last accepted copy was, and where which kind of text stands.

    Attributes:
        loci: [LOCI] positions of the last accepted copied token, `NOWHERE` for none.
        interrupted: [1] whether one token that was not copied has followed it.
        borders: [len(KINDS) - 1] position from which on the next of `KINDS` stands.
    """

    loci: Longs
    interrupted: Longs
    borders: Longs


@compiled
def note_copy(bearings: Bearings, tree: Tree, node: int, depth: int, rest: int) -> None:
    """Note that the copies down to a node were accepted, and that `rest` tokens came instead.

    Args:
        bearings: Receive it.
        tree: The draft.
        node: The last node that was right, `ROOT` if none was.
        depth: Tokens from the root to it.
        rest: Tokens that followed it.
    """
    begin, end = tree.spans[node + 1, 0], tree.spans[node + 1, 1]
    copied = node != ROOT and end > begin
    bearings.interrupted[0] = copied and rest == 1
    if copied:
        for number in range(LOCI):
            bearings.loci[number] = NOWHERE
            if begin + number < end:
                bearings.loci[number] = tree.places[0, tree.pool[begin + number]] + depth - 1


@compiled
def add_resumed(texts: Texts, bearings: Bearings, places: Longs, found: int, last: int) -> int:
    """Add places where an interrupted copy may go on: behind an exchanged token, or at it.

    Args:
        texts: The texts.
        bearings: Where the last copy was.
        places: `Tree.places`, with room for 2 * LOCI more; the match has length 0.
        found: Places there are.
        last: Last token of the context, which interrupted the copy.

    Returns:
        How many places there are now.
    """
    if not bearings.interrupted[0]:
        return found
    for locus in bearings.loci:
        for position in (locus + 2, locus + 1):
            if 0 < position < texts.size[0] and texts.tokens[locus + 1] not in (last, NO_TOKEN):
                known = texts.tokens[position] == NO_TOKEN
                for place in range(found):
                    known = known or places[0, place] == position
                if not known:
                    places[0, found], places[1, found] = position, 0
                    found += 1
    return found


@compiled
def take_bearings(bearings: Bearings, places: Longs, found: int) -> None:
    """Fill in how far the first `found` of a tree's places are from the last copy, and their kind.

    Args:
        bearings: Where the last copy was, and where which kind of text stands.
        places: `Tree.places`; rows 2 and 3 are written.
        found: Places there are.
    """
    for place in range(found):
        position, distance, kind = places[0, place], FAR, 0
        for locus in bearings.loci:
            if distance == FAR and locus <= position < locus + FAR:
                distance = position - locus
        while kind < len(bearings.borders) and bearings.borders[kind] <= position:
            kind += 1
        places[2, place], places[3, place] = distance, KINDS[kind]
