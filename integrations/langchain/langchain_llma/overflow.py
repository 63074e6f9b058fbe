"""Raise an overflow of the context under the name that LangChain's middleware looks for."""

from collections.abc import Iterator
from contextlib import contextmanager

import langchain_core.exceptions

import llma_rag


class ContextOverflowError(
    llma_rag.ContextOverflowError, langchain_core.exceptions.ContextOverflowError
):
    """The prompt leaves no room for an answer; an error of llma-rag's and of core's kind."""


@contextmanager
def overflow_for_core() -> Iterator[None]:
    """Raise llma-rag's overflow as one that is core's too: agents then shorten the conversation."""
    try:
        yield
    except llma_rag.ContextOverflowError as error:
        raise ContextOverflowError(*error.args) from error
