"""Keep a loaded model out of what is copied and written down."""

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from llma_rag import Decoder


_names: "WeakKeyDictionary[Decoder, str]" = WeakKeyDictionary()


def name_of(decoder: "Decoder") -> str:
    """Return a name that no other decoder has, in this process or in another."""
    return _names.setdefault(decoder, uuid.uuid4().hex)


class Held:
    """Keeps a decoder out of pickles and dumps of the object that uses it; copies share it.

    Attributes:
        decoder: The decoder, once it is loaded.
        source: The arguments that it was loaded by, or that name it where it was given.
        given: Whether the caller gave it, so that its name may stand for other weights elsewhere.
    """

    __slots__ = ("decoder", "given", "source")

    def __init__(
        self,
        decoder: "Decoder | None" = None,
        source: Mapping[str, Any] | None = None,
        *,
        given: bool = False,
    ) -> None:
        self.decoder = decoder
        self.source = source
        self.given = given

    def __copy__(self) -> "Held":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        return self

    def __reduce__(self) -> tuple[type["Held"], tuple[()]]:
        return (Held, ())
