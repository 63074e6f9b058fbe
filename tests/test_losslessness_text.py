"""Rows T22 to T27, T35, T36: odd references, odd text, spans, streams, vocabularies, prompts."""

import random
import unicodedata
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from llma_rag import Decoder, Reference
from llma_rag.detokenizer import Detokenizer
from llma_rag.testing import ScriptedModel, byte_tokenizer
from tests.models import shared_folder
from tests.scripted import PROMPT, ids, tell

ANSWER = "An answer, copied from the reference."

ODD = {
    "crlf": "one\r\ntwo\rthree\n",
    "composed": unicodedata.normalize("NFC", "naïve café Å"),
    "decomposed": unicodedata.normalize("NFD", "naïve café Å"),
    "zero width": "a\u200bb\u200dc\ufeffd\u2060e",
    "ligatures": "ﬁne ﬂow ﬀ œuvre",
    "right to left": "שלום عليكم \u202eabc\u202c",
    "joined emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🙂🙂你好",
    "control": "nul\x00bell\x07esc\x1b[31m",
    "replacement": "already \ufffd\ufffd\ufffd\ufffd there",
}


@pytest.mark.parametrize(
    "references",
    [
        [""], ["a"], [ANSWER] * 9, [PROMPT], ["</s></s>", "<s>", "<|user|>"], ["\x00"],
        [Reference("")],
        ["a" * 100_000], [" ".join(["word"] * 50_000)], [None, 3, b"bytes", object()], [],
    ],
)  # fmt: skip
def test_T22_odd_references_do_no_harm(references: list) -> None:
    """No special token is drafted: the script holds one, and it is not among the copies."""
    script = [*ids(ANSWER[:9]), 2, *ids(ANSWER[9:])]
    result = tell(script).generate(PROMPT, references=references, max_new_tokens=len(script))
    assert list(result.token_ids) == script
    assert result.stats.references_used + result.stats.references_skipped == len(references)


def test_T22_a_reference_of_a_million_tokens_is_indexed_up_to_the_limit() -> None:
    source = random.Random(0)
    noise = "".join(chr(source.randrange(97, 123)) for _ in range(1_000_000))
    result = tell(ANSWER).generate(PROMPT, references=[ANSWER + noise], max_new_tokens=len(ANSWER))
    assert result.text == ANSWER
    assert result.stats.references_truncated == 1
    assert result.stats.accepted_tokens > 20


def shared_tokenizers() -> list[str]:
    folder = shared_folder()
    if folder is None:
        return []
    return [str(one) for one in sorted((folder / "tokenizers").glob("*"))]


@pytest.fixture(scope="module", params=shared_tokenizers() or ["none"])
def tokenizer(request) -> PreTrainedTokenizerBase:
    if request.param == "none":
        pytest.skip("needs the shared folder's tokenizers")
    return AutoTokenizer.from_pretrained(request.param)


SENTENCES = [
    "The crossing takes 75 minutes in calm weather.",
    "Mr. O'Neil paid €1,299.99 (incl. VAT) on 2024-03-17.",
    "def add(a, b):\n    return a + b\n",
    "Zürich, Łódź and São Paulo: 東京 🙂.",
]


def test_T23_tokens_of_a_text_alone_meet_those_inside_a_prompt(tokenizer) -> None:
    """Only the first token or two differ, and no special token stands in a reference."""
    from llma_rag.encoding import encode_references
    from llma_rag.reference import accept_references

    encoded = encode_references(tokenizer, accept_references(SENTENCES), 1000)
    special = set(tokenizer.all_special_ids)
    for text, alone in zip(SENTENCES, encoded.token_ids, strict=True):
        assert not special & set(alone)
        inside = tokenizer("Context: " + text + " Question?")["input_ids"]
        tail = list(alone[2:-1])
        assert any(inside[start : start + len(tail)] == tail for start in range(len(inside))), (
            "more than two tokens at the beginning differ"
        )


@pytest.mark.parametrize("name", ODD)
def test_T24_odd_text_is_streamed_as_it_is(name: str, tokenizer) -> None:
    """Over real tokenizers: pieces join to the text, which is what decoding all tokens gives."""
    text = ODD[name]
    script = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in script]
    pieces.append(detokenizer.flush())
    whole = tokenizer.decode(script, skip_special_tokens=True)
    assert "".join(pieces) == detokenizer.text == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", ODD)
def test_T24_odd_text_is_copied_as_it_is(name: str) -> None:
    text = ODD[name]
    with tell(text).stream(
        "Say: " + text, references=[text, text[2:]], max_new_tokens=len(ids(text))
    ) as stream:
        pieces = [chunk.text for chunk in stream]
    assert "".join(pieces) == stream.result.text == text
    assert stream.result.stats.accepted_tokens > 0
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=3), st.binary(max_size=9))
@settings(max_examples=40, deadline=None)
def test_T24_any_text_and_any_bytes(prompt: str, references: list[str], raw: bytes) -> None:
    """Lone surrogates, NUL and broken bytes: nothing is raised, drafts change nothing."""
    script = [*ids("".join(references).encode("utf-8", "replace").decode()), *bytes_as_ids(raw)]
    decoder = tell(script)
    count = max(1, len(script))
    plain = decoder.generate("p" + prompt, draft=False, max_new_tokens=count)
    result = decoder.generate("p" + prompt, references=references, max_new_tokens=count)
    assert (result.token_ids, result.text) == (plain.token_ids, plain.text)
    whole = byte_tokenizer().decode(list(result.token_ids), skip_special_tokens=True)
    assert result.text == whole


def bytes_as_ids(raw: bytes) -> list[int]:
    """Return the tokens of single bytes, which need not form characters."""
    return [byte_ids()[one] for one in raw]


@cache
def byte_ids() -> dict[int, int]:
    """Return the token of each byte; byte-level tokens write bytes as printable characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    missing = [one for one in range(256) if one not in printable]
    letters = {chr(one): one for one in printable}
    letters |= {chr(256 + place): one for place, one in enumerate(missing)}
    return {
        letters[token]: number
        for token, number in byte_tokenizer().get_vocab().items()
        if token in letters
    }


def test_T24_broken_bytes_without_end_do_not_hold_the_stream_back() -> None:
    detokenizer = Detokenizer(byte_tokenizer())
    given_out = "".join(detokenizer.add(token) for token in bytes_as_ids(b"\xff" * 300))
    assert len(given_out) >= 200
    assert given_out + detokenizer.flush() == "\ufffd" * 300


def spans_are_true(decoder: Decoder, answer_text: str, references: list[str], prompt: str) -> int:
    result = decoder.generate(prompt, references=references, max_new_tokens=400)
    assert result.text.startswith(answer_text)
    for span in result.copied_spans:
        copied = references[span.reference_index][span.reference_start : span.reference_end]
        assert result.text[span.start : span.end] == copied
        assert copied
    return len(result.copied_spans)


@pytest.mark.parametrize("name", ODD)
def test_T25_spans_hold_whole_equal_characters(name: str) -> None:
    text = f"before {ODD[name]} and behind {ODD[name]}"
    decoder = tell([*ids("So: " + text), 1])
    assert spans_are_true(decoder, "So: " + text, ["x" * 7 + text, text[3:]], PROMPT) > 0


def test_T25_spans_with_a_tokenizer_that_tells_no_offsets() -> None:
    slow = ByT5Tokenizer()
    assert not slow.is_fast
    text = "Zürich 東京 🙂 and a long plain tail of words"
    script = slow(text, add_special_tokens=False)["input_ids"]
    model = ScriptedModel([*script, 1], vocab_size=384, eos_token_id=1)
    decoder = Decoder(model, slow)
    spans_are_true(decoder, text, ["Here: " + text + " there", text], "Say it")


def test_T26_the_same_text_in_several_references_is_told_the_same_way() -> None:
    decoder = tell(ANSWER)
    references = ["Unrelated words.", "x " + ANSWER, ANSWER, ANSWER + " y"]
    seen = {
        decoder.generate(PROMPT, references=references, max_new_tokens=len(ANSWER)).copied_spans
        for _ in range(3)
    }
    assert len(seen) == 1
    (span,) = seen.pop()
    assert {span.reference_index, *span.also_in} == {1, 2, 3}


def test_T27_chunks_join_to_the_answer_in_order() -> None:
    decoder = tell(ANSWER + "</s>")
    asked = {"references": [ANSWER], "stop": ["never"], "max_new_tokens": 60}
    whole = decoder.generate(PROMPT, **asked)
    with decoder.stream(PROMPT, **asked) as stream:
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text == stream.result.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert max(len(chunk.token_ids) for chunk in chunks) > 5
    ends = [span.end for chunk in chunks for span in chunk.copied_spans]
    assert ends == sorted(ends)
    assert len(chunks) <= whole.stats.forward_passes


@pytest.mark.parametrize("size", [120, 300])
def test_T35_ids_outside_the_models_vocabulary_are_never_drafted(size: int) -> None:
    """A model with fewer tokens than the tokenizer, and one that is padded."""
    answer = "abcABC" * 3
    script = [one for one in ids(answer) if one < size]
    decoder = Decoder(ScriptedModel(script, vocab_size=size), byte_tokenizer())
    high = "".join(byte_tokenizer().decode([one]) for one in range(60, 259))
    result = decoder.generate(
        script[:2], references=[answer, high, "ab" + high], max_new_tokens=len(script)
    )
    assert list(result.token_ids) == script
    with pytest.raises(ValueError, match=f"ids from 0 to {size - 1}, got {size}"):
        decoder.generate([5, size], max_new_tokens=1)


def test_T35_a_resized_vocabulary_counts_as_it_is_now() -> None:
    model = ScriptedModel(ids("abc"), vocab_size=260)
    model.resize_token_embeddings(270)
    decoder = Decoder(model, byte_tokenizer())
    assert decoder.generate([265, 266], references=["abc"], max_new_tokens=3).text == "abc"


@pytest.mark.parametrize("kind", ["list", "tuple", "tensor"])
def test_T36_token_ids_of_a_chat_template_are_used_as_they_are(kind: str) -> None:
    model = ScriptedModel(ids("Hello"))
    chat = byte_tokenizer()
    template = "<s>{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
    prompt = chat.apply_chat_template(
        [{"role": "user", "content": "Hi <|user|>"}], chat_template=template,
        tokenize=True, return_dict=True,
    )["input_ids"]  # fmt: skip
    decoder = Decoder(model, chat)
    fed = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: fed.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    forms = {"list": prompt, "tuple": tuple(prompt), "tensor": torch.tensor(prompt)}
    result = decoder.generate(forms[kind], references=["Hello"], max_new_tokens=5)
    assert fed[0] == prompt
    assert (result.text, result.stats.prompt_tokens) == ("Hello", len(prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        [], "", [1.5], [True], [[1, 2]], torch.tensor([[1, 2]]), [None], b"ab", bytearray(b"ab"),
        5, None, {"input_ids": [5]}, ["a"],
    ],
)  # fmt: skip
def test_T36_a_prompt_that_is_none_is_refused(prompt) -> None:
    with pytest.raises((TypeError, ValueError), match="`prompt` must"):
        tell("abc").generate(prompt, max_new_tokens=1)
