"""Keep what a framework asked of the decoder, so that it can be asked again without drafts."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from llma_rag.decoder import Decoder
from llma_rag.delivery import GenerationStream
from llma_rag.result import (
    CopiedSpan,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    Prompt,
    RequestOptions,
)


class RecordedStream:
    """A streamed answer, and what it was asked with.

    Attributes:
        request: What the framework asked.
        text: The answer so far.
        copied_spans: Its copied spans so far.
    """

    def __init__(self, stream: GenerationStream, request: GenerationRequest) -> None:
        self._stream = stream
        self.request = request
        self.text = ""
        self.copied_spans: tuple[CopiedSpan, ...] = ()

    @property
    def result(self) -> GenerationResult:
        """The finished answer."""
        return self._stream.result

    def __iter__(self) -> Iterator[GenerationChunk]:
        return self

    def __next__(self) -> GenerationChunk:
        try:
            chunk = next(self._stream)
        except StopIteration:
            self.text, self.copied_spans = self.result.text, self.result.copied_spans
            raise
        self.text += chunk.text
        self.copied_spans += chunk.copied_spans
        return chunk

    def __enter__(self) -> Self:
        self._stream.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Stop the answer."""
        self._stream.close()


class RecordingDecoder:
    """Stands before a decoder, passes everything on, and keeps the last streamed call.

    Attributes:
        decoder: The decoder itself.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._last: RecordedStream | None = None

    @property
    def called(self) -> RecordedStream:
        """The newest call.

        Raises:
            RuntimeError: If there was none.
        """
        if self._last is None:
            raise RuntimeError("`called` is there once an answer has been streamed.")
        return self._last

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def stream(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> RecordedStream:
        """Stream an answer and keep the call."""
        stream = self.decoder.stream(prompt, **options)
        self._last = RecordedStream(stream, GenerationRequest.of(prompt, options))
        return self._last

    def prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        """Return the token ids that the decoder reads for a prompt."""
        if not isinstance(prompt, str):
            return prompt
        ids: list[int] = self.decoder.tokenizer(prompt)["input_ids"]
        return ids
