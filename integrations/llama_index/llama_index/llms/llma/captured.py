"""Snapshot the nodes that a retriever, a postprocessor or a synthesizer handled."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, TextNode
from llama_index.core.workflow import Event

from llma_rag import Reference

_logger = logging.getLogger(__name__)

MAX_NODES = 64
"""Most nodes of one capture, and most references of one call."""

MAX_CHARACTERS = 1 << 20
"""Most characters of all references of one call."""


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
    nodes = tuple(node for node in map(_snapshot_one, islice(entries, MAX_NODES)) if node)
    return Capture(nodes) if nodes else None


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
            for entry in islice(value, MAX_NODES):
                if isinstance(entry, (NodeWithScore, BaseNode)):
                    yield entry


def within_limits(captures: Iterable[Capture]) -> Iterator[CapturedNode]:
    """Yield the distinct nodes of `captures` in order, as many as one call may carry."""
    seen: set[tuple[str | None, str]] = set()
    characters = 0
    for capture in captures:
        for node in capture.nodes:
            if (node.id, node.text) in seen:
                continue
            characters += len(node.text)
            if len(seen) >= MAX_NODES or characters > MAX_CHARACTERS:
                return
            seen.add((node.id, node.text))
            yield node
