"""Follow every span of LlamaIndex and keep what its retrieval returned; never raise into it."""

import inspect
import logging
import threading
import weakref
from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.span.base import BaseSpan  # type: ignore[attr-defined]
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler

from llama_index.llms.llma import ambient, citations
from llama_index.llms.llma.captured import nodes_in, snapshot
from llama_index.llms.llma.roles import NOBODY, Role, roles
from llama_index.llms.llma.spans import Span, active_span, tree
from llama_index.llms.llma.streamed import let_hand_on
from llama_index.llms.llma.streams import StreamScope, active_stream, in_scope, in_scope_async

_logger = logging.getLogger(__name__)
_UUID_WITH_HYPHEN = 37


class CaptureSpanHandler(BaseSpanHandler[BaseSpan]):
    """The one span handler of this package.

    It keeps no spans of its own: what is open stands in the span tree. The dispatcher swallows what
    a handler raises, so that errors are logged here instead.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the framework lists this handler."""
        return "LLMACaptureSpanHandler"

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Make no span object."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Keep no span object."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Keep no span object."""

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Track a span that belongs to a request."""
        try:
            role = roles[type(instance)]
            parent = tree.get(parent_id) if parent_id else None
            if role is not NOBODY:
                _enter(id_, bound_args, instance, parent, role)
            elif parent is not None:
                tree.open(id_, parent, parent.stream)
        except Exception:
            _logger.debug("Capture failed at the entry of `%s`.", id_, exc_info=True)

    def span_exit(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> None:
        """Capture what a span returned and hand it to its parent."""
        span = tree.pop(id_, None)
        if span is None:
            return
        if span.role is not NOBODY or span.answers:
            try:
                _exit(span, instance, result)
            except Exception:
                _logger.debug("Capture failed at the exit of `%s`.", id_, exc_info=True)
        _end(span)

    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand what a span that failed had captured to its parent: the caller may go on."""
        span = tree.pop(id_, None)
        if span is not None:
            _end(span)


def _method(span_id: str) -> str:
    return span_id[:-_UUID_WITH_HYPHEN].rpartition(".")[2]


def _enter(
    span_id: str,
    bound_args: inspect.BoundArguments,
    instance: Any,
    parent: Span | None,
    role: Role,
) -> None:
    """Open a span of a class that has a role in a request."""
    is_run = role.workflow and _method(span_id) == "run"
    if parent is not None and parent.is_run and (is_run or not role.workflow):
        # llama-index-workflows 1.3 and 2.0 leave the run's span active in the caller of `run()`.
        parent = None
    stream = parent.stream if parent is not None else active_stream.get()
    span = tree.open(span_id, parent, stream, role, is_run)
    if role.synthesizer and _method(span_id) in ("synthesize", "asynthesize"):
        _capture(span, bound_args.arguments.get("nodes"))
    elif role.chat_stream:
        span.holder = weakref.ref(instance)
    elif role.workflow and not is_run:
        _capture(
            span, [node for value in bound_args.arguments.values() for node in nodes_in(value)]
        )


def _exit(span: Span, instance: Any, result: Any) -> None:
    if span.role is not NOBODY:
        _capture_result(span, span.role, result)
    if span.answers:
        holder = instance if span.role.chat_stream else result
        citations.attach(holder, citations.text_of(holder), span.answers)


def _capture_result(span: Span, role: Role, result: Any) -> None:
    method = _method(span.id)
    if (role.retriever and method in ("retrieve", "aretrieve")) or (
        role.postprocessor and method.endswith("postprocess_nodes")
    ):
        _capture(span, result)
    elif role.synthesizer:
        _follow_stream(span, result, "response_gen")
    elif role.engine and getattr(result, "is_writing_to_memory", True) is False:
        # Up to 0.13 a chat's reader reads its stream itself; later a thread of the framework does.
        _follow_stream(span, result, "chat_stream")
        _follow_stream(span, result, "achat_stream")


def _capture(span: Span, nodes: Any) -> None:
    capture = snapshot(nodes) if isinstance(nodes, (list, tuple)) else None
    if capture is not None:
        tree.capture(span, capture)


def _follow_stream(span: Span, response: Any, attribute: str) -> None:
    source = getattr(response, attribute, None)
    if not isinstance(source, (Generator, AsyncGenerator)):
        return
    scope = StreamScope(tree.visible(span))
    at_end = partial(_finish_stream, weakref.ref(response), scope)
    follow: Any = in_scope if isinstance(source, Generator) else in_scope_async
    setattr(response, attribute, follow(source, scope, at_end))
    let_hand_on(response)


def _finish_stream(owner: weakref.ref[Any], scope: StreamScope, text: str) -> None:
    try:
        response = owner()
        if response is not None:
            citations.attach(response, text, scope.answers)
        citations.note_answers(scope.answers)
        _hold_early(text)
    except Exception:
        _logger.debug("Citations of a streamed response were lost.", exc_info=True)


def _hold_early(text: str) -> None:
    """Attach before the span ends: up to 0.13 a chat's reader does not wait for that."""
    span = active_span()
    response = span.holder() if span is not None and span.holder is not None else None
    if span is not None and response is not None:
        citations.attach(response, text.strip(), span.answers)


def _end(span: Span) -> None:
    if span.parent is not None:
        if span.captures or span.answers:
            tree.hand_up(span)
    elif span.captures:
        captures = tuple(capture for _, capture in reversed(span.captures))
        ambient.process_scope.add(captures)
        if span.role.gives_nodes:
            ambient.remember(captures)


_handler = CaptureSpanHandler()
_lock = threading.Lock()


def install() -> None:
    """Attach the handler to the root dispatcher; once, however often it is called."""
    root = get_dispatcher()
    with _lock:
        if not any(handler is _handler for handler in root.span_handlers):
            root.add_span_handler(_handler)
