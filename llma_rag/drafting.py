"""Propose the tokens that come next, without a model."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llma_rag.acceptance import AcceptanceModel, Lean
from llma_rag.bearings import Bearings, add_resumed, take_bearings
from llma_rag.budget import Budget, best_size, budget_of
from llma_rag.chains import grow_chain
from llma_rag.compiled import Longs, compiled
from llma_rag.costs import CostCurve
from llma_rag.expansion import grow_tree
from llma_rag.index import SuffixIndex
from llma_rag.learning import learn
from llma_rag.matching import MAX_MATCH_LENGTH, RECENT_PLACES, append, find_places
from llma_rag.outlook import Offers, Sources, no_offers
from llma_rag.places import Place, Places, Regions
from llma_rag.recycling import Recycler, empty
from llma_rag.tree import MAX_PLACES, Tree, clear, tree_for

CANDIDATES, LEAST_CANDIDATES = MAX_PLACES - RECENT_PLACES, 16
"""Most places from which a large tree and a chain is grown."""

WEAK_LENGTH, WEAK_CANDIDATES = 2, 8
"""Longest match of which chains take fewer places, and how many: more gained nothing."""

SLACK, SLACK_PER_TOKEN = 0.3, 0.01
"""Passes of plain decoding that drafts of one answer may lose, at first and for every token."""

NOTHING = empty()
"""Successors of no token."""

PRIOR_PRICE, PRIOR_STEPS = 1.6, 10
"""Tokens per unit of time expected of a request, and the steps for which that counts."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens as a tree; a chain is a tree without branches.

    Nodes stand in an order in which a parent precedes its children.

    Attributes:
        tokens: Token id of each node.
        parents: Index of each node's parent, `ROOT` for a node that follows the context.
        places: Where each token was copied from; None for a token that no text gave.
        probabilities: Estimated probability that the whole path to the node is accepted; empty
            where the drafter does not estimate it.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    places: Sequence[Place | None] = ()
    probabilities: tuple[float, ...] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int], places: Sequence[Place | None] = ()) -> "Draft":
        """Return the draft of one run of tokens.

        >>> Draft.chain([5, 6]).parents
        (-1, 0)
        """
        return cls(
            tokens=tuple(tokens),
            parents=tuple(range(-1, len(tokens) - 1)),
            places=tuple(places) if places else (None,) * len(tokens),
        )

    @property
    def is_chain(self) -> bool:
        """Whether every node follows the node before it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def __len__(self) -> int:
        return len(self.tokens)


class Drafter(Protocol):
    """Proposes continuations of one request's context; made anew for every request."""

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose at most `budget` nodes that may follow `context`.

        Args:
            context: Token ids of the prompt and of the answer so far; between two calls it only
                grows, so that what followed the last draft tells which of its nodes were right.
            budget: Most nodes the caller will verify, at least 0.
        """
        ...


class ReferenceDrafter:
    """Drafts what followed the longest match of the context's end in references, prompt or answer.

    `Place.segment` counts the references from 0 in the order given, then the prompt, then the
    answer, whose offsets count from the answer's first token, then the earlier answers. Among
    equally probable copies the earliest segment comes first.

    Attributes:
        index: Where the texts were indexed; tells what was truncated.
    """

    def __init__(
        self,
        references: Sequence[Sequence[int]],
        prompt: Sequence[int],
        *,
        max_draft_tokens: int = 32,
        max_depth: int = 64,
        branching: bool = False,
        min_match_length: int = 1,
        banned_tokens: frozenset[int] = frozenset(),
        vocab_size: int | None = None,
        costs: CostCurve | None = None,
        acceptance: AcceptanceModel | None = None,
        recycler: Recycler | None = None,
        earlier: Sequence[Sequence[int]] = (),
        repeats: Sequence[Sequence[int]] = (),
    ) -> None:
        """Index the texts of one request.

        Args:
            references: Token ids of each reference, without special tokens.
            prompt: Token ids of the prompt; `draft` expects a context that begins with them.
            max_draft_tokens: Most nodes of a draft, at least 0.
            max_depth: Most tokens of one path, at least 1.
            branching: Draft trees; False drafts chains.
            min_match_length: Shortest match that is copied from, at least 1. With 1, a copy that
                one other token interrupted is also taken up again where nothing matches.
            banned_tokens: Ids that are never drafted (special tokens).
            vocab_size: Ids at or above it are never drafted.
            costs: What a pass costs by its width; a node is drafted only where it pays. None fills
                the budget.
            acceptance: Model of acceptance, which learns from every draft; share one instance
                among the requests of one model. None starts from the shipped one.
            recycler: Knows recycled successors of tokens; None recycles nothing.
            earlier: Token ids of earlier answers.
            repeats: Token ids of earlier answers to this very request.

        Raises:
            ValueError: If a number is out of its range.
        """
        for name, value, least in (
            ("min_match_length", min_match_length, 1),
            ("max_draft_tokens", max_draft_tokens, 0),
            ("max_depth", max_depth, 1),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        self.max_depth = max_depth
        self.branching = branching
        self.min_match_length = min_match_length
        self.index = SuffixIndex(
            [*references, *earlier, *repeats, prompt],
            banned_tokens=banned_tokens,
            vocab_size=vocab_size,
        )
        self._regions = Regions(
            self.index, references=len(references), earlier=len(earlier), repeats=len(repeats)
        )
        self._costs = costs
        self._acceptance = acceptance or AcceptanceModel.shipped()
        self._lean = Lean()
        self._recycler = recycler
        self._offers = no_offers()
        self._tree = tree_for(max_draft_tokens)
        self._bearings = self._regions.bearings()
        self._seen = len(prompt)
        self._gained, self._spent = PRIOR_PRICE * PRIOR_STEPS, float(PRIOR_STEPS)

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose the most probable continuations, at most `budget` tokens.

        >>> drafter = ReferenceDrafter([[7, 8, 9, 4]], [1, 2])
        >>> drafter.draft([1, 2, 7, 8], budget=3).tokens
        (9, 4)
        """
        new = max(0, len(context) - self._seen)
        self._seen = len(context)
        if not context:
            return Draft()
        if new:
            self._gained += new
            drafted = int(self._tree.size[0])
            self._spent += 1.0 if self._costs is None else self._costs(drafted + 1)
            self.index.make_room(new)
        nodes = self._affordable(min(budget, len(self._tree.tokens)))
        size = _step(
            self._sources(),
            self._tree,
            self._offers,
            self._bearings,
            budget_of(nodes, self.max_depth, self._costs, self._gained / self._spent),
            np.array(context[-MAX_MATCH_LENGTH - new :], np.int64),
            new,
            self.min_match_length,
            self.branching,
        )
        return self._draft_of(size)

    def _sources(self) -> Sources:
        """Return the arrays that are looked at; some are exchanged for larger ones in time."""
        model, recycler = self._acceptance, self._recycler
        recycled = NOTHING if recycler is None else recycler.table
        texts = self.index.texts
        return Sources(texts, recycled, model.weights, model.precisions, self._lean.state)

    def _draft_of(self, size: int) -> Draft:
        """Return the first nodes of the tree."""
        if not size:
            return Draft()
        tree = self._tree
        return Draft(
            tokens=tuple(tree.tokens[:size].tolist()),
            parents=tuple(tree.parents[:size].tolist()),
            places=Places(tree.positions[:size].tolist(), self._regions),
            probabilities=tuple(tree.paths[:size].tolist()),
        )

    def _affordable(self, nodes: int) -> int:
        """Return how many of `nodes` may all be wrong without losing more than the slack allows.

        This bounds what references can cost that were made to mislead.
        """
        costs = self._costs
        if costs is None or nodes == 0:
            return nodes
        answered = self._gained - PRIOR_PRICE * PRIOR_STEPS
        lost = self._spent - PRIOR_STEPS - answered
        room = SLACK + SLACK_PER_TOKEN * answered - lost
        return max(0, bisect_right(costs.table(nodes).times, 1.0 + room) - 1)


def compile_drafter() -> Iterator[None]:
    """Compile what drafts, part after part.

    Takes some seconds once per installation, and a fraction of one in later processes.
    """
    CostCurve.linear(0.1).observe(1, 1.0)
    recycler = Recycler()
    drafter = ReferenceDrafter([[1, 2, 3]], [1], recycler=recycler)
    drafter.index.matches([1])
    yield
    recycler.observe([1], np.array([[2]]))
    yield
    for context in ([1, 1], [1, 1, 2]):
        drafter.draft(context, 1)
    yield


@compiled
def _step(
    sources: Sources,
    tree: Tree,
    offers: Offers,
    bearings: Bearings,
    budget: Budget,
    context: Longs,
    new: int,
    min_match_length: int,
    branching: bool,
) -> int:
    """Learn from the last draft and grow the next one in its stead; compiled.

    Args:
        sources: What the request drafts from.
        tree: The last draft.
        offers: Scratch.
        bearings: Where the last copy was, and where which kind of text stands.
        budget: When the draft is complete.
        context: The end of the context: `MAX_MATCH_LENGTH` tokens and the new ones, or all.
        new: Tokens that followed the last draft.
        min_match_length: Shortest match that is copied from.
        branching: Whether the draft is a tree.

    Returns:
        Nodes of the draft.
    """
    if new:
        fresh = context[len(context) - new :]
        learn(sources, tree, offers, bearings, fresh)
        for token in fresh:
            append(sources.texts, token)
    tail, last = context[max(0, len(context) - MAX_MATCH_LENGTH) :], context[-1]
    limit = min(max(budget.nodes * 3 // 2 if branching else 0, LEAST_CANDIDATES), CANDIDATES)
    found = find_places(sources.texts, tail, limit, tree.places[0], tree.places[1])
    if found and not branching and tree.places[1, 0] <= WEAK_LENGTH:
        found = min(found, WEAK_CANDIDATES)
    while found and tree.places[1, found - 1] < min_match_length:
        found -= 1
    if min_match_length == 1:
        found = add_resumed(sources.texts, bearings, tree.places, found, last)
    take_bearings(bearings, tree.places, found)
    clear(tree, found)
    if branching:
        grow_tree(sources, tree, budget, last, offers)
    else:
        grow_chain(sources, tree, budget, last, offers)
    size = best_size(budget, tree.paths[: tree.size[0]])
    tree.size[0] = size
    return size
