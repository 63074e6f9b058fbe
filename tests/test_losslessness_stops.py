"""Rows T08 to T12: limits, stop strings, criteria and end tokens that a draft runs over."""

import copy
import random

import pytest
import torch
from tokenizers import AddedToken
from transformers import StoppingCriteria

from llma_rag import ContextOverflowError, Decoder
from llma_rag.testing import ScriptedModel, byte_tokenizer
from tests.scripted import PROMPT, ids, scripted, spelled, tell, until_stop

WORDS = [
    "the ",
    "END",
    "cat ",
    "\n\n",
    "naïve ",
    "東京",
    "🙂",
    "</a>",
    "a",
    "ab",
    "aab ",
    "User:",
    " ",
]


def random_case(source: random.Random) -> tuple[str, list[str], list[str]]:
    """An answer, stop strings that may occur in it, and references that may hold it."""
    text = "".join(source.choice(WORDS) for _ in range(source.randrange(2, 16)))
    stops = []
    for _ in range(source.randrange(1, 4)):
        start = source.randrange(len(text))
        piece = text[start : start + source.choice((1, 1, 2, 3, 8))]
        stops.append(piece if source.random() < 0.9 else piece + "never")
    broken = text[: len(text) // 2] + "X" + text[len(text) // 2 :]
    references = source.sample([text, text[3:], broken, "Other. " + text, text * 2], 3)
    return text, stops, references


def test_T10_a_stop_string_may_be_a_special_token_without_a_role() -> None:
    """As `<|eot_id|>` is in base models; it has no text in which it could be found."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True)])
    token = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert token not in tokenizer.all_special_ids
    script = [*ids("ab"), token, *ids("cd")]
    model = ScriptedModel(script, vocab_size=len(tokenizer))
    result = Decoder(model, tokenizer).generate(PROMPT, stop=["<|eot|>"], max_new_tokens=5)
    assert (result.text, result.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize("seed", range(10))
def test_T10_stop_strings_cut_where_plain_decoding_cuts(seed: int) -> None:
    """600 generated cases in all; the expected cut is worked out without the decoder."""
    source, drafted, cut_in_draft = random.Random(seed), 0, 0
    for _ in range(60):
        text, stops, references = random_case(source)
        script = ids(text)
        tokens, expected, stopped = until_stop(script, stops)
        result = tell(script).generate(
            PROMPT, references=references, stop=stops, max_new_tokens=len(script)
        )
        assert (list(result.token_ids), result.text) == (tokens, expected)
        assert result.finish_reason == ("stop" if stopped else "length")
        drafted += result.stats.drafted_tokens
        cut_in_draft += stopped and result.stats.accepted_tokens > 0
    assert drafted > 100
    assert cut_in_draft > 5


@pytest.mark.parametrize(
    ("answer", "stops"),
    [
        ("copied text END more", ["END"]),  # inside a draft
        ("copied text", ["t"]),  # one character, also in the middle
        ("END at once", ["END"]),  # at the first token
        ("emoji 🙂 after", ["🙂"]),  # four bytes, four tokens
        ("one two three", ["three", "two th", "o"]),  # several, overlapping
        ("a  b", [" ", "  "]),  # one is the beginning of the other
        ("line\n\nUser: hi", ["\nUser:"]),
    ],
)
def test_T10_stop_strings_of_every_kind(answer: str, stops: list[str]) -> None:
    tokens, expected, _ = until_stop(ids(answer), stops)
    for references in ([], [answer], ["before " + answer + " behind"]):
        with tell(answer).stream(
            PROMPT, references=references, stop=stops, max_new_tokens=60
        ) as stream:
            pieces = [chunk.text for chunk in stream]
        assert "".join(pieces) == stream.result.text == expected
        assert list(stream.result.token_ids) == tokens


def test_T10_stop_strings_end_the_same_tokens_as_in_generate() -> None:
    """`generate` also finds a stop string that begins in the prompt; none of these does."""
    model, _ = scripted()
    source = random.Random(5)
    for _ in range(12):
        text, stops, references = random_case(source)
        decoder = tell(text)
        prompt = torch.tensor([ids(PROMPT + "\x00")])
        expected = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=len(ids(text)),
            stop_strings=stops, tokenizer=byte_tokenizer(), pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        result = decoder.generate(
            prompt[0].tolist(), references=references, stop=stops, max_new_tokens=len(ids(text))
        )
        assert list(result.token_ids) == expected


def test_T10_a_special_token_as_stop_string_ends_the_answer() -> None:
    decoder = tell("Hello<|user|>and on")
    result = decoder.generate(PROMPT, stop="<|user|>", max_new_tokens=30)
    assert (result.text, result.finish_reason) == ("Hello", "stop")


@pytest.mark.parametrize(
    ("script", "stop", "text"),
    [
        ("ab<|user|>cd", "b<|user|>", "a"),
        ("ab<|user|>cd", "<|user|>c", "ab"),
        ("ab<|user|>cd", "user|>c", "ab"),
        ("ab<|user|><|user|>cd", "<|user|><|user|>", "ab"),
        ("ab<|user|>cd<|user|>ef", "d<|user|>e", "abc"),
        ("ab</s>cd", "b</s>", "a"),
        ("ab<|user|>cd", "<|user|>x", None),
        ("ab<|user|>cd", "bc", None),
    ],
)
@pytest.mark.parametrize("drafted", [False, True])
def test_T10_stop_strings_may_hold_special_tokens(
    script: str, stop: str, text: str | None, drafted: bool
) -> None:
    """As `generate` finds them, and cut where they begin."""
    model, _ = scripted()
    decoder, count = tell(script), len(ids(script))
    prompt = torch.tensor([ids(PROMPT)])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count,
        stop_strings=[stop], tokenizer=byte_tokenizer(), pad_token_id=0,
    )[0, prompt.shape[1] :].tolist()  # fmt: skip
    references = ["ab", "cdef", "abcdef"] if drafted else []
    with decoder.stream(PROMPT, references=references, stop=stop, max_new_tokens=count) as stream:
        pieces = [chunk.text for chunk in stream]
    result = stream.result
    assert list(result.token_ids) == expected
    assert "".join(pieces) == result.text == (spelled(ids(script)) if text is None else text)
    assert result.finish_reason == ("length" if text is None else "stop")


@pytest.mark.parametrize("drafted", [False, True])
def test_T10_a_special_token_may_be_spelled_in_ordinary_tokens(drafted: bool) -> None:
    script = [token for character in "ab<|user|>cd" for token in ids(character)]
    references = ["ab<|", "user", "|>cd"] if drafted else []
    decoder = tell(script)
    result = decoder.generate(PROMPT, stop="<|user|>", references=references, max_new_tokens=20)
    assert (result.text, result.finish_reason) == ("ab", "stop")
    assert list(result.token_ids) == script[: len("ab<|user|>")]


class Recorded(StoppingCriteria):
    """Remembers what it was shown and stops behind a token or at a length."""

    def __init__(self, token: int | None = None, length: int | None = None) -> None:
        self.token, self.length, self.seen = token, length, []

    def __call__(self, input_ids, scores, **_):
        self.seen.append(input_ids[0].tolist())
        met = input_ids[0, -1] == self.token or input_ids.shape[1] == self.length
        return torch.full((1,), bool(met))


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_T11_criteria_see_each_committed_length_once_in_order(cut: int) -> None:
    answer = "a copied answer of some length"
    prompt = ids(PROMPT)
    criteria = Recorded(length=len(prompt) + cut), Recorded()
    result = tell(answer).generate(
        prompt, references=[answer], stopping_criteria=criteria, max_new_tokens=25
    )
    assert list(result.token_ids) == ids(answer)[:cut]
    assert result.finish_reason == "stop"
    for one in criteria:
        assert [len(seen) for seen in one.seen] == list(
            range(len(prompt) + 1, len(prompt) + cut + 1)
        )
        assert one.seen[-1] == prompt + ids(answer)[:cut]
    assert result.stats.accepted_tokens > 0 or cut < 3


def test_T11_a_criterion_on_the_last_token_stops_where_generate_stops() -> None:
    answer = "first, second, third"
    model, _ = scripted()
    decoder = tell(answer)
    prompt = torch.tensor([ids(PROMPT)])
    comma = ids(",")[0]
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, pad_token_id=0,
        stopping_criteria=[Recorded(token=comma)],
    )[0, prompt.shape[1] :].tolist()  # fmt: skip
    result = decoder.generate(
        PROMPT, references=[answer], stopping_criteria=[Recorded(token=comma)], max_new_tokens=20
    )
    assert list(result.token_ids) == expected == ids("first,")


def test_T11_max_time_ends_the_answer_at_a_token() -> None:
    result = tell("a long answer").generate(
        PROMPT, references=["a long answer"], max_time=1e-9, max_new_tokens=20
    )
    assert (len(result.token_ids), result.finish_reason) == (1, "length")


@pytest.mark.parametrize("end", range(1, 24, 2))
@pytest.mark.parametrize("least", [0, 6])
def test_T12_end_tokens_in_references_end_where_plain_decoding_ends(end: int, least: int) -> None:
    """Two end ids, one of them an ordinary token that the reference holds many times."""
    answer = "abcdefghijklmnopqrstuvwxyz"
    script = [*ids(answer[:end]), 1, *ids(answer[end:])]
    references = [answer, answer[:end] + "</s>" + answer[end:], "</s></s>"]
    options = {"eos_token_id": [1, ids("m")[0]], "max_new_tokens": 24, "min_new_tokens": least}
    plain = tell(script).generate(PROMPT, draft=False, **options)
    result = tell(script).generate(PROMPT, references=references, **options)
    assert result.token_ids == plain.token_ids
    assert result.text == plain.text
    assert result.finish_reason == plain.finish_reason
    if not least:
        assert list(result.token_ids) == script[: min(end, 12) + 1]
    assert len(result.token_ids) > least


@pytest.mark.parametrize("count", [0, 1, 2])
def test_T09_the_count_is_exact_whatever_is_drafted(count: int) -> None:
    model, _ = scripted()
    tell("copy this long sentence, please")
    decoder = Decoder(model, byte_tokenizer(), max_draft_tokens=40)
    result = decoder.generate(
        PROMPT, references=["copy this long sentence, please"], max_new_tokens=count
    )
    assert list(result.token_ids) == ids("copy")[:count]
    assert result.finish_reason == "length"
    assert result.stats.forward_passes == count


@pytest.mark.parametrize("length", [62, 63, 64, 65, 100])
def test_T08_a_prompt_that_fills_the_context_is_refused_before_the_model_runs(length: int) -> None:
    model = ScriptedModel(ids("abcdef"), context_length=64)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    decoder = Decoder(model, byte_tokenizer())
    calls.clear()
    if length < 64:
        result = decoder.generate([9] * length, references=["abcdef"], max_new_tokens=10)
        assert list(result.token_ids) == ids("abcdef")[: 64 - length]
        assert result.finish_reason == "length"
    else:
        with pytest.raises(ContextOverflowError, match="64"):
            decoder.generate([9] * length, max_new_tokens=10)
        assert calls == []


def test_a_length_of_prompt_and_answer_counts_as_in_generate() -> None:
    model, _ = scripted()
    decoder = tell("abcdefghij")
    model.generation_config.max_length = len(ids(PROMPT)) + 4
    try:
        assert spelled(decoder.generate(PROMPT).token_ids) == "abcd"
        assert spelled(decoder.generate(PROMPT, max_new_tokens=6).token_ids) == "abcdef"
        with pytest.raises(ValueError, match="pass `max_new_tokens`"):
            decoder.generate(PROMPT + " and more")
    finally:
        model.generation_config.max_length = None
