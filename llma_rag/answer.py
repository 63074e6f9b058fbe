"""Grow the answer of one request: its tokens, its text, its copied spans, and when it ends."""

from collections.abc import Mapping, Sequence

from llma_rag.detokenizer import Detokenizer, StopStrings
from llma_rag.places import Place
from llma_rag.provenance import AnswerText, Provenance
from llma_rag.result import CopiedSpan, FinishReason, GenerationChunk


class Answer:
    """Takes tokens one by one, as plain decoding would, and says when to stop.

    Attributes:
        token_ids: Committed tokens.
        finish_reason: Why the answer ended; None while it goes on.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop: StopStrings,
        *,
        end_tokens: frozenset[int],
        special: Mapping[int, str],
        max_new_tokens: int,
    ) -> None:
        """Begin an answer.

        Args:
            detokenizer: Turns its tokens into text.
            stop: What ends it.
            end_tokens: Tokens that end it, which have no text.
            special: How special tokens are spelled, which have no text either.
            max_new_tokens: Most tokens of it.
        """
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._provenance: Provenance | None = None
        self._detokenizer = detokenizer
        self._stop = stop
        self._end_tokens = end_tokens
        self._special = special
        self._max_new_tokens = max_new_tokens
        self._cut: int | None = None
        self._shown = 0
        self._delivered = 0
        self._traced = 0
        self._untold: list[int] = []

    @property
    def remaining(self) -> int:
        """Tokens that may still follow."""
        return self._max_new_tokens - len(self.token_ids)

    @property
    def text(self) -> str:
        """The text so far, cut before a stop string."""
        self._tell()
        return self._detokenizer.text[: self._cut]

    def trace_with(self, provenance: Provenance) -> None:
        """Note from now on where tokens come from; those so far were not copied."""
        self._provenance = provenance
        self.trace(())

    def trace(self, places: Sequence[Place | None]) -> None:
        """Note where the tokens since the last call came from; the last ones were not copied."""
        if self._provenance is not None:
            new = len(self.token_ids) - self._traced
            for place in (*places, *[None] * (new - len(places))):
                self._provenance.commit(place)
            self._traced += new

    def commit(self, token: int) -> bool:
        """Append a token that the model chose; return whether the answer goes on."""
        self.token_ids.append(token)
        self._untold.append(token)
        if token in self._end_tokens:
            self.end("stop")
        elif self._stop.strings:
            self._tell()
        if self.finish_reason is None and self.remaining <= 0:
            self.end("length")
        return self.finish_reason is None

    def end(self, reason: FinishReason) -> None:
        """End the answer behind its last token; a stop string keeps its place as the reason."""
        if self.finish_reason != "stop":
            self.finish_reason = reason
        self._tell()
        self._take_text(self._detokenizer.flush())

    def next_chunk(self) -> GenerationChunk | None:
        """Return what was committed since the last chunk and may be shown; None if nothing."""
        safe = len(self.text)
        if self.finish_reason is None and self._stop.strings:
            safe = self._stop.safe_length()
        text = self.text[self._shown : safe]
        tokens = tuple(self.token_ids[self._delivered :])
        if not text and not tokens:
            return None
        spans = self._new_spans()
        self._shown = max(safe, self._shown)
        self._delivered = len(self.token_ids)
        return GenerationChunk(text, tokens, spans)

    def copied_spans(self) -> tuple[CopiedSpan, ...]:
        """Return the copied runs of the finished answer."""
        return self._provenance.spans(self._as_text()) if self._provenance else ()

    def _new_spans(self) -> tuple[CopiedSpan, ...]:
        if self._provenance is None:
            return ()
        return self._provenance.trace(self._as_text(), self._delivered)

    def _as_text(self) -> AnswerText:
        return AnswerText(self.text, self._detokenizer.starts, self._detokenizer.ends)

    def _tell(self) -> None:
        """Turn tokens into text; put off until it is needed, as the model can run meanwhile."""
        for token in self._untold:
            if token in self._end_tokens:
                self._detokenizer.skip()
            else:
                self._take_text(self._detokenizer.add(token))
            if token in self._special:
                self._take_text(self._special[token], hidden=True)
        self._untold.clear()

    def _take_text(self, new: str, *, hidden: bool = False) -> None:
        if not new or not self._stop.strings or self._cut is not None:
            return
        self._cut = self._stop.add(new, hidden=hidden)
        if self._cut is not None:
            self.finish_reason = "stop"
