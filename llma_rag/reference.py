"""Name the texts whose tokens may be copied; knows no tokens and no model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Reference:
    """A text whose words the answer may copy, and where it came from.

    Attributes:
        text: The text itself, as the model sees it in the prompt where it stands there.
        id: Name of the source (a node id, a URL); shown in citations.
        metadata: Anything the caller wants back with a citation; never read by the decoder.
    """

    text: str
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AcceptedReferences:
    """References that can be used, with their place in the caller's list.

    Attributes:
        references: Usable references, in the caller's order.
        positions: For each of them, its index in the list the caller gave.
        skipped: How many entries were no text, empty or not encodable.
    """

    references: tuple[Reference, ...]
    positions: tuple[int, ...]
    skipped: int


def accept_references(given: Iterable[object]) -> AcceptedReferences:
    """Keep what is usable of the texts a caller handed over; bad entries are counted, never raised.

    Strings are wrapped. Anything else that is no `Reference` with a text, is empty, or holds lone
    surrogates (not encodable as UTF-8) is skipped.

    >>> accept_references(["a passage", "", 7, Reference("b", id="x")]).positions
    (0, 3)
    """
    kept: list[tuple[int, Reference]] = []
    count = 0
    for position, entry in enumerate(given):
        count += 1
        reference = Reference(entry) if isinstance(entry, str) else entry
        if isinstance(reference, Reference) and _is_usable(reference.text):
            kept.append((position, reference))
    return AcceptedReferences(
        references=tuple(reference for _, reference in kept),
        positions=tuple(position for position, _ in kept),
        skipped=count - len(kept),
    )


def listed(name: str, given: object, what: str) -> list[Any]:
    """Return a copy of a list that a caller handed over.

    Args:
        name: The option.
        given: Its value.
        what: What the list holds.

    Raises:
        TypeError: If it is one text or object, or a mapping.
    """
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        return list(given)
    raise TypeError(
        f"`{name}` must be a list of {what}, got a `{type(given).__name__}`; put it into a list."
    )


def _is_usable(text: object) -> bool:
    if not isinstance(text, str) or not text.strip():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


References = Sequence[Reference | str]
