"""`Call`: one model call, prepared in the caller's context, and the four ways to run it."""

from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llama_index.llms.llma.responses import Finished
from llma_rag import Decoder, GenerationResult

T = TypeVar("T")
Respond = Callable[[str, str | None, Finished | None], T]
"""Makes a response of the text so far, the text that is new, and the finished answer."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A model call whose prompt is written and whose references are found.

    Attributes:
        decoder: What answers it.
        prompt: Token ids.
        arguments: References and options, as the decoder takes them.
        respond: Makes the response, or a chunk of it.
        finish: Cites a finished answer; runs in the reader's context, never in a worker thread.
    """

    decoder: Decoder
    prompt: list[int]
    arguments: dict[str, Any]
    respond: Respond[T]
    finish: Callable[[GenerationResult], Finished]

    def answer(self) -> T:
        """Return the response once it is complete."""
        return self._whole(self.decoder.generate(self.prompt, **self.arguments))

    async def answer_async(self) -> T:
        """Await the response without blocking the event loop."""
        return self._whole(await self.decoder.agenerate(self.prompt, **self.arguments))

    def stream(self) -> Generator[T]:
        """Yield a chunk per accepted run, and a last one that is finished."""
        with self.decoder.stream(self.prompt, **self.arguments) as stream:
            text = ""
            for chunk in stream:
                if chunk.text:
                    text += chunk.text
                    yield self.respond(text, chunk.text, None)
            yield self.respond(text, "", self.finish(stream.result))

    async def stream_async(self) -> AsyncGenerator[T]:
        """Yield the same without blocking the event loop."""
        async with self.decoder.astream(self.prompt, **self.arguments) as stream:
            text = ""
            async for chunk in stream:
                if chunk.text:
                    text += chunk.text
                    yield self.respond(text, chunk.text, None)
            yield self.respond(text, "", self.finish(stream.result))

    def _whole(self, result: GenerationResult) -> T:
        return self.respond(result.text, None, self.finish(result))
