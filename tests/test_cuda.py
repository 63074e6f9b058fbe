"""What only a GPU can show; CI has none."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llma_rag import Decoder
from llma_rag.engine.bitwise import is_bitwise
from llma_rag.engine.cuda.fused_step import FusedStep
from tests.models import character_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=4096,
        initializer_range=0.1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().cuda()
    return Decoder(model, tokenizer)


def test_steps_are_captured_and_keep_their_bits(decoder: Decoder) -> None:
    assert decoder.exactness == "bitwise"
    assert isinstance(decoder.runner.captured.function, FusedStep)
    assert is_bitwise(decoder.runner)


@pytest.mark.parametrize("sampled", [False, True])
def test_references_change_no_token(decoder: Decoder, sampled: bool) -> None:
    """Two requests at a time, so that graphs of two slabs take turns."""
    options = {"max_new_tokens": 300, "do_sample": sampled, "seed": 1}
    prompts = [[0, *range(50, 50 + length)] for length in (7, 40)]
    plain = [decoder.generate(one, draft=False, **options) for one in prompts]
    references = [one.text for one in plain]
    futures = [decoder.submit(one, references=references, **options) for one in prompts]
    for one, future in zip(plain, futures, strict=True):
        assert future.result().token_ids == one.token_ids
        assert future.result().stats.forward_passes < one.stats.forward_passes
