"""Structured answers: always of the form that was asked for, and the same whatever is drafted."""

import copy
import json
import random
import re
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from llma_rag import Decoder
from llma_rag.demo import MODEL
from llma_rag.grammar import MAX_TABLES
from llma_rag.testing import BYTE_VOCABULARY, ScriptedModel, byte_tokenizer
from tests.models import character_tokenizer, tiny_model
from tests.scripted import PROMPT, ids, tell

pytest.importorskip("llguidance", reason="structured answers are an optional extra")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["report", "letter"]},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
ANSWER = '{"name": "Tom Smith", "age": 42, "kind": "letter", "tags": ["red", "green"]}'


def test_forced_text_is_drafted_for_free() -> None:
    decoder = tell(ANSWER + "</s>")
    plain = decoder.generate(PROMPT, json_schema=PERSON, draft=False, max_new_tokens=200)
    result = decoder.generate(PROMPT, json_schema=PERSON, max_new_tokens=200)
    assert result.text == plain.text == ANSWER
    assert result.token_ids == plain.token_ids
    assert result.finish_reason == "stop"
    assert plain.stats.forward_passes == len(plain.token_ids)
    assert result.stats.forward_passes < plain.stats.forward_passes / 2


def test_copies_and_forced_text_go_together() -> None:
    decoder = tell(ANSWER + "</s>")
    references = ["The letter of Tom Smith, 42, is red.", ANSWER[5:]]
    alone = decoder.generate(PROMPT, json_schema=PERSON, max_new_tokens=200)
    result = decoder.generate(PROMPT, references=references, json_schema=PERSON, max_new_tokens=200)
    assert result.token_ids == alone.token_ids
    assert result.stats.forward_passes < alone.stats.forward_passes


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 2.0}])
def test_answers_of_a_random_model_are_valid_and_the_same(seed: int, options: dict) -> None:
    """The model knows nothing of JSON; references hold text that the schema forbids."""
    decoder = Decoder(tiny_model("llama-gqa"), character_tokenizer())
    options = {**options, "seed": seed, "json_schema": PERSON, "max_new_tokens": 200}
    prompt = [0, *random.Random(seed).choices(range(4, 90), k=9)]
    plain = decoder.generate(prompt, draft=False, **options)
    references = [plain.text, plain.text.upper(), '{"name": 3, "age": "x"}', "not JSON at all"]
    result = decoder.generate(prompt, references=references, **options)
    assert (result.token_ids, result.text) == (plain.token_ids, plain.text)
    assert result.finish_reason == "stop"
    value = json.loads(result.text)
    assert sorted(value) == sorted(PERSON["properties"])
    assert value["kind"] in ("report", "letter")
    assert 0 <= value["age"] <= 999


def test_an_answer_that_is_cut_says_so() -> None:
    result = tell(ANSWER).generate(PROMPT, json_schema=PERSON, max_new_tokens=20)
    assert result.finish_reason == "length"
    assert result.text == ANSWER[:20]


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("stop", [", ", '"age"', "</s>", "4"])
def test_stop_strings_are_not_looked_for_in_a_form(stop: str, draft: bool) -> None:
    decoder = tell(ANSWER + "</s>")
    result = decoder.generate(
        PROMPT, json_schema=PERSON, stop=[stop], draft=draft, max_new_tokens=200
    )
    assert (result.text, result.finish_reason) == (ANSWER, "stop")


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize(("count", "reason"), [(3, "length"), (6, "stop"), (7, "length")])
def test_a_criterion_that_cuts_a_form_is_a_limit(count: int, reason: str, draft: bool) -> None:
    """The form is complete behind six letters, and may go on."""
    length = len(ids(PROMPT)) + count
    result = tell("abcabcabc").generate(
        PROMPT,
        regex="(abc){2,3}",
        stopping_criteria=[lambda seen, _: seen.shape[1] >= length],
        draft=draft,
        max_new_tokens=20,
    )
    assert (result.text, result.finish_reason) == ("abcabcabc"[:count], reason)


def test_a_criterion_at_the_end_token_leaves_an_answer_complete() -> None:
    criteria = [lambda seen, _: bool(seen[0, -1] == 1)]
    result = tell("abc</s>").generate(
        PROMPT, regex="abc", stopping_criteria=criteria, max_new_tokens=20
    )
    assert (result.text, result.finish_reason) == ("abc", "stop")


def test_tables_of_few_choices_of_end_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, made = tell("abc"), []
    grammars = decoder.loop._grammars
    table = grammars._table
    monkeypatch.setattr(grammars, "_tables", {})
    monkeypatch.setattr(grammars, "_table", lambda *asked: made.append(asked[2]) or table(*asked))
    for end in (5, 6, 5, 7, 8, 5, 9, 5, 6):
        decoder.generate(PROMPT, regex="a", eos_token_id=end, max_new_tokens=2)
    assert made == [(5,), (6,), (7,), (8,), (9,), (6,)]
    assert len(grammars._tables) == MAX_TABLES


@pytest.mark.parametrize(
    ("option", "source", "pattern"),
    [
        ("regex", r"[0-9]{3}-[a-f]{4}", r"[0-9]{3}-[a-f]{4}"),
        (
            "regex",
            r"(yes|no|perhaps), because [a-z ]{5}\.",
            r"(yes|no|perhaps), because [a-z ]{5}\.",
        ),
        ("grammar", 'start: ("ab" | "cd")+ "!"', r"(ab|cd)+!"),
        ("grammar", 'root ::= "x" [0-9] [0-9] "y"', r"x[0-9][0-9]y"),
        ("json_schema", '{"enum": ["one", "two"]}', r'"(one|two)"'),
    ],
)
def test_every_form_is_kept(option: str, source: str, pattern: str) -> None:
    decoder = Decoder(tiny_model("llama-gqa"), character_tokenizer())
    for seed in range(4):
        asked = {option: source, "do_sample": True, "seed": seed, "max_new_tokens": 80}
        plain = decoder.generate([0, 9, 9], draft=False, **asked)
        result = decoder.generate([0, 9, 9], references=[plain.text, "abcdabcd"], **asked)
        assert result.token_ids == plain.token_ids
        if result.finish_reason == "stop":
            assert re.fullmatch(pattern, result.text)


def test_T16_a_grammar_that_starts_behind_the_reasoning_starts_inside_a_draft() -> None:
    grammar = (
        "start: thought answer\n"
        "thought[lazy]: /(.|\\n)*<\\/think>/\n"
        'answer: %json {"type": "integer"}'
    )
    thought = "I think of it.\nSo the number is 42.</think>"
    decoder = tell(thought + "42</s>")
    asked = {"grammar": grammar, "max_new_tokens": 80}
    plain = decoder.generate(PROMPT, draft=False, **asked)
    result = decoder.generate(PROMPT, references=[thought + " abc", thought + "x"], **asked)
    assert result.text == plain.text == thought + "42"
    assert result.token_ids == plain.token_ids
    assert result.stats.accepted_tokens > 20
    wrong = tell(thought + "abc42")
    answer = wrong.generate(PROMPT, references=[thought + "abc"], **asked).text
    assert answer.startswith(thought)
    assert json.loads(answer.removeprefix(thought)) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "[a-"}, "`regex` is not valid"),
        ({"json_schema": {"type": "objekt"}}, "`json_schema` is not valid.*objekt"),
        ({"grammar": "start: missing"}, "`grammar` is not valid.*missing"),
        ({"json_schema": "not json"}, "`json_schema` is not valid"),
        ({"json_schema": {"const": object()}}, "`json_schema` is not valid.*serializable"),
        ({"json_schema": True}, "`json_schema` must be a mapping or its JSON text, got True"),
        ({"json_schema": dict}, r"`json_schema` must be .* pass what `model_json_schema\(\)`"),
        ({"regex": 5}, "`regex` must be a string, got 5"),
    ],
)
def test_forms_that_are_not_valid_are_refused(options: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tell("abc").generate(PROMPT, max_new_tokens=3, **options)


def test_a_tokenizer_that_strips_text_writes_spaces_all_the_same() -> None:
    """llguidance tokenises the space that must follow a colon by itself."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    decoder = Decoder.from_pretrained(MODEL)
    result = decoder.generate("How many?", json_schema=schema, max_new_tokens=30)
    assert result.text.startswith('{"a": ')


def test_tokens_that_the_model_does_not_know_are_never_written() -> None:
    """As where tokens were added to a tokenizer and the model was not resized."""
    words = copy.deepcopy(byte_tokenizer())
    words.add_tokens(['{"name": '])
    assert words.convert_tokens_to_ids('{"name": ') >= BYTE_VOCABULARY
    decoder = Decoder(ScriptedModel(ids(ANSWER + "</s>"), eos_token_id=1), words)
    result = decoder.generate(PROMPT, json_schema=PERSON, max_new_tokens=200)
    plain = decoder.generate(PROMPT, json_schema=PERSON, max_new_tokens=200, draft=False)
    assert result.token_ids == plain.token_ids
    assert result.text == ANSWER


def test_a_model_that_knows_too_few_tokens_is_refused() -> None:
    words = PreTrainedTokenizerFast.from_pretrained(MODEL)
    decoder = Decoder(ScriptedModel([5], eos_token_id=1), words)
    with pytest.raises(ValueError, match=rf"all {len(words)} tokens.*one with {BYTE_VOCABULARY}"):
        decoder.generate([5, 6], json_schema=PERSON, max_new_tokens=9)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"llma-rag\[structured\]"):
        tell("abc").generate(PROMPT, regex="a+", max_new_tokens=3)


def test_end_tokens_penalties_and_limits_hold_beside_a_grammar() -> None:
    model = ScriptedModel(ids('"aaaa"'), eos_token_id=None)
    decoder = Decoder(model, byte_tokenizer())
    schema = {"type": "string", "maxLength": 6}
    result = decoder.generate(PROMPT, json_schema=schema, max_new_tokens=40)
    assert result.finish_reason == "stop", "the tokenizer's end token ends it"
    assert json.loads(result.text)[:4] == "aaaa"
    without = decoder.generate(
        PROMPT, json_schema=schema, suppress_tokens=ids("a"), max_new_tokens=40
    )
    assert "a" not in json.loads(without.text)
