"""Make the drafter of each request out of all that it may copy from, and keep what it leaves."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llma_rag.answers import AnswerStore, Recalled
from llma_rag.costs import CostCurve
from llma_rag.drafting import Drafter, ReferenceDrafter
from llma_rag.encoding import encode_references
from llma_rag.experience import Experience, Experiences
from llma_rag.index import MAX_INDEXED_TOKENS
from llma_rag.provenance import Provenance
from llma_rag.reference import accept_references
from llma_rag.result import GenerationRequest
from llma_rag.task import Task


@dataclass(frozen=True, slots=True)
class Drafting:
    """How drafts are made.

    Attributes:
        max_draft_tokens: Most tokens verified in one pass (the paper's k).
        max_draft_depth: Most of them behind one another.
        min_match_length: Tokens that must agree before a copy is tried (the paper's n).
        recycling: Whether requests leave experience for later ones of their namespace.
        answers: Where finished answers are kept; None keeps none.
        costs: What passes cost behind a prompt of so many tokens. None fills every draft with a
            copy, without branches or recycled tokens: whether those pay is not known.
        peer: Makes another drafter, to compare with, from the prompt's token ids; None is ours.
    """

    max_draft_tokens: int
    max_draft_depth: int
    min_match_length: int
    recycling: bool = True
    answers: AnswerStore | None = None
    costs: Callable[[int], CostCurve | None] = lambda _: None
    peer: Callable[[Sequence[int]], Drafter] | None = None


class Drafters:
    """Knows what requests draft from beside their references, and what they leave behind."""

    def __init__(
        self,
        tokenizer: Any,
        drafting: Drafting,
        *,
        banned_tokens: frozenset[int],
        vocab_size: int,
        supports_trees: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._drafting = drafting
        self._banned_tokens = banned_tokens
        self._vocab_size = vocab_size
        self._supports_trees = supports_trees

    @cached_property
    def _experiences(self) -> Experiences:
        """Made with the first request that drafts: it may be the one that measures the costs."""
        recycling = self._drafting.recycling and self._drafting.costs(0) is not None
        return Experiences(banned_tokens=self._banned_tokens, recycling=recycling)

    def experience(self, request: GenerationRequest) -> Experience:
        """Return the experience with requests of this one's namespace, if it drafts."""
        return self._experiences.of(request.namespace) if request.draft else Experience()

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that must name a namespace and does not.

        Raises:
            ValueError: If it does not.
        """
        if self._drafting.answers is not None and request.draft and not request.namespace:
            raise ValueError(
                "`namespace` must be a text that is not empty where answers are kept, got "
                f"{request.namespace!r}; name whose request this is, or pass `draft=False`."
            )

    def store(self, task: Task) -> None:
        """Keep a finished answer for later requests of its namespace."""
        answers, namespace = self._drafting.answers, task.request.namespace
        if answers is None or namespace is None or not task.request.draft:
            return
        try:
            answers.add(namespace, task.prompt, task.answer.token_ids)
        except OSError as error:
            warnings.warn(f"An answer could not be stored: {error}", stacklevel=2)

    def make(self, task: Task) -> Drafter:
        """Index the request's references; done after the first token, so as not to delay it."""
        usable = accept_references(task.request.references)
        encoded = encode_references(self._tokenizer, usable, MAX_INDEXED_TOKENS)
        prompt, recalled, experience = task.prompt, self._recalled(task), task.experience
        costs = task.costs = self._drafting.costs(len(prompt))
        drafter = ReferenceDrafter(
            encoded.token_ids,
            prompt,
            max_draft_tokens=self._drafting.max_draft_tokens,
            max_depth=self._drafting.max_draft_depth,
            branching=self._supports_trees and costs is not None and costs.branches_pay,
            min_match_length=self._drafting.min_match_length,
            banned_tokens=self._banned_tokens,
            vocab_size=self._vocab_size,
            costs=costs,
            acceptance=experience.acceptance,
            recycler=experience.recycler,
            earlier=[*self._history(task), *recalled.earlier],
            repeats=recalled.repeats,
        )
        cut = {*drafter.index.truncated, *encoded.cut} & {*range(len(usable.references))}
        task.counts.references = {
            "references_used": len(usable.references),
            "references_skipped": usable.skipped,
            "references_truncated": len(cut),
            "reference_tokens": sum(map(len, encoded.token_ids)),
        }
        task.answer.trace_with(
            Provenance(
                usable,
                encoded.offsets,
                lambda count: self._text(prompt[:count]),
                lambda number: self._text(encoded.token_ids[number]),
            )
        )
        return drafter

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def _recalled(self, task: Task) -> Recalled:
        answers, namespace = self._drafting.answers, task.request.namespace
        if answers is None or namespace is None:
            return Recalled()
        return answers.recall(namespace, task.prompt)

    def _history(self, task: Task) -> Sequence[Sequence[int]]:
        """Return the token ids of earlier turns that do not stand in the prompt."""
        history = accept_references(task.request.history)
        if not history.references:
            return ()
        prompt = self._text(task.prompt)
        missing = (one.text for one in history.references if one.text.strip() not in prompt)
        texts = accept_references(missing)
        return encode_references(self._tokenizer, texts, MAX_INDEXED_TOKENS).token_ids
