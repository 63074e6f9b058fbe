"""Decide which part of a draft the model's choices accept; pure functions over token ids."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

ROOT = -1


class Choice(NamedTuple):
    """One token the model chose.

    Attributes:
        token: The chosen token id.
        node: The draft node that proposed it; None for the model's own token, which ends the run.
    """

    token: int
    node: int | None


def accepted(
    tokens: Sequence[int], parents: Sequence[int], choose: Callable[[int], int]
) -> Iterator[Choice]:
    """Walk down the draft as long as the model chooses what was drafted.

    Lazy: `choose` is called once per committed token, in order, and only after the tokens before
    it were taken by the caller, so that it may depend on them (penalties, grammars, seeds).

    Args:
        tokens: Token id of each node.
        parents: Index of each node's parent, `ROOT` for children of the context.
        choose: Gives the model's token after a node; `ROOT` stands for the end of the context.

    Yields:
        Every token to commit: the accepted nodes, then the model's own token.

    >>> [c.token for c in accepted([4, 5, 9], [-1, 0, 0], {-1: 4, 0: 9, 2: 7}.__getitem__)]
    [4, 9, 7]
    """
    edges = zip(parents, tokens, strict=True)
    children = {edge: node for node, edge in enumerate(edges)}
    node = ROOT
    while True:
        token = choose(node)
        child = children.get((node, token))
        yield Choice(token, child)
        if child is None:
            return
        node = child


def depths(parents: Sequence[int]) -> list[int]:
    """Return how many nodes stand above each node.

    >>> depths([-1, 0, 0, 2])
    [0, 1, 1, 2]
    """
    found: list[int] = []
    for parent in parents:
        found.append(0 if parent == ROOT else found[parent] + 1)
    return found


def ancestors(parents: Sequence[int]) -> list[list[int]]:
    """Return the path from the first node down to each node, itself included.

    >>> ancestors([-1, 0, 0])
    [[0], [0, 1], [0, 2]]
    """
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([node] if parent == ROOT else [*paths[parent], node])
    return paths
