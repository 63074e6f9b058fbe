"""Drafters to measure against, each as its authors published it."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from llma_rag.drafting import Draft

HAS_SUFFIX_DECODING = find_spec("arctic_inference") is not None
"""Whether the package `arctic-inference` (Apache-2.0), only measured against, is installed."""


class PublishedLLMA:
    """LLMA (arXiv 2304.04487) as its authors' code does it: n-gram matches in the references.

    The longest n-gram of at most `longest_match` tokens and at least `min_match_length` (n) that
    stands in a reference is copied from at its first place, `draft_length` (k) tokens.
    """

    def __init__(
        self,
        references: Sequence[Sequence[int]],
        *,
        min_match_length: int = 1,
        longest_match: int = 5,
        draft_length: int = 20,
    ) -> None:
        self.draft_length = draft_length
        self._references = references
        self._lengths = range(max(longest_match, min_match_length), min_match_length - 1, -1)
        self._places: dict[tuple[int, ...], tuple[int, int]] = {}
        for length in self._lengths:
            for number, reference in enumerate(references):
                for end in range(length, len(reference)):
                    ngram = tuple(reference[end - length : end])
                    self._places.setdefault(ngram, (number, end))

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose what follows the first match of the end of `context`."""
        for length in self._lengths:
            found = self._places.get(tuple(context[-length:]))
            if found is not None:
                number, start = found
                room = min(budget, self.draft_length)
                return Draft.chain(self._references[number][start : start + room])
        return Draft()


class PromptLookup:
    """Prompt lookup as `transformers` does it: the first match of the longest n-gram.

    The context is searched anew at every step; `transformers` 5.23 with its default of n-grams of
    at most 2 tokens and 10 drafted tokens.
    """

    def __init__(self, *, match_length: int = 2, draft_length: int = 10) -> None:
        self.match_length = match_length
        self.draft_length = draft_length

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose what follows the first match of the end of `context` in itself."""
        room = min(budget, self.draft_length)
        for length in range(min(self.match_length, len(context) - 1), 0, -1):
            start = _find_first(context, context[-length:])
            if start is not None:
                return Draft.chain(context[start + length : start + length + room])
        return Draft()


def _find_first(context: Sequence[int], ngram: Sequence[int]) -> int | None:
    """Return where `ngram` first stands in `context` with a token behind it."""
    first, length, last = ngram[0], len(ngram), len(context) - len(ngram)
    start = -1
    while True:
        try:
            start = context.index(first, start + 1, last)
        except ValueError:
            return None
        if context[start : start + length] == ngram:
            return start


class SuffixDecoding:
    """SuffixDecoding (arXiv 2411.04975) of `arctic-inference`."""

    def __init__(
        self,
        answers: "EarlierAnswers",
        prompt: Sequence[int],
        *,
        draft_length: int = 32,
        factor: float = 4.0,
        offset: float = 0.0,
        min_probability: float = 0.1,
        branching: bool = True,
    ) -> None:
        self.draft_length = draft_length
        self.factor = factor
        self.offset = offset
        self.min_probability = min_probability
        self.branching = branching
        self._seen = len(prompt)
        self._depth = answers.depth
        self._cache, self._request = answers.start(prompt)

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose a tree or a chain from the suffix trees of this request and of earlier ones."""
        self._cache.add_active_response(self._request, list(context[self._seen :]))
        self._seen = len(context)
        found = self._cache.speculate(
            self._request,
            list(context[-self._depth :]),
            max_spec_tokens=min(budget, self.draft_length),
            max_spec_factor=self.factor,
            max_spec_offset=self.offset,
            min_token_prob=self.min_probability,
            use_tree_spec=self.branching,
        )
        return Draft(
            tokens=tuple(found.token_ids),
            parents=tuple(found.parents),
            places=(None,) * len(found.token_ids),
        )


class EarlierAnswers:
    """The suffix trees of `arctic-inference`: one for each request, one for earlier answers."""

    def __init__(self, *, depth: int = 64, cached_requests: int = 0) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self.depth = depth
        self._cache = SuffixDecodingCache(max_tree_depth=depth, max_cached_requests=cached_requests)
        self._request = 0

    def start(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """End the request before and begin one; return the cache and its number."""
        if self._request in self._cache.active_requests:
            self._cache.stop_request(self._request)
        self._request += 1
        self._cache.start_request(self._request, np.array(prompt, dtype=np.int32))
        return self._cache, self._request
