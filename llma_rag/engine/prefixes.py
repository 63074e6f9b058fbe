"""Keep keys and values of prompts' beginnings, so that a later prompt need not compute them."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from transformers import PreTrainedModel

from llma_rag.engine.cache import KeysValues
from llma_rag.engine.memory import SlabMemory
from llma_rag.engine.step import Row, StepRunner
from llma_rag.engine.twin import interventions_of

CHUNK = 256
"""Tokens of a chunk, the unit in which prompts are computed, kept and found again."""


SAMPLED = 8
"""Numbers of each weight that are looked at, about."""


class PrefixCache:
    """Chunks of prompts by all tokens up to their end; the longest unused are dropped first.

    Prompts must be computed in chunks of `CHUNK` tokens that begin at multiples of it, kept ones
    and others alike: the passes behind a chunk are then the same whether it was found or computed,
    and so are all bits. Not locked: the decoder's worker thread alone uses it.

    Attributes:
        most_bytes: Bytes that the kept keys and values take at most.
        bytes: Bytes that they take.
    """

    def __init__(self, runner: StepRunner, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._chunks: OrderedDict[bytes, list[KeysValues]] = OrderedDict()
        self._model = runner.model

    @staticmethod
    def serves(runner: StepRunner, model: PreTrainedModel) -> bool:
        """Return whether keys and values of a caller's model depend on the prompt's tokens alone.

        False where the model keeps other state, where adapters may be switched or callers' hooks
        do something else, and where rotary embeddings depend on the length of the whole.
        """
        verdict = runner.verdict
        free = runner.rope.switch is None and not interventions_of(model)
        return verdict.memory == "slab" and verdict.fast and free

    @torch.inference_mode()  # captured slabs were made in it
    def restore(self, row: Row, tokens: Sequence[int], namespace: str | None) -> int:
        """Fill an empty row with the longest kept beginning of `tokens`, all but the last at most.

        Returns:
            How many tokens the row now holds.
        """
        assert isinstance(row.memory, SlabMemory)
        found: list[bytes] = []
        for key in self._keys(tokens[:-1], namespace):
            if key not in self._chunks:
                break
            found.append(key)
        for number, key in enumerate(found):
            row.memory.cache.write(row.memory.row, number * CHUNK, self._chunks[key])
        for key in reversed(found):
            self._chunks.move_to_end(key)
        length = len(found) * CHUNK
        row.memory.cache.lengths[row.memory.row] = length
        row.tokens = list(tokens[:length])
        return length

    @torch.inference_mode()
    def store(self, row: Row, namespace: str | None) -> None:
        """Keep the chunks of a row; a prompt's last ones are dropped first: no other needs them."""
        assert isinstance(row.memory, SlabMemory)
        keys = [*self._keys(row.tokens, namespace)]
        for number, key in enumerate(keys):
            if key not in self._chunks:
                start = number * CHUNK
                chunk = row.memory.cache.read(row.memory.row, start, start + CHUNK)
                self.bytes += _size(chunk)
                self._chunks[key] = chunk
        for key in reversed(keys):
            self._chunks.move_to_end(key)
        while self.bytes > self.most_bytes:
            _, oldest = self._chunks.popitem(last=False)
            self.bytes -= _size(oldest)

    def _keys(self, tokens: Sequence[int], namespace: str | None) -> Iterator[bytes]:
        """Yield a key for each whole chunk; weights that are written to change all keys."""
        key = hashlib.sha256(repr((namespace, *self._weights())).encode()).digest()
        for start in range(0, len(tokens) - CHUNK + 1, CHUNK):
            chunk = array("q", tokens[start : start + CHUNK]).tobytes()
            key = hashlib.sha256(key + chunk).digest()
            yield key

    @torch.inference_mode()
    def _weights(self) -> Iterator[object]:
        """Yield what tells of weights that were exchanged or written to.

        Writes through `.data` are not counted by torch: some numbers of each weight tell of them.
        """
        weights = [*self._model.parameters(), *self._model.buffers()]
        yield sum(one._version for one in weights if not one.is_inference())
        plain = [one for one in weights if type(one.detach()) is torch.Tensor]
        yield [one.data_ptr() for one in plain]
        numbers = [one.flatten()[:: max(1, one.numel() // SAMPLED)] for one in plain]
        by_kind = groupby(sorted(numbers, key=_kind), _kind)
        yield [torch.cat([*kind]).tolist() for _, kind in by_kind]


def _kind(numbers: torch.Tensor) -> str:
    return f"{numbers.dtype} {numbers.device}"


def _size(chunk: Sequence[KeysValues]) -> int:
    return sum(_bytes(keys) + _bytes(values) for keys, values in chunk)


def _bytes(states: torch.Tensor) -> int:
    return states.numel() * states.element_size()
