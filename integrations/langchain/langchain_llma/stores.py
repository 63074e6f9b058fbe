"""Notice what vector stores return when they are called without a retriever (opt-in)."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from langchain_core.vectorstores import VectorStore

from langchain_llma.capture import HANDLER, capture_enabled
from langchain_llma.harvesting import harvest
from langchain_llma.scopes import ambient_parent

_SEARCHES = (
    "similarity_search",
    "similarity_search_with_score",
    "similarity_search_by_vector",
    "similarity_search_with_relevance_scores",
    "max_marginal_relevance_search",
    "max_marginal_relevance_search_by_vector",
)
_MARK = "_llma_instrumented"


def instrument_vectorstores() -> None:
    """Also capture direct calls such as `vectorstore.similarity_search(question)`.

    Needed only where a search and the formatting of its results happen in one function, so that no
    runnable ever sees the documents. Wraps the search methods of all `VectorStore` classes, present
    and future, for the rest of the process. Calling it again does nothing.
    """
    if getattr(VectorStore, _MARK, False):
        return
    setattr(VectorStore, _MARK, True)
    pending: list[type] = [VectorStore]
    while pending:
        cls = pending.pop()
        _instrument(cls)
        pending.extend(cls.__subclasses__())

    def instrument_subclass(cls: Any, /, **kwargs: Any) -> None:
        super(VectorStore, cls).__init_subclass__(**kwargs)
        _instrument(cls)

    setattr(VectorStore, "__init_subclass__", classmethod(instrument_subclass))  # noqa: B010  # mypy


def _instrument(cls: type) -> None:
    for search in _SEARCHES:
        for name in (search, f"a{search}"):
            method = cls.__dict__.get(name)
            if inspect.isfunction(method) and not hasattr(method, _MARK):
                setattr(cls, name, _noting(method))


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            found = await method(*args, **kwargs)
            _note(found)
            return found

        wrapper: Callable[..., Any] = asynchronous
    else:

        @functools.wraps(method)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            found = method(*args, **kwargs)
            _note(found)
            return found

        wrapper = synchronous
    setattr(wrapper, _MARK, True)
    return wrapper


def _note(found: object) -> None:
    if not capture_enabled():
        return
    documents = harvest(found)
    run = HANDLER.tree.get(ambient_parent())
    if run is not None:
        HANDLER.tree.record(run, documents, "store")
    else:
        HANDLER.recent().add(documents)
