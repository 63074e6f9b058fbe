"""What one sequence leaves in the engine between passes, and how it forgets rejected tokens."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from llma_rag.engine.cache import SlabCache, layer_count
from llma_rag.engine.snapshot import Snapshot
from llma_rag.engine.verdict import MemoryKind

STATE_NAMES = ("past_key_values", "cache_params", "state")
"""Names under which models take and return their state, tried in this order."""


class NoStateError(ValueError):
    """A model neither takes nor returns its state by a name that is known here."""


def forward_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of what a model's `forward` takes, through the wrapper of torch.compile."""
    return frozenset(inspect.signature(getattr(model, "_orig_mod", model).forward).parameters)


class Memory(Protocol):
    """The memory of one row; a pass is `open`, the model's forward, `take` or `undo`, `keep`."""

    @property
    def length(self) -> int:
        """Tokens that need not be fed again."""
        ...

    def open(self, drafted: int) -> Mapping[str, object]:
        """Prepare a pass with `drafted` tokens; return the arguments that hand over the memory."""
        ...

    def take(self, output: Mapping[str, Any]) -> None:
        """Take from the model's output what it returned of its state."""
        ...

    def undo(self) -> None:
        """Forget a pass that failed or that nobody kept anything of."""
        ...

    def keep(self, fed: int, nodes: Sequence[int], drafted: int) -> None:
        """Keep the `fed` certain tokens of the pass, and of `drafted` ones `nodes`, in order."""
        ...

    def forget(self) -> None:
        """Forget everything, so that the next pass feeds the whole sequence."""
        ...


def memory_of(model: PreTrainedModel, kind: MemoryKind, capacity: int) -> Memory:
    """Return the empty memory of a new row with room for `capacity` tokens."""
    if kind == "slab":
        return SlabMemory(SlabCache(layer_count(model.config), capacity=capacity))
    if kind == "own":
        return OwnMemory(model)
    return NoMemory()


class SlabMemory:
    """A row of a slab: rejected tokens are forgotten by moving a length."""

    def __init__(self, cache: SlabCache, row: int = 0) -> None:
        self.cache = cache
        self.row = row

    @property
    def length(self) -> int:
        """Tokens whose keys and values are kept."""
        return self.cache.lengths[self.row]

    def open(self, drafted: int) -> Mapping[str, object]:
        """Nothing to prepare: what a pass writes counts only once it is kept."""
        return {"past_key_values": self.cache, "use_cache": True}

    def take(self, output: Mapping[str, Any]) -> None:
        """Nothing to take: the slab was written in place."""

    def undo(self) -> None:
        """Nothing to undo: the lengths did not move."""

    def keep(self, fed: int, nodes: Sequence[int], drafted: int) -> None:
        """Move the length, and accepted tokens that do not stand side by side."""
        if all(node == place for place, node in enumerate(nodes)):
            self.cache.keep(self.row, fed + len(nodes))
        else:
            self.cache.keep_path(self.row, [*range(fed), *(fed + node for node in nodes)])

    def forget(self) -> None:
        """Set the length to nothing."""
        self.cache.lengths[self.row] = 0


class OwnMemory:
    """The model's own state, which cannot be cut: it is put back, and what was kept is fed again.

    The tokens of a pass with a rejected draft are not run again at once: the next pass feeds them
    in front of its own, so that a rejection costs wider passes and not more of them.

    Attributes:
        length: Tokens that the state stands behind.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Start with what `generate` starts with: a cache, or nothing where the state is no cache.

        Raises:
            NoStateError: If the model takes its state by no argument that is known here.
        """
        parameters = forward_parameters(model)
        name = next((name for name in STATE_NAMES if name in parameters), None)
        if name is None:
            raise NoStateError(f"`model` takes none of {', '.join(STATE_NAMES)}.")
        self.length = 0
        self._name = name
        self._config = model.config
        self._state: Any = self._empty()
        self._before: Snapshot | None = None

    def _empty(self) -> DynamicCache | None:
        return DynamicCache(config=self._config) if self._name == "past_key_values" else None

    def open(self, drafted: int) -> Mapping[str, object]:
        """Take a snapshot, unless everything the pass feeds is certain."""
        self._before = Snapshot(self._state) if drafted else None
        return {"use_cache": True, self._name: self._state}

    def take(self, output: Mapping[str, Any]) -> None:
        """Take the state that stands behind all tokens of the pass.

        Raises:
            NoStateError: If the model returned none.
        """
        returned = output.get(self._name)
        self._state = self._state if returned is None else returned
        if self._state is None:
            raise NoStateError(f"`model` was given no `{self._name}` and returned none.")

    def undo(self) -> None:
        """Put back the state before the pass."""
        if self._before is not None:
            self._state = self._before.restore()
            self._before = None

    def keep(self, fed: int, nodes: Sequence[int], drafted: int) -> None:
        """Keep the pass if all of its draft was accepted; else put back the state before it."""
        if len(nodes) == drafted:
            self.length += fed + drafted
        else:
            self.undo()
        self._before = None

    def forget(self) -> None:
        """Drop the state."""
        self._state, self._before, self.length = self._empty(), None, 0


class NoMemory:
    """For models whose state is out of reach: every pass feeds the whole sequence."""

    length = 0

    def open(self, drafted: int) -> Mapping[str, object]:
        """Ask the model not to remember."""
        return {"use_cache": False}

    def take(self, output: Mapping[str, Any]) -> None:
        """Nothing to take."""

    def undo(self) -> None:
        """Nothing to undo."""

    def keep(self, fed: int, nodes: Sequence[int], drafted: int) -> None:
        """Nothing to keep."""

    def forget(self) -> None:
        """Nothing to forget."""
