"""Keep a loaded model out of what is copied and written down."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llma_rag import Decoder


class Held:
    """Keeps a decoder out of pickles and dumps of the object that uses it; copies share it.

    Attributes:
        decoder: The decoder, once it is loaded.
        source: The arguments that it was loaded by.
    """

    __slots__ = ("decoder", "source")

    def __init__(
        self, decoder: "Decoder | None" = None, source: Mapping[str, Any] | None = None
    ) -> None:
        self.decoder = decoder
        self.source = source

    def __copy__(self) -> "Held":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        return self

    def __reduce__(self) -> tuple[type["Held"], tuple[()]]:
        return (Held, ())
