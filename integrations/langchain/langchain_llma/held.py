"""Keep a loaded model out of what is copied and written down."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llma_rag import Decoder


class Held:
    """Keeps a decoder out of copies, pickles and dumps of the object that uses it."""

    __slots__ = ("decoder",)

    def __init__(self, decoder: "Decoder | None" = None) -> None:
        self.decoder = decoder

    def __copy__(self) -> "Held":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        return self

    def __reduce__(self) -> tuple[type["Held"], tuple[()]]:
        return (Held, ())
