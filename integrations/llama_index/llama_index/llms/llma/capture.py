"""Find the nodes that a model call made now, in this context, may copy from."""

import logging
from collections.abc import Iterable
from typing import Literal, NamedTuple

from llama_index.llms.llma.ambient import note_call, process_scope, remembered_in
from llama_index.llms.llma.captured import Capture, CapturedNode, snapshot, within_limits
from llama_index.llms.llma.explicit import Given, given_references
from llama_index.llms.llma.spans import active_span, tree
from llama_index.llms.llma.streams import active_stream

_logger = logging.getLogger(__name__)

Reach = Literal["explicit", "span", "stream", "ambient", "process", "none"]
"""How the nodes of a call were found."""


class Found(NamedTuple):
    """What a call may copy from, and how it was found."""

    nodes: tuple[CapturedNode, ...]
    reach: Reach


NOTHING = Found((), "none")


def find_references(
    prompt: str, given: Iterable[Given] = (), *, automatic: bool = True, process: bool = False
) -> Found:
    """Return the nodes of this request; call it in the caller's context, before any thread hop.

    Args:
        prompt: Text of the prompt; nodes known only by context or process must stand in it.
        given: References of this call; they come first.
        automatic: Whether to look beyond what the caller named.
        process: Whether nodes retrieved elsewhere in this process count.
    """
    named = snapshot(given)
    explicit = ((named,) if named else ()) + given_references()
    captures, reach = _reach(prompt, process) if automatic else ((), "none")
    note_call()
    nodes = within_limits((*explicit, *captures), prompt)
    if not nodes:
        return NOTHING
    return Found(nodes, "explicit" if explicit else reach)


def _reach(prompt: str, process: bool) -> tuple[tuple[Capture, ...], Reach]:
    try:
        captures, reach = _of_request()
        if captures:
            return captures, reach
        remembered = remembered_in(prompt)
        if remembered:
            return (remembered,), "ambient"
        known = process_scope.look_up(prompt) if process else None
        return ((known,), "process") if known else ((), "none")
    except Exception:
        _logger.debug("Captured nodes could not be read.", exc_info=True)
        return (), "none"


def _of_request() -> tuple[tuple[Capture, ...], Reach]:
    span, stream = active_span(), active_stream.get()
    if span is not None and (stream is None or span.stream is stream):
        return tree.visible(span), "span"
    if stream is not None:
        return stream.captures, "stream"
    return (), "none"
