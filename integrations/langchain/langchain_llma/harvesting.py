"""Find the documents inside any value that passes between runnables."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from langchain_core.documents import Document
from langchain_core.load.serializable import Serializable
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel

MAX_DEPTH = 3
MAX_DOCUMENTS = 64
MAX_VALUES = 2000
_SCALARS = (str, bytes, bytearray, int, float, complex)


def harvest(value: object) -> list[Document]:
    """Return the documents in a runnable's input or output, nearest to its surface first.

    Looks into mappings, lists, tuples, dataclasses, pydantic models and artifacts of tool messages,
    at most three levels deep; stops after 64 documents or 2,000 values. Never raises.

    >>> harvest({"context": [Document("a passage")]})[0].page_content
    'a passage'
    """
    return [document for document, _ in _found(value)]


def harvest_apart(value: object) -> tuple[list[Document], list[Document]]:
    """Return the documents of a value, and apart from them those that its messages carry along."""
    found = list(_found(value))
    if not found:
        return [], []
    plain = [document for document, carried in found if not carried]
    return plain, [document for document, carried in found if carried]


def _found(value: object) -> Iterator[tuple[Document, bool]]:
    """Yield documents, and whether each hangs on a message."""
    if value is None or isinstance(value, _SCALARS):
        return
    left = MAX_DOCUMENTS
    waiting: deque[tuple[object, int, bool]] = deque([(value, 0, False)])
    for _ in range(MAX_VALUES):
        if not waiting or not left:
            return
        item, depth, carried = waiting.popleft()
        document = as_document(item)
        if document is not None:
            left -= 1
            yield document, carried
        elif depth <= MAX_DEPTH:
            carried = carried or isinstance(item, BaseMessage)
            waiting.extend(
                (child, depth + 1, carried)
                for child in _children(item)
                if child is not None and not isinstance(child, _SCALARS)
            )


def as_document(item: object) -> Document | None:
    """Return a document, also one that a checkpointer gave back as a plain mapping."""
    if isinstance(item, Document):
        return item if isinstance(item.page_content, str) else None
    if not isinstance(item, dict):
        return None
    text, metadata, id_ = item.get("page_content"), item.get("metadata"), item.get("id")
    if not isinstance(text, str) or not isinstance(metadata, dict):
        return None
    return Document(page_content=text, metadata=metadata, id=id_ if isinstance(id_, str) else None)


def _children(item: object) -> Iterable[object]:
    if isinstance(item, dict):
        return islice(tuple(item.values()), MAX_DOCUMENTS)
    if isinstance(item, (list, tuple)):
        conversation = bool(item) and isinstance(item[-1], BaseMessage)
        # the latest of a conversation, the best of a ranking
        return item[-MAX_DOCUMENTS:] if conversation else item[:MAX_DOCUMENTS]
    if isinstance(item, BaseMessage):
        return (item.artifact,) if isinstance(item, ToolMessage) else ()
    return _fields(item)


def _fields(item: object) -> Iterable[object]:
    """Field values of a state object; runnables hold whole stores, and prompts only text."""
    if isinstance(item, BaseModel) and not isinstance(item, (Runnable, Serializable)):
        return islice(tuple(item.__dict__.values()), MAX_DOCUMENTS)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return [_field(item, field.name) for field in dataclasses.fields(item)]
    return ()


def _field(item: object, name: str) -> Any:
    try:
        return getattr(item, name, None)
    except Exception:
        return None
