"""Refuse prompts that leave no room for an answer, so that every caller hears of it."""

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from llma_rag import ContextOverflowError

T = TypeVar("T")


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
def visible_overflow() -> Iterator[None]:
    """Turn an overflow into an error that synthesizers do not swallow.

    They answer "Empty Response" to any `ValueError` of a model call.
    """
    try:
        yield
    except ContextOverflowError as error:
        raise RuntimeError(str(error)) from error


async def with_visible_overflow(call: Coroutine[Any, Any, T]) -> T:
    """Await a call inside `visible_overflow`."""
    with visible_overflow():
        return await call
