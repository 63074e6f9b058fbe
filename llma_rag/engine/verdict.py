"""What the load-time probe found out about a model."""

from dataclasses import dataclass
from typing import Literal

WidePasses = Literal["exact", "rounded", "off"]

MemoryKind = Literal["slab", "own", "none"]
"""What a row remembers: our slab of keys and values, the model's own state, or only its tokens."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a model can be decoded here without a reference changing a token.

    Attributes:
        wide_passes: "exact" where a pass over several tokens gives the logits of single steps,
            "rounded" where it does so up to the rounding of the model's dtype, "off" where drafts
            would change the answer and the model is decoded plainly.
        reason: One sentence that says why.
        memory: What a row remembers between passes.
        trees: Whether drafts may branch.
        fast: Whether the model's twin with our own attention gives the right logits.
    """

    wide_passes: WidePasses = "exact"
    reason: str = "Not probed."
    memory: MemoryKind = "slab"
    trees: bool = True
    fast: bool = False
