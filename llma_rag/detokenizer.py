"""Turn token ids into text as they arrive; a piece of text is given out once and never changed."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""What a decoder shows for bytes that are no character, or not yet one."""


MAX_HELD_TOKENS = 64
"""Tokens decoded together at most; a longer run of them that gives no text is broken bytes."""


class Detokenizer:
    """Decodes an answer token by token in constant time per token.

    The join of all pieces is what decoding the whole answer gives, except around bytes that are no
    characters: there the replacement characters may be others, in long runs, and where a tokenizer
    falls back to bytes (SentencePiece) also instead of ASCII bytes beside them. A piece is held
    back while its bytes may be the beginning of a character.

    Attributes:
        text: The text so far.
        starts: For each token, how long the text was before it.
        ends: For each token, how long the text was after it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window = 0
        self._read = 0
        self._given = 0
        self.text = ""
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, token_id: int) -> str:
        """Append a token and return the text it completes, which may be empty."""
        self._ids.append(token_id)
        before = len(self._decode(self._ids[self._window : self._read]))
        after = self._decode(self._ids[self._window :])
        stable = len(after.rstrip(REPLACEMENT))
        new = after[before + self._given : stable]
        self._given += len(new)
        whole = stable == len(after) > before
        if whole or len(self._ids) - self._window > MAX_HELD_TOKENS:
            new += after[before + self._given :]
            self._window, self._read, self._given = self._read, len(self._ids), 0
        self._note(new)
        return new

    def skip(self) -> None:
        """Note a token that has no text."""
        self._note("")

    def flush(self) -> str:
        """Give out what was held back; call after the last token."""
        before = len(self._decode(self._ids[self._window : self._read]))
        new = self._decode(self._ids[self._window :])[before + self._given :]
        self._window, self._read, self._given = self._read, len(self._ids), 0
        self.text += new
        if self.ends:
            self.ends[-1] = len(self.text)
        return new

    def _note(self, new: str) -> None:
        self.starts.append(len(self.text))
        self.text += new
        self.ends.append(len(self.text))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""


class StopStrings:
    """Finds stop strings in a growing text, and in what its special tokens would spell.

    Places are those of the text, in which special tokens have no characters.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self._longest = max(map(len, self.strings), default=0)
        self._spelled = ""
        self._hidden: list[tuple[int, int]] = []

    def add(self, new: str, *, hidden: bool = False) -> int | None:
        """Append characters; return where the earliest stop string begins that ends in them.

        Args:
            new: What tokens spell.
            hidden: Whether they are special tokens.
        """
        start = max(0, len(self._spelled) - self._longest + 1)
        if hidden:
            self._hidden.append((len(self._spelled), len(new)))
        self._spelled += new
        found = (self._spelled.find(stop, start) for stop in self.strings)
        first = min((place for place in found if place >= 0), default=None)
        return None if first is None else self._in_text(first)

    def safe_length(self) -> int:
        """Return how many characters cannot belong to a stop string that is still incomplete.

        >>> stop = StopStrings(["END"])
        >>> stop.add("the EN"), stop.safe_length()
        (None, 4)
        """
        length = len(self._spelled)
        for size in range(min(self._longest - 1, length), 0, -1):
            tail = self._spelled[-size:]
            if any(stop.startswith(tail) for stop in self.strings):
                return self._in_text(length - size)
        return self._in_text(length)

    def _in_text(self, place: int) -> int:
        """Return the place in the text of a place in what is spelled."""
        return place - sum(
            min(length, place - start) for start, length in self._hidden if start < place
        )
