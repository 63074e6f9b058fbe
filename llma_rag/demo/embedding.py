"""Embed texts by hashing their words; deterministic, numpy only, no model."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 2048

_WORD = re.compile(r"[^\W_]+")
_SUFFIXES = ("ations", "ation", "ings", "ing", "ies", "ied", "ed", "es", "s", "e", "y")
_BIGRAM_WEIGHT = 0.5
_FUNCTION_WORDS = """
a about all also am an and any are as at be been being but by can could did do does for from had has
have he her his how i if in into is it its many may me more most much must my no not of on one or
our out should she so some such than that the their them there these they this those to up us was we
were what when where which who whom whose why will with would you your
"""
_UNINFORMATIVE = frozenset(_FUNCTION_WORDS.split())


class HashingEmbedding:
    """Maps a text to hashed counts of its words and pairs of words.

    Counts are dampened (1 + log), weighted by how rare each feature was in the fitted texts, and
    normalised, so that the inner product of two embeddings is their cosine.
    """

    dimensions = DIMENSIONS

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Learn how rare features are.

        Args:
            texts: The texts that will be searched; none gives every feature the same weight.
        """
        seen: Counter[str] = Counter()
        count = 0
        for text in texts:
            seen.update(set(features(text)))
            count += 1
        self._rarity = {name: float(np.log1p(count / times)) for name, times in seen.items()}
        self._unseen = float(np.log1p(count)) if count else 1.0

    def embed(self, text: str) -> NDArray[np.float32]:
        """Return the embedding of one text, `[dimensions]`; zeros for a text without words."""
        vector = np.zeros(self.dimensions, dtype=np.float32)
        for name, times in Counter(features(text)).items():
            place = zlib.crc32(name.encode())
            sign = 1.0 if place & 1 else -1.0
            weight = _BIGRAM_WEIGHT if " " in name else 1.0
            rarity = self._rarity.get(name, self._unseen)
            vector[(place >> 1) % self.dimensions] += sign * weight * rarity * (1 + np.log(times))
        norm = float(np.linalg.norm(vector))
        return vector / norm if norm else vector

    def embed_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings of several texts, `[texts, dimensions]`."""
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        return np.stack([self.embed(text) for text in texts])


def features(text: str) -> list[str]:
    """Return the stems of a text's informative words, and each pair of neighbours among them.

    >>> features("What are the ferries' tickets?")
    ['ferr', 'ticket', 'ferr ticket']
    """
    words = [word for word in _WORD.findall(text.lower()) if word not in _UNINFORMATIVE]
    stems = [_stem(word) for word in words if len(word) > 1 or word.isdigit()]
    return [*stems, *(" ".join(pair) for pair in pairwise(stems))]


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word
