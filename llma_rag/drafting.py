"""Propose the tokens that come next, without a model."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, overload

from llma_rag.acceptance import (
    ANSWER,
    EARLIER,
    FAR,
    PROMPT,
    REFERENCE,
    REPEAT,
    AcceptanceModel,
    Lean,
)
from llma_rag.budget import Budget
from llma_rag.chains import Chain
from llma_rag.costs import CostCurve
from llma_rag.expansion import Grower
from llma_rag.index import MAX_INDEXED_TOKENS, SuffixIndex
from llma_rag.outlook import Outlook
from llma_rag.tree import ROOT, Candidate, Successors, Tree

CANDIDATES, LEAST_CANDIDATES = 96, 16
"""Most places from which a large tree and a chain is grown."""

WEAK_LENGTH, WEAK_CANDIDATES = 2, 8
"""Longest match of which chains take fewer places, and how many: more gained nothing."""

SLACK, SLACK_PER_TOKEN = 0.3, 0.01
"""Passes of plain decoding that drafts of one answer may lose, at first and for every token."""

LOCI = 2
"""Places of the last accepted copy that are remembered (a reference and its copy in the prompt)."""

PRIOR_PRICE, PRIOR_STEPS = 1.6, 10
"""Tokens per unit of time expected of a request, and the steps for which that counts."""


class Place(NamedTuple):
    """Where a token was copied from: token `offset` of segment `segment` of the index."""

    segment: int
    offset: int


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
        max_indexed_tokens: int = MAX_INDEXED_TOKENS,
        costs: CostCurve | None = None,
        acceptance: AcceptanceModel | None = None,
        successors: Successors | None = None,
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
            min_match_length: Shortest match that is copied from, at least 1.
            banned_tokens: Ids that are never drafted (special tokens).
            vocab_size: Ids at or above it are never drafted.
            max_indexed_tokens: Most tokens of all texts that are indexed.
            costs: What a pass costs by its width; a node is drafted only where it pays. None fills
                the budget.
            acceptance: Model of acceptance, which learns from every draft; share one instance
                among the requests of one model. None starts from the shipped one.
            successors: Gives recycled successors of a token, see `llma_rag.recycling`.
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
        self.max_draft_tokens = max_draft_tokens
        self.max_depth = max_depth
        self.branching = branching
        self.min_match_length = min_match_length
        self.index = SuffixIndex(
            [*references, *earlier, *repeats, prompt],
            banned_tokens=banned_tokens,
            vocab_size=vocab_size,
            max_tokens=max_indexed_tokens,
        )
        self._sources = _Sources(self.index, len(references), len(earlier), len(repeats))
        self._costs = costs
        self._acceptance = acceptance or AcceptanceModel.shipped()
        self._lean = Lean()
        self._outlook = Outlook(self.index, self._acceptance, self._lean, successors)
        self._turn = 0
        self._seen = len(prompt)
        self._tree = Tree()
        self._loci = self._sources.first_loci()
        self._gained, self._spent = PRIOR_PRICE * PRIOR_STEPS, float(PRIOR_STEPS)

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose the most probable continuations, at most `budget` tokens.

        >>> drafter = ReferenceDrafter([[7, 8, 9, 4]], [1, 2])
        >>> drafter.draft([1, 2, 7, 8], budget=3).tokens
        (9, 4)
        """
        new = context[self._seen :]
        self._seen = len(context)
        if new:
            self._learn(new)
            self.index.extend(new)
        if not context:
            return Draft()
        nodes = self._affordable(min(budget, self.max_draft_tokens))
        price = self._gained / self._spent
        self._outlook.refresh()
        grower = (Grower if self.branching else Chain)(
            self._outlook, Budget(nodes, self.max_depth, self._costs, price)
        )
        self._tree = tree = grower.grow(self._candidates(context, nodes), context[-1])
        if not tree.tokens:
            return Draft()
        return Draft(
            tokens=tuple(tree.tokens),
            parents=tuple(tree.parents),
            places=Places(tree, self._sources),
            probabilities=tuple(tree.probabilities),
        )

    def _affordable(self, nodes: int) -> int:
        """Return how many of `nodes` may all be wrong without losing more than the slack allows.

        This bounds what references can cost that were made to mislead.
        """
        costs = self._costs
        if costs is None:
            return nodes
        answered = self._gained - PRIOR_PRICE * PRIOR_STEPS
        lost = self._spent - PRIOR_STEPS - answered
        room = SLACK + SLACK_PER_TOKEN * answered - lost
        if costs(nodes + 1) - 1.0 <= room:
            return nodes
        return bisect_right(range(nodes), 1.0 + room, key=lambda more: costs(more + 2))

    def _candidates(self, context: Sequence[int], nodes: int) -> list[Candidate]:
        wanted = nodes * 3 // 2 if self.branching else LEAST_CANDIDATES
        limit = min(max(wanted, LEAST_CANDIDATES), CANDIDATES)
        borders, sources = self._sources.borders, self._sources.sources
        near, far = [*self._loci, -FAR, -FAR][:2]
        near_end, far_end = near + FAR, far + FAR
        found: list[Candidate] = []
        places = self.index.places(context, limit)
        if not self.branching and places and places[0][1] <= WEAK_LENGTH:
            del places[WEAK_CANDIDATES:]
        for position, length in places:
            distance = FAR
            if near <= position < near_end:
                distance = position - near
            elif far <= position < far_end:
                distance = position - far
            found.append((position, length, distance, sources[bisect_right(borders, position)]))
        if self.min_match_length > 1:
            found = [place for place in found if place[1] >= self.min_match_length]
        return found

    def _learn(self, new: Sequence[int]) -> None:
        """Compare the last tree with what followed."""
        tree, model, lean = self._tree, self._acceptance, self._lean
        self._gained += len(new)
        self._spent += 1.0 if self._costs is None else self._costs(len(tree.tokens) + 1)
        node, depth, tokens = ROOT, 0, self.index.tokens
        self._turn += 1
        for token in new:
            for offered, evidence in tree.offered(node, depth, tokens, self._turn):
                model.observe(evidence, lean, offered == token)
            child = tree.child(node, token)
            if child is None:
                break
            node, depth = child, depth + 1
        places = tree.candidates[node + 1]
        if node != ROOT and places:
            self._loci = [place[0] + depth - 1 for place in places[:LOCI]]


class _Sources:
    """Tells what a position of the index belongs to, in the numbering that callers know.

    Attributes:
        borders: Positions from which on the next of `sources` holds.
        sources: Sources in the order of the index, as `llma_rag.acceptance` names them.
    """

    def __init__(self, index: SuffixIndex, references: int, earlier: int, repeats: int) -> None:
        self._index = index
        self._references = references
        self._extra = earlier + repeats
        first, second = references + earlier, references + earlier + repeats
        self.borders = [
            index.starts[references],
            index.starts[first],
            index.starts[second],
            index.starts[-1],
        ]
        self.sources = (REFERENCE, EARLIER, REPEAT, PROMPT, ANSWER)
        self._repeats = index.starts[first:second]

    def first_loci(self) -> list[int]:
        """Return where a copy is expected to go on before anything was copied."""
        return [*self._repeats[:LOCI]]

    def place(self, position: int | None) -> Place | None:
        """Return the place of a position; earlier answers count after the answer."""
        if position is None:
            return None
        segment, offset = self._index.locate(position)
        if segment < self._references:
            return Place(segment, offset)
        if segment < self._references + self._extra:
            return Place(segment + 2, offset)
        return Place(segment - self._extra, offset)


class Places(Sequence[Place | None]):
    """The place of each node of a tree, worked out where it is asked for.

    Places are so chosen that the best path is a run of one text.
    """

    def __init__(self, tree: Tree, sources: _Sources) -> None:
        self._tree = tree
        self._sources = sources
        self._joined: list[int | None] = []

    def __len__(self) -> int:
        return len(self._tree.tokens)

    @overload
    def __getitem__(self, node: int) -> Place | None: ...

    @overload
    def __getitem__(self, node: slice) -> tuple[Place | None, ...]: ...

    def __getitem__(self, node: int | slice) -> Place | tuple[Place | None, ...] | None:
        if not self._joined:
            self._joined = self._join()
        if isinstance(node, slice):
            return tuple(map(self._sources.place, self._joined[node]))
        return self._sources.place(self._joined[node])

    def _join(self) -> list[int | None]:
        tree = self._tree
        positions = list(tree.positions)
        for node in range(len(positions) - 1, -1, -1):
            position, parent = positions[node], tree.parents[node]
            if position is not None and parent != ROOT and positions[parent] is not None:
                positions[parent] = position - 1
        return positions
