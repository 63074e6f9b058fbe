"""A request takes little more memory than its keys and values and 16 bytes per reference token.

What is held counts, not the holes of glibc's heap: freed tensors leave some between those that
stay, in `generate` as much as here, and differently in every run.
"""

import ctypes
import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llma_rag import Decoder, drafting
from llma_rag.engine.cache import SlabLayer
from llma_rag.index import SuffixIndex
from tests.models import VOCAB, character_tokenizer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TOKENS, PROMPT, ANSWER = 200_000, 1_500, 40
ALLOWED = 50_000_000
LAYERS = 16
M_MMAP_THRESHOLD, SMALL, LARGE = -3, 1 << 18, 1 << 25
"""Setting of glibc for the bytes from which memory goes back at once; the value here, its usual."""

KEPT = 2 * LAYERS * 2 * 128 * 4
"""Bytes of one token's keys and values: 2 heads of 128 in each layer, float32."""

pytestmark = pytest.mark.skipif(
    not (CLEAR.exists() and hasattr(ctypes.CDLL(None), "malloc_trim")),
    reason="peaks are read from Linux' /proc, with glibc",
)


def memory(name: str) -> int:
    line = next(one for one in STATUS.read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module", autouse=True)
def no_holes() -> Iterator[None]:
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, SMALL)
    yield
    library.mallopt(M_MMAP_THRESHOLD, LARGE)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A model whose keys and values take more than the allowance, and little else does."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=2, head_dim=128, max_position_embeddings=4096,
        bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    made = Decoder(LlamaForCausalLM(config).eval(), character_tokenizer())
    made.generate("warm", references=["warm up"], max_new_tokens=8)
    return made


def over_the_bound(decoder: Decoder) -> int:
    """Return by how many bytes the peak of a request lies above what is allowed; negative below."""
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghij", k=5)) for _ in range(500)]
    references = [" ".join(source.choices(words, k=TOKENS // 60)) for _ in range(10)]
    prompt = references[0][:PROMPT]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed must not hide what this one takes
    CLEAR.write_text("5")
    before = memory("VmRSS")
    result = decoder.generate(prompt, references=references, max_new_tokens=ANSWER)
    peak = memory("VmHWM") - before
    assert result.stats.reference_tokens > TOKENS * 0.9
    slab = KEPT * -(-(PROMPT + ANSWER) // 256) * 256
    return peak - slab - 16 * result.stats.reference_tokens - ALLOWED


def test_the_peak_of_a_request_is_bounded(decoder: Decoder) -> None:
    assert over_the_bound(decoder) <= 0


def test_a_second_copy_of_the_slab_is_found(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: concatenating instead of writing in place, which holds old and new at once."""
    original, held = SlabLayer._slabs_for, list[torch.Tensor]()

    def copying(self: SlabLayer, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = original(self, *given)
        held.extend(one.clone() for one in found)
        del held[: -2 * LAYERS]
        return found

    monkeypatch.setattr(SlabLayer, "_slabs_for", copying)
    assert over_the_bound(decoder) > 0


def test_an_index_of_python_objects_is_found(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: a table of the runs of up to four tokens before each place, beside the index."""

    class Table(SuffixIndex):
        def __init__(self, *texts: object, **options: object) -> None:
            super().__init__(*texts, **options)
            places = range(4, len(self.tokens))
            self.table = {(at, n): tuple(self.tokens[at - n : at]) for at in places for n in (2, 4)}

    monkeypatch.setattr(drafting, "SuffixIndex", Table)
    assert over_the_bound(decoder) > 0
