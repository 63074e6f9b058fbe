"""Answer at a model call: which documents belong to this run, and which of them to this prompt?"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables.config import ensure_config

from langchain_llma.capture import (
    HANDLER,
    ModelStart,
    capture_enabled,
    model_starts,
    recent_documents,
)
from langchain_llma.harvesting import harvest
from langchain_llma.run_tree import Origin, Sighting

_LOOK_BACK = 64
"""Messages of a conversation that are searched for artifacts, counted from its end."""


@dataclass(frozen=True, slots=True)
class CapturedDocument:
    """A document that belongs to a model call.

    Attributes:
        document: The document.
        origin: How it was noticed.
        in_prompt: Whether its text stands in the prompt, but for space around it.
    """

    document: Document
    origin: Origin
    in_prompt: bool


def captured_documents(
    prompt: str, parent_run_id: UUID | None, messages: Sequence[BaseMessage] = ()
) -> list[CapturedDocument]:
    """Return the documents to copy from: those in the prompt first, then the nearest, the latest.

    One root run may serve several users (`chain.map()`, LangGraph's `Send`), so documents count
    only when they come from the nearest common ancestor or hang on the messages, or when they stand
    in the prompt, and there in none of those: another user's document may have the same text.

    Args:
        prompt: The text that the model reads.
        parent_run_id: The run that calls the model; see `parent_of`.
        messages: The conversation; artifacts of its tool messages count.
    """
    if not capture_enabled():
        return []
    near = HANDLER.tree.near(parent_run_id)
    plain = [each for each in near if each.origin != "message"]
    nearest = min((each.distance for each in plain), default=0)
    own = [*(each for each in plain if each.distance == nearest), *_from_messages(messages)]
    found = [_captured(each, prompt) for each in _distinct(own)]
    shown = "\0".join(entry.document.page_content for entry in found if entry.in_prompt)
    others = [
        each
        for each in near or _recent()
        if _stands_in(each.document, prompt) and not _stands_in(each.document, shown)
    ]
    found += [_captured(each, prompt) for each in _distinct(others)]
    return sorted(found, key=lambda entry: not entry.in_prompt)


def note_call(parent_run_id: UUID | None) -> None:
    """Note a call of one of our models: what was retrieved for it is not recent any more."""
    HANDLER.note_call(parent_run_id)


def parent_of(run_manager: Any, payload: str | Sequence[BaseMessage]) -> UUID | None:
    """Return the live run that calls the model.

    `BaseChatModel.stream` and the streaming branch of `invoke` give no run manager to `_stream`;
    then what `on_chat_model_start` saw in this context counts, and last the ambient
    `RunnableConfig`, which also knows the run when a LangSmith `@traceable` stands between.
    """
    if run_manager is not None:
        announced: UUID | None = run_manager.parent_run_id
    else:
        starts = (start for start in model_starts.get() if _same(start.payload, payload))
        announced = next((start.parent_run_id for start in starts), None)
    if HANDLER.tree.get(announced) is not None:
        return announced
    ambient = ambient_parent()
    return ambient if ambient in HANDLER.tree else None


def ambient_parent() -> UUID | None:
    """Return the id of the runnable inside which this code runs, by the ambient config."""
    parent: UUID | None = getattr(ensure_config().get("callbacks"), "parent_run_id", None)
    return parent


@contextmanager
def each_prompt_with_its_caller(prompts: Sequence[str], callbacks: Any) -> Iterator[None]:
    """Remember who asks for which prompt while `BaseLLM.generate` runs.

    `BaseLLM.batch` hands all prompts to one `_generate` with the run manager of the first only.
    """
    starts = tuple(
        ModelStart(getattr(callback, "parent_run_id", None), prompt)
        for prompt, callback in zip(prompts, _per_prompt(prompts, callbacks), strict=True)
    )
    token = model_starts.set(starts)
    try:
        yield
    finally:
        model_starts.reset(token)


def parents_of(prompts: Sequence[str], run_manager: Any) -> list[UUID | None]:
    """Return the calling run of each prompt of one `_generate`; equal prompts in their order."""
    if len(prompts) == 1 and run_manager is not None:
        return [parent_of(run_manager, prompts[0])]
    starts = list(model_starts.get())
    parents: list[UUID | None] = []
    for prompt in prompts:
        match = next((start for start in starts if start.payload == prompt), None)
        if match is not None:
            starts.remove(match)
        parents.append(match.parent_run_id if match is not None else None)
    return parents


def origins(captured: Sequence[CapturedDocument]) -> dict[str, int]:
    """Count documents by how they were noticed."""
    return dict(Counter(entry.origin for entry in captured))


def _per_prompt(prompts: Sequence[str], callbacks: Any) -> list[Any]:
    """As `BaseLLM.generate` tells one callback list for all from a list with one for each."""
    if not isinstance(callbacks, list) or not callbacks or len(callbacks) != len(prompts):
        return [callbacks] * len(prompts)
    if isinstance(callbacks[0], (list, BaseCallbackManager, type(None))):
        return callbacks
    return [callbacks] * len(prompts)


def _from_messages(messages: Sequence[BaseMessage]) -> list[Sighting]:
    """A conversation read back from a checkpoint still carries what its tools attached."""
    return [
        Sighting(document, "message")
        for message in reversed(messages[-_LOOK_BACK:])
        if isinstance(message, ToolMessage) and message.artifact is not None
        for document in harvest(message.artifact)
    ]


def _recent() -> list[Sighting]:
    """Documents of an earlier root run in this context; they count only if the prompt has them."""
    recent = recent_documents.get()
    return [Sighting(document, "ambient") for document in recent.documents] if recent else []


def _captured(sighting: Sighting, prompt: str) -> CapturedDocument:
    document = sighting.document
    return CapturedDocument(document, sighting.origin, _stands_in(document, prompt))


def _stands_in(document: Document, text: str) -> bool:
    """Whether a document's text stands in another one; prompts often lack the space around it."""
    return document.page_content.strip() in text


def _distinct(sightings: list[Sighting]) -> Iterator[Sighting]:
    """Drop repetitions and documents without text; the best sighting comes first."""
    seen: set[tuple[str, str | None, str]] = set()
    for sighting in sightings:
        document = sighting.document
        key = (document.page_content, document.id, repr(document.metadata))
        if key not in seen and document.page_content.strip():
            seen.add(key)
            yield sighting


def _same(announced: object, given: object) -> bool:
    """Whether two conversations are equal in roles and contents; core may have copied one."""
    if isinstance(announced, str) or isinstance(given, str):
        return announced == given
    if not isinstance(announced, Sequence) or not isinstance(given, Sequence):
        return False
    return len(announced) == len(given) and all(
        one is two or (one.type == two.type and one.content == two.content)
        for one, two in zip(announced, given, strict=True)
    )
