"""Let a coroutine see the captures of the context that made it, wherever it runs.

Up to llama-index-core 0.14.0 a synthesizer with `use_async=True` inside a running loop awaits its
calls in another thread without copying the context.
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from llama_index.llms.llma.captured import Capture
from llama_index.llms.llma.spans import Span, active_span, tree
from llama_index.llms.llma.streams import StreamScope, active_stream

T = TypeVar("T")


def carried(call: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """Wrap a coroutine that was made but not yet awaited; call it where the coroutine is made."""
    span = active_span()
    return call if span is None else _carry(call, span, tree.visible(span))


async def _carry(call: Coroutine[Any, Any, T], span: Span, captures: tuple[Capture, ...]) -> T:
    if active_span() is not None or active_stream.get() is not None:
        return await call
    scope = StreamScope(captures)
    token = active_stream.set(scope)
    try:
        return await call
    finally:
        active_stream.reset(token)
        tree.answered(span, scope.answers)
