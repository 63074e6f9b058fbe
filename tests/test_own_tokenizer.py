"""The worker's tokenizer is its own: what callers do with theirs does not reach it."""

import copy
import threading

import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from llma_rag import Decoder
from llma_rag.own_tokenizer import OwnTokenizer
from llma_rag.testing import ScriptedModel, byte_tokenizer
from tests.scripted import ids

TEXT = "a text that is longer than that"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return copy.deepcopy(byte_tokenizer())


def test_a_call_of_another_thread_does_not_truncate_a_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """It comes while the worker is about to encode: the tokenizer is as that call set it."""
    decoder = Decoder(ScriptedModel(ids("abc")), tokenizer, warmup=False)
    expected = decoder.generate(TEXT, max_new_tokens=3)
    backend = tokenizer.backend_tokenizer
    held = threading.Event()

    class Held(PreTrainedTokenizerFast):
        def set_truncation_and_padding(self, *given: object, **named: object) -> None:
            super().set_truncation_and_padding(*given, **named)
            backend.enable_truncation(4)
            held.set()

    tokenizer.__class__ = Held
    decoder.loop._own_tokenizer.current().__class__ = Held
    result = decoder.generate(TEXT, max_new_tokens=3)
    assert held.is_set()
    assert result.stats.prompt_tokens == expected.stats.prompt_tokens == len(ids(TEXT))
    assert decoder.tokenizer is tokenizer


def test_one_copy_is_used_while_nothing_changes(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = "</s>"
    own = OwnTokenizer(tokenizer)
    first = own.current()
    tokenizer(TEXT, truncation=True, max_length=4)
    tokenizer([TEXT, "b"], padding=True)
    tokenizer.decode([5])
    assert own.current() is first
    assert first is not tokenizer
    assert first.backend_tokenizer.truncation is first.backend_tokenizer.padding is None
    assert first(TEXT)["input_ids"] == ids(TEXT)


def changed(tokenizer: PreTrainedTokenizerFast, how: str) -> None:
    if how == "token":
        tokenizer.add_tokens(["longer"])
    elif how == "special token":
        tokenizer.add_tokens([AddedToken("that", special=True)])
    elif how == "template":
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    else:
        tokenizer.split_special_tokens = True


@pytest.mark.parametrize("how", ["token", "special token", "template", "attribute"])
def test_a_tokenizer_that_has_changed_is_copied_again(
    how: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = TEXT + "<|user|>"
    decoder = Decoder(ScriptedModel(ids("abc"), vocab_size=270), tokenizer, warmup=False)
    before = decoder.generate(text, max_new_tokens=3).stats.prompt_tokens
    changed(tokenizer, how)
    after = decoder.generate(text, max_new_tokens=3).stats.prompt_tokens
    assert after == len(tokenizer(text)["input_ids"]) != before
    special = tokenizer.convert_tokens_to_ids("that")
    assert (special in decoder.loop._special) is (how == "special token")


def test_added_tokens_keep_their_ids_whatever_their_order() -> None:
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "<s>": 7}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<s>", "<x>"])
    words.add_tokens([AddedToken("c d", lstrip=True), "b"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a")
    own = OwnTokenizer(tokenizer).current()
    assert own.added_tokens_decoder == tokenizer.added_tokens_decoder
    assert own.get_vocab() == tokenizer.get_vocab()
    assert own("a <x> c d<s> b")["input_ids"] == tokenizer("a <x> c d<s> b")["input_ids"]


def test_what_cannot_be_copied_is_used_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    slow = ByT5Tokenizer()
    assert OwnTokenizer(slow).current() is slow

    class Pieces:
        def pre_tokenize(self, text: object) -> None:
            """Leave the text in one piece."""

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Pieces())
    assert OwnTokenizer(tokenizer).current() is tokenizer
