"""Copy a model's recurrent state before a draft is verified, and put it back afterwards."""

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache

_REPLACED = frozenset({"keys", "values"})
"""Tensors that transformers' dynamic layers replace and never write to: no copy is needed."""


class Snapshot:
    """The state of one row at one moment.

    Keys and values are kept by reference, since dynamic layers put new tensors in their place;
    convolution and recurrent states are written in place and therefore copied.

    Attributes:
        copied_bytes: Memory that the copies take.
    """

    def __init__(self, state: Any) -> None:
        """Copy `state`: a transformers cache, another object that can be copied, or None."""
        self._state = state
        self.copied_bytes = 0
        if isinstance(state, Cache):
            self._layers = list(state.layers)
            self._contents = [(holder, self._contents_of(holder)) for holder in self._holders()]
        else:
            self._copy = copy.deepcopy(state)

    def restore(self) -> Any:
        """Return the state as it was; a snapshot can be restored once."""
        if not isinstance(self._state, Cache):
            return self._copy
        self._state.layers[:] = self._layers
        for holder, contents in self._contents:
            vars(holder).clear()
            vars(holder).update(contents)
        return self._state

    def _holders(self) -> list[Any]:
        return [self._state, *self._layers]

    def _contents_of(self, holder: Any) -> dict[str, Any]:
        return {
            name: value if name == "layers" or name in _REPLACED else self._copied(value)
            for name, value in vars(holder).items()
        }

    def _copied(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self.copied_bytes += value.numel() * value.element_size()
            return value.clone()
        if isinstance(value, dict):
            return {key: self._copied(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._copied(one) for one in value]
        return value
