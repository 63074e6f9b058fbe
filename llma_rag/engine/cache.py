"""Keep keys and values so that rejected tokens are forgotten by moving a length."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of some tokens of one row and layer, each [kv_heads, tokens, head_dim]."""

GROWTH = 256
"""Tokens by which a slab's capacity is rounded up."""


class SlabLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # untyped in transformers
    """Keys and values of one layer, [rows, kv_heads, capacity, head_dim], written in place."""

    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, cache: "SlabCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in transformers
        self.cache = cache
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slab for the shape, dtype and device of the first keys and values."""
        capacity = self.cache.reserved
        self.keys = _slab_like(key_states, capacity)
        self.values = _slab_like(value_states, capacity)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens behind each row's length; the lengths move only by `keep`.

        Args:
            key_states: [rows, kv_heads, new tokens, head_dim].
            value_states: [rows, kv_heads, new tokens, head_dim].

        Returns:
            Views of all keys and values up to the end of the longest row.
        """
        if self.cache.places is not None:
            return self._update_at(self.cache.places, key_states, value_states)
        new = key_states.shape[-2]
        end = max(max(self.cache.lengths) + new, self.cache.shown)
        keys, values = self._slabs_for(end, key_states, value_states)
        for row, length in enumerate(self.cache.lengths):
            keys[row, :, length : length + new] = key_states[row]
            values[row, :, length : length + new] = value_states[row]
        return keys[:, :, :end], values[:, :, :end]

    def _update_at(
        self, places: torch.Tensor, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> KeysValues:
        """Write at places that are known on the device only; return the whole slabs."""
        keys, values = self._slabs_for(0, key_states, value_states)
        keys.index_copy_(2, places, key_states)
        values.index_copy_(2, places, value_states)
        return keys, values

    def slabs(self, end: int) -> KeysValues:
        """Return the slabs, which are there, with room for `end` tokens."""
        assert self.keys is not None
        assert self.values is not None
        return self._slabs_for(end, self.keys, self.values)

    def _slabs_for(
        self, end: int, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> KeysValues:
        """Return the slabs, made or grown where `end` tokens need it."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if end > self.keys.shape[-2]:
            grown = _grown(self.keys, end), _grown(self.values, end)
            self.keys, self.values = grown  # both, or none where memory ran out
        return self.keys, self.values

    def read(self, row: int, start: int, end: int) -> KeysValues:
        """Return copies of a row's tokens from `start` to `end`."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[row, :, start:end].clone(), self.values[row, :, start:end].clone()

    def write(self, row: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put copied tokens at a row's tokens from `start` on."""
        end = start + keys.shape[1]
        mine = self._slabs_for(end, keys[None], values[None])
        for slab, states in zip(mine, (keys, values), strict=True):
            slab[row, :, start:end] = states

    def move(self, row: int, sources: Sequence[int], target: int) -> None:
        """Copy tokens of a row to consecutive places from `target` on."""
        for slab in (self.keys, self.values):
            assert slab is not None
            index = torch.tensor(sources, device=slab.device)
            slab[row, :, target : target + len(sources)] = slab[row].index_select(1, index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that `update` will return."""
        return max(self.cache.lengths) + query_length, 0

    def get_seq_length(self) -> int:
        """Return the tokens kept in the longest row; 0 where only the device knows the places."""
        return 0 if self.cache.places is not None else max(self.cache.lengths)

    def get_max_length(self) -> int:
        """Return -1: a slab grows where it must."""
        return -1


class SlabCache(Cache):
    """A cache of preallocated slabs with free rollback.

    `update` writes behind each row's length, and only `keep` moves the lengths: whatever a pass
    wrote and nobody kept is overwritten by the next one. Sliding-window layers keep every token
    and rely on the model's mask, so that a rejected tail can never push kept tokens out.

    Attributes:
        lengths: Kept tokens of each row.
        reserved: Tokens for which memory is allocated at first.
        shown: Least tokens that a pass sees; those behind its own must be masked.
        places: Where a pass writes, int64 on the device; None is behind the lengths. Such a pass
            sees whole slabs.
    """

    def __init__(self, layer_count: int, *, capacity: int, rows: int = 1) -> None:
        self.lengths = [0] * rows
        self.reserved = _round_up(capacity)
        self.shown = 0
        self.places: torch.Tensor | None = None
        self._slabs = [SlabLayer(self) for _ in range(layer_count)]
        super().__init__(layers=[*self._slabs])

    def keep(self, row: int, count: int) -> None:
        """Keep the first `count` tokens that the last pass wrote to `row`."""
        self.lengths[row] += count

    @property
    def capacity(self) -> int:
        """Tokens for which there is memory now; 0 before the first pass."""
        keys = self._slabs[0].keys
        return 0 if keys is None else keys.shape[-2]

    def reserve(self, end: int) -> None:
        """Make room for `end` tokens; only once something was written."""
        for layer in self._slabs:
            layer.slabs(end)

    def slabs(self, layer: int, end: int) -> KeysValues:
        """Return the slabs of a layer, which are there, with room for `end` tokens."""
        return self._slabs[layer].slabs(end)

    def states(self) -> list[torch.Tensor]:
        """Return the slabs of all layers, keys and values; none before the first pass."""
        both = (one for layer in self._slabs for one in (layer.keys, layer.values))
        return [one for one in both if one is not None]

    def itself(self) -> "SlabCache":
        """Return the cache, also through a weak proxy."""
        return self

    def read(self, row: int, start: int, end: int) -> list[KeysValues]:
        """Return copies of a row's tokens from `start` to `end`, layer by layer."""
        return [layer.read(row, start, end) for layer in self._slabs]

    def write(self, row: int, start: int, states: Sequence[KeysValues]) -> None:
        """Put what `read` returned at a row's tokens from `start` on; no length moves."""
        for layer, (keys, values) in zip(self._slabs, states, strict=True):
            layer.write(row, start, keys, values)

    def keep_path(self, row: int, places: Sequence[int]) -> None:
        """Keep the tokens at `places` (counted from the row's length) in that order.

        Places that already stand where they belong are not moved.
        """
        length = self.lengths[row]
        stay = 0
        while stay < len(places) and places[stay] == stay:
            stay += 1
        if stay < len(places):
            sources = [length + place for place in places[stay:]]
            for layer in self._slabs:
                layer.move(row, sources, length + stay)
        self.lengths[row] = length + len(places)


def supports_slab(config: PretrainedConfig) -> bool:
    """Return whether every layer of the model keeps plain keys and values.

    False for recurrent and hybrid layers and for layers that keep something beside keys and
    values: those need the model's own cache.
    """
    plain = {"DynamicLayer", "DynamicSlidingWindowLayer"}
    layers = DynamicCache(config=config).layers
    return all(type(layer).__name__ in plain for layer in layers)


def layer_count(config: PretrainedConfig) -> int:
    """Return how many layers of keys and values a model of `config` keeps."""
    layers = DynamicCache(config=config).layers
    if layers:
        return len(layers)
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def _round_up(tokens: int) -> int:
    return -(-tokens // GROWTH) * GROWTH


def _slab_like(states: torch.Tensor, capacity: int) -> torch.Tensor:
    rows, heads, new, width = states.shape
    return states.new_zeros((rows, heads, max(capacity, new), width))


def _grown(slab: torch.Tensor, needed: int) -> torch.Tensor:
    rows, heads, capacity, width = slab.shape
    larger = slab.new_zeros((rows, heads, _round_up(max(needed, capacity * 3 // 2)), width))
    larger[:, :, :capacity] = slab
    return larger
