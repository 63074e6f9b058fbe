"""Snapshot the nodes that a retriever, a postprocessor or a synthesizer handled."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, TextNode
from llama_index.core.workflow import Event

from llma_rag import Reference

_logger = logging.getLogger(__name__)

MAX_CAPTURED = 1024
"""Most nodes of one capture."""

MAX_NODES = 64
"""Most references of one call."""

MAX_CHARACTERS = 1 << 20
"""Most characters of one capture, and of all references of one call."""


class CapturedNode(NamedTuple):
    """A node and its text at the moment of capture; postprocessors rewrite nodes in place."""

    id: str | None
    text: str
    node: BaseNode | None


class Capture(NamedTuple):
    """Nodes that one call of the framework handled, best first."""

    nodes: tuple[CapturedNode, ...]


def snapshot(entries: Iterable[Any]) -> Capture | None:
    """Capture nodes, strings and references; anything else and empty text is left out."""
    nodes = tuple(_short_enough(filter(None, map(_snapshot_one, islice(entries, MAX_CAPTURED)))))
    return Capture(nodes) if nodes else None


def _short_enough(nodes: Iterable[CapturedNode]) -> Iterator[CapturedNode]:
    characters = 0
    for node in nodes:
        characters += len(node.text)
        if characters > MAX_CHARACTERS:
            return
        yield node


def _snapshot_one(entry: Any) -> CapturedNode | None:
    if isinstance(entry, NodeWithScore):
        entry = entry.node
    if type(entry) is TextNode:  # nearly every node; `get_content` would format all its metadata
        captured = CapturedNode(entry.id_, entry.text, entry)
    elif isinstance(entry, BaseNode):
        captured = CapturedNode(entry.node_id, _text(entry), entry)
    elif isinstance(entry, Reference):
        captured = CapturedNode(entry.id, entry.text, None)
    else:
        captured = CapturedNode(None, entry, None)
    return captured if isinstance(captured.text, str) and captured.text.strip() else None


def _text(node: BaseNode) -> str:
    try:
        return node.get_content(metadata_mode=MetadataMode.NONE)
    except Exception:
        _logger.debug("Node `%s` has no readable text.", node.node_id, exc_info=True)
        return ""


def nodes_in(event: Any) -> Iterator[NodeWithScore | BaseNode]:
    """Yield the nodes that a workflow's event carries from one step to the next.

    Up to llama-index-workflows 2 a synchronous step runs in a thread without its run's context;
    the event it was given is all that links it to the retrieval.
    """
    if not isinstance(event, Event):
        return
    for value in (*vars(event).values(), *getattr(event, "_data", {}).values()):
        if isinstance(value, (list, tuple)):
            for entry in islice(value, MAX_CAPTURED):
                if isinstance(entry, (NodeWithScore, BaseNode)):
                    yield entry


def stands_in(text: str, prompt: str) -> bool:
    """Say whether a whole text stands in the prompt.

    A part of it would not do: documents of two users may begin with the same letterhead.
    """
    text = text.strip()
    return bool(text) and text in prompt


def within_limits(captures: Iterable[Capture], prompt: str) -> tuple[CapturedNode, ...]:
    """Return the distinct nodes of `captures`, in order, as many as one call may carry.

    Of more than that, those whose whole text stands in the prompt come first.
    """
    distinct: dict[tuple[str | None, str], CapturedNode] = {}
    for capture in captures:
        for node in capture.nodes:
            distinct.setdefault((node.id, node.text), node)
    nodes = tuple(islice(distinct.values(), MAX_CAPTURED))
    if len(nodes) > MAX_NODES or sum(len(node.text) for node in nodes) > MAX_CHARACTERS:
        nodes = tuple(sorted(nodes, key=lambda node: not stands_in(node.text, prompt)))
        nodes = tuple(_short_enough(nodes[:MAX_NODES]))
    return nodes
