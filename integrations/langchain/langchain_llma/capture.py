"""Notice what a chain's retrievers return, without any change to the chain.

One handler per process is attached to every callback manager through the public
`register_configure_hook`: the context variable's *default* is the handler, so that every thread,
task and fresh context has it. It is registered when the package is imported.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from langchain_core.callbacks.base import BaseCallbackHandler
from langchain_core.callbacks.manager import AsyncCallbackManager
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.tracers.context import register_configure_hook

from langchain_llma.harvesting import as_document, harvest, harvest_apart
from langchain_llma.run_tree import Recent, Run, RunTree

_ON_LLM_START = AsyncCallbackManager.on_llm_start.__code__


@dataclass(frozen=True, slots=True)
class ModelStart:
    """What was announced when a model's run began.

    Attributes:
        parent_run_id: The run that calls the model.
        payload: The messages or the prompt of the run.
    """

    parent_run_id: UUID | None
    payload: str | Sequence[BaseMessage]


recent_documents: ContextVar[Recent | None] = ContextVar("llma_recent_documents", default=None)
model_starts: ContextVar[tuple[ModelStart, ...]] = ContextVar("llma_model_starts", default=())


class CaptureHandler(BaseCallbackHandler):
    """Keeps the tree of live runs and hangs every document on the run that showed it."""

    raise_error = False

    def __init__(self, tree: RunTree) -> None:
        self.tree = tree

    def __copy__(self) -> "CaptureHandler":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "CaptureHandler":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_the_handler, ())

    @property
    def run_inline(self) -> bool:  # type: ignore[override]  # the base class has an attribute
        """Whether events run in the caller's context: always, but for one function's question.

        `AsyncCallbackManager.on_llm_start` skips all non-inline handlers of the user as soon as one
        handler is inline (langchain issue 39633), so it is told that this one is not.
        """
        frame = sys._getframe(1)
        outer = frame.f_back  # before Python 3.12 a list comprehension has a frame of its own
        asking = frame.f_code is _ON_LLM_START or (
            outer is not None and outer.f_code is _ON_LLM_START
        )
        return not asking

    @property
    def ignore_llm(self) -> bool:
        """Nothing to see in text models' events; `LLMA` notes its prompts itself."""
        return True

    @property
    def ignore_retry(self) -> bool:
        """Retries show no documents."""
        return True

    @property
    def ignore_custom_event(self) -> bool:
        """Custom events belong to the user."""
        return True

    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Open the run, and note the documents that come into it."""
        self._show(self._open(run_id, parent_run_id), inputs)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the documents that the run returns, and close it."""
        run = self.tree.get(run_id)
        if run is not None and run.parent is not None:
            self._show(run, outputs)
        self.tree.close(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Close the run."""
        self.tree.close(run_id, failed=True)

    def on_tool_start(
        self,
        serialized: Any,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Open the run."""
        self._open(run_id, parent_run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the documents that the tool returns or attaches, and close the run."""
        run = self.tree.get(run_id)
        if run is not None and run.parent is not None:
            self.tree.record(run, harvest(output), "tool")
        self.tree.close(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Close the run."""
        self.tree.close(run_id, failed=True)

    def on_retriever_start(
        self,
        serialized: Any,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Open the run, here where the caller's context is still open for `recent_documents`."""
        self._open(run_id, parent_run_id)

    def on_retriever_end(
        self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Note what the retriever found, and close its run."""
        run = self.tree.get(run_id)
        if run is not None:
            ranked = [found for each in documents if (found := as_document(each)) is not None]
            self.tree.record(run, ranked, "retriever")
        self.tree.close(run_id)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Close the run."""
        self.tree.close(run_id, failed=True)

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember who calls: `BaseChatModel.stream` passes no run manager to `_stream`."""
        model_starts.set(tuple(ModelStart(parent_run_id, listed) for listed in messages))

    def recent(self) -> Recent:
        """Give this context recent documents of its own, beginning with those it has.

        A request's task must not add to what it inherited from the server's start-up context.
        """
        recent = Recent(recent_documents.get())
        recent_documents.set(recent)
        return recent

    def note_call(self, parent_run_id: UUID | None) -> None:
        """Note that one of our models is called: under a root run, or in this context by none."""
        recent = recent_documents.get()
        run = self.tree.get(parent_run_id)
        if run is not None:
            *_, root = run.lineage()
            root.asked = True
            recent = root.recent
        if recent is not None:
            recent.asked.set()

    def _open(self, run_id: UUID, parent_run_id: UUID | None) -> Run:
        run = self.tree.open(run_id, parent_run_id)
        if run.parent is None:
            run.recent = self.recent()
        return run

    def _show(self, run: Run, value: object) -> None:
        """Note what passes through a chain; of a conversation, earlier turns' documents too."""
        documents, carried = harvest_apart(value)
        self.tree.record(run, documents, "chain")
        self.tree.record(run, carried, "message")


def capture_enabled() -> bool:
    """Whether documents are noticed in this context; see `no_capture` and `LLMA_RAG_CAPTURE`."""
    return os.environ.get("LLMA_RAG_CAPTURE") != "0" and _switch.get() is not None


@contextmanager
def no_capture() -> Iterator[None]:
    """Switch capture off inside the `with` block: for this thread or task and what it starts."""
    token = _switch.set(None)
    try:
        yield
    finally:
        _switch.reset(token)


def _the_handler() -> CaptureHandler:
    return HANDLER


def _register() -> tuple[CaptureHandler, ContextVar[CaptureHandler | None]]:
    """Attach the handler once per process, also when this module is reloaded."""
    known = globals()
    if "HANDLER" in known:
        return known["HANDLER"], known["_switch"]
    handler = CaptureHandler(RunTree())
    switch: ContextVar[CaptureHandler | None] = ContextVar("llma_capture", default=handler)
    if os.environ.get("LLMA_RAG_CAPTURE") != "0":
        register_configure_hook(switch, inheritable=True)
    return handler, switch


HANDLER, _switch = _register()
