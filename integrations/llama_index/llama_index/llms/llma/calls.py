"""`Call`: one model call, prepared in the caller's context, and the four ways to run it."""

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llama_index.llms.llma import options, prompts, responses
from llama_index.llms.llma.capture import Found, find_references
from llama_index.llms.llma.explicit import Given
from llama_index.llms.llma.overflow import room_for_answer
from llama_index.llms.llma.responses import Finished
from llma_rag import Decoder, GenerationResult, Reference

if TYPE_CHECKING:
    from llama_index.llms.llma.base import LLMA

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


Prepare = Callable[[], Call[T]]
"""Tokenizes the prompt of a call, in any thread."""


def preparing(
    llm: "LLMA",
    text: str,
    kwargs: dict[str, Any],
    respond: Respond[T],
    given: Sequence[Given] = (),
) -> Prepare[T]:
    """Find the references of a call here, in the caller's context, and leave the rest for later.

    Args:
        llm: What is called.
        text: Its prompt.
        kwargs: Options and references of this call.
        respond: Makes its response.
        given: Further references.
    """
    kwargs = dict(kwargs)
    named = kwargs.pop("references", None) or ()
    found = find_references(
        text,
        (*((named,) if isinstance(named, str) else named), *given),
        automatic=llm.capture == "auto",
        process=llm.process_scope,
    )
    return partial(_prepare, llm, text, kwargs, respond, found)


def _prepare(
    llm: "LLMA", text: str, kwargs: dict[str, Any], respond: Respond[T], found: Found
) -> Call[T]:
    decoder = llm.decoder
    prompt = prompts.encode(decoder.tokenizer, text, hf_compat=llm.hf_compat)
    own = {name: kwargs.pop(name, None) for name in ("draft", "namespace")}
    arguments = {name: value for name, value in own.items() if value is not None}
    arguments |= options.decoding_options(llm.generate_kwargs, kwargs, llm.max_new_tokens)
    room = room_for_answer(len(prompt), llm.context_window)
    arguments["max_new_tokens"] = min(arguments["max_new_tokens"], room)
    if llm.stopping_ids and "eos_token_id" not in arguments:
        config = decoder.model.generation_config
        arguments["eos_token_id"] = options.end_tokens(config, llm.stopping_ids)
    arguments["references"] = [Reference(node.text, id=node.id) for node in found.nodes]
    finish = partial(
        responses.finish,
        found=found,
        model_name=llm.model_name,
        style=llm.citations,
        min_characters=llm.min_citation_chars,
    )
    return Call(decoder, prompt, arguments, respond, finish)
