"""The decoder's own options, given to a model at hand or together with how it is loaded."""

import copy
import inspect
from pathlib import Path

import pytest

from llma_rag import AnswerStore, Decoder
from llma_rag.decoder import DecoderOptions
from tests.models import character_tokenizer, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama-gqa").save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_the_options_are_those_of_the_constructor():
    own = inspect.signature(Decoder.__init__).parameters
    assert [*own][3:] == [*DecoderOptions.__annotations__]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_draft_tokens", -1),
        ("max_draft_depth", 0),
        ("min_match_length", 0),
        ("prefix_cache_bytes", -1),
    ],
)
def test_a_number_out_of_range_is_refused_when_the_decoder_is_made(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at least {value + 1}, got {value}"):
        Decoder(tiny_model("llama-gqa"), character_tokenizer(), **{name: value})


@pytest.mark.parametrize("depth", [1, 3, 64])
def test_no_draft_is_deeper_than_the_limit(depth):
    """The whole answer is the reference: every pass but the first could verify 8 tokens."""
    decoder = Decoder(
        tiny_model("llama-gqa"), character_tokenizer(), max_draft_tokens=8, max_draft_depth=depth
    )
    plain = decoder.generate("abcdefgh", draft=False, max_new_tokens=60)
    result = decoder.generate("abcdefgh", references=[plain.text], max_new_tokens=60)
    assert result.token_ids == plain.token_ids
    at_most = min(8, depth)
    assert result.stats.drafted_tokens > 0
    assert result.stats.drafted_tokens <= at_most * result.stats.forward_passes
    assert result.stats.generated_tokens <= (at_most + 1) * result.stats.forward_passes


def test_a_shared_decoder_takes_both_kinds_of_options(folder):
    store = AnswerStore(character_tokenizer())
    options = {"dtype": "float32", "recycling": False, "answers": store}
    decoder = Decoder.shared(folder, **options)
    try:
        assert Decoder.shared(folder, **options) is decoder
        assert Decoder.shared(folder, dtype="float32") is not decoder
        with pytest.raises(ValueError, match="`namespace`"):
            decoder.generate("ab", max_new_tokens=2)
        assert decoder.generate("ab", max_new_tokens=2, namespace="one").stats.generated_tokens == 2
    finally:
        decoder.close()


def test_a_loaded_model_has_one_decoder_while_that_lives():
    model, tokenizer = tiny_model("llama-gqa"), character_tokenizer()
    decoder = Decoder.shared_over(model, tokenizer)
    assert Decoder.shared_over(model, tokenizer) is decoder
    assert Decoder.shared_over(model, copy.copy(tokenizer)) is not decoder
    decoder.close()
    other = Decoder.shared_over(model, tokenizer)
    assert other is not decoder
    assert other.generate("ab", max_new_tokens=2).stats.generated_tokens == 2
