"""Say that a prompt leaves no room, or that a limit cut an answer, so that every caller hears."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from llma_rag import ContextOverflowError

P = ParamSpec("P")
T = TypeVar("T")

CUT = (
    "It was cut at the limit of tokens: raise `max_new_tokens`, or `context_window` if prompt and "
    "answer fill it."
)
"""What to do about an answer that cannot be read."""

_last_was_cut: ContextVar[bool] = ContextVar("llma_last_was_cut", default=False)


def note_end(finish_reason: str | None) -> None:
    """Note why the last answer of this context ended."""
    _last_was_cut.set(finish_reason == "length")


def room_for_answer(prompt_tokens: int, context_window: int) -> int:
    """Return how many tokens an answer may have.

    Raises:
        ContextOverflowError: If the prompt fills the context window.
    """
    if prompt_tokens >= context_window:
        raise ContextOverflowError(
            f"The prompt has {prompt_tokens} tokens, but the context window of {context_window} "
            "tokens must hold it with an answer. Lower `similarity_top_k` or the chunk size, raise "
            "`context_window` if the model allows it, or call `use_as_global_tokenizer()` so that "
            "LlamaIndex measures with this model's tokenizer."
        )
    return context_window - prompt_tokens


@contextmanager
def _visible() -> Iterator[None]:
    """Turn an overflow, and an object cut short, into an error that synthesizers do not swallow.

    They answer "Empty Response" to any `ValueError` of a model call.
    """
    note_end(None)
    try:
        yield
    except ContextOverflowError as error:
        raise RuntimeError(str(error)) from error
    except ValueError as error:
        if not _last_was_cut.get():
            raise
        raise RuntimeError(f"The answer could not be read: {error}\n{CUT}") from error


def visible_overflow(method: Callable[P, T]) -> Callable[P, T]:
    """Wrap a method of `LLM` so that synthesizers pass an overflow on."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _visible():
            return method(*args, **kwargs)

    return call


def visible_overflow_async(
    method: Callable[P, Coroutine[object, object, T]],
) -> Callable[P, Coroutine[object, object, T]]:
    """Do the same for a coroutine function."""

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _visible():
            return await method(*args, **kwargs)

    return call


def visible_overflow_stream(
    method: Callable[P, Generator[T]],
) -> Callable[P, Generator[T]]:
    """Do the same for a generator function."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Generator[T]:
        with _visible():
            yield from method(*args, **kwargs)

    return call


def visible_overflow_stream_async(
    method: Callable[P, Coroutine[object, object, AsyncGenerator[T]]],
) -> Callable[P, Coroutine[object, object, AsyncGenerator[T]]]:
    """Do the same for a coroutine function that returns an asynchronous generator."""

    async def read(source: AsyncGenerator[T]) -> AsyncGenerator[T]:
        try:
            with _visible():
                async for item in source:
                    yield item
        finally:
            await source.aclose()

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return read(await method(*args, **kwargs))

    return call
