"""Take documents as callers hand them over, and give them to the decoder as references."""

from collections.abc import Sequence
from typing import TypeAlias

from langchain_core.documents import Document

from langchain_llma.scopes import CapturedDocument
from llma_rag import Reference

Given: TypeAlias = Document | Reference | str
"""What `references=` takes, one or several."""


def given_documents(given: Given | Sequence[Given] | None) -> list[CapturedDocument]:
    """Return the documents of a `references=` argument.

    Raises:
        TypeError: If an entry is neither a document, a `Reference` nor a text.
    """
    if given is None:
        return []
    listed = [given] if isinstance(given, (Document, Reference, str)) else list(given)
    return [CapturedDocument(_as_document(entry), "argument", False) for entry in listed]


def as_reference(document: Document) -> Reference:
    """Return the text of a document under its id or source."""
    name = document.id or document.metadata.get("source")
    return Reference(
        document.page_content,
        id=str(name) if name is not None else None,
        metadata=document.metadata,
    )


def _as_document(entry: object) -> Document:
    if isinstance(entry, Document):
        return entry
    if isinstance(entry, Reference):
        return Document(page_content=entry.text, id=entry.id, metadata=dict(entry.metadata))
    if isinstance(entry, str):
        return Document(page_content=entry)
    msg = (
        "`references` must hold documents, `llma_rag.Reference` objects or texts, got "
        f"`{type(entry).__name__}`. Wrap other objects in `Document(page_content=...)`."
    )
    raise TypeError(msg)
