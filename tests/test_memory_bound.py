"""A request takes little more memory than its keys and values and 16 bytes per reference token."""

import random
from pathlib import Path

import pytest

from llma_rag import Decoder
from tests.models import character_tokenizer, tiny_model

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TOKENS = 200_000
ALLOWED = 50_000_000


def memory(name: str) -> int:
    line = next(one for one in STATUS.read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not CLEAR.exists(), reason="peaks are read from Linux' /proc")
def test_the_peak_of_a_request_is_bounded() -> None:
    model = tiny_model("llama-gqa")
    decoder = Decoder(model, character_tokenizer())
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghij", k=5)) for _ in range(500)]
    references = [" ".join(source.choices(words, k=TOKENS // 60)) for _ in range(10)]
    prompt = references[0][:300]
    decoder.generate(prompt, references=[prompt], max_new_tokens=8)
    CLEAR.write_text("5")
    before = memory("VmRSS")
    result = decoder.generate(prompt, references=references, max_new_tokens=100)
    peak = memory("VmHWM") - before
    config = model.config
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    slab = 2 * 4 * config.num_hidden_layers * width * 512
    assert result.stats.reference_tokens > TOKENS * 0.9
    assert peak <= slab + 16 * result.stats.reference_tokens + ALLOWED
