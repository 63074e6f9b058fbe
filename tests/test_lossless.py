"""References never change a token: equality with `generate` over generated cases."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llma_rag import Decoder, Reference
from tests.models import CONFIGS, VOCAB, character_tokenizer, greedy, tiny_decoder, tiny_model

CASES_PER_FAMILY = 40
PROMPTS = ["Once upon a time", "The little dog", "Tom had a red ball", "One day, Lily", "The sun"]


def random_prompt(source: random.Random) -> list[int]:
    """A prompt with repetitions, so that the model's own context invites drafts too."""
    piece = [source.randrange(4, VOCAB) for _ in range(source.randrange(1, 12))]
    return [0, *(piece * source.randrange(1, 4))]


def hostile_references(source: random.Random, answer: list[int]) -> list[Reference | str]:
    """Slices of the true answer, corrupted slices, noise, special tokens and empty texts."""
    tokenizer = character_tokenizer()
    start = source.randrange(max(1, len(answer)))
    slice_ = answer[start : start + source.randrange(1, 40)]
    corrupted = [one if source.random() > 0.15 else source.randrange(4, VOCAB) for one in answer]
    noise = [source.randrange(4, VOCAB) for _ in range(30)]
    texts = [tokenizer.decode(ids) for ids in (answer, slice_, corrupted, noise)]
    texts += [texts[0][:20] + "</s>" + texts[0][20:], "<s><|user|></s>", "", "aaaa" * 20]
    return [Reference(text) for text in source.sample(texts, source.randrange(1, len(texts)))]


@pytest.mark.parametrize("family", CONFIGS)
def test_references_never_change_a_token(family: str) -> None:
    source, drafted = random.Random(family), 0
    decoder = tiny_decoder(family)
    for _ in range(CASES_PER_FAMILY):
        prompt = random_prompt(source)
        count = source.randrange(1, 48)
        expected = greedy(tiny_model(family), prompt, count)
        references = hostile_references(source, expected)
        result = decoder.generate(prompt, references=references, max_new_tokens=count)
        assert list(result.token_ids) == expected
        drafted += result.stats.drafted_tokens
    assert drafted > 100, "the cases never exercised a draft"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_true_reference_saves_forward_passes(family: str) -> None:
    decoder = tiny_decoder(family)
    for start in range(20):
        plain = decoder.generate([0, 20 + start, 50, 60], draft=False, max_new_tokens=40)
        if len(set(plain.token_ids)) > 15:
            break
    result = decoder.generate([0, 20 + start, 50, 60], references=[plain.text], max_new_tokens=40)
    assert result.token_ids == plain.token_ids
    assert result.stats.forward_passes <= plain.stats.forward_passes / 2
    [span] = result.copied_spans
    assert span.end - span.start >= len(plain.text) - 3


def test_plain_decoding_takes_one_forward_per_token() -> None:
    result = tiny_decoder("llama-gqa").generate([0, 9, 9, 9], draft=False, max_new_tokens=12)
    assert result.stats.forward_passes == result.stats.generated_tokens
    assert result.stats.drafted_tokens == 0


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_the_count_of_new_tokens_is_exact(count: int) -> None:
    result = tiny_decoder("gemma").generate([0, 70, 71, 70, 71], max_new_tokens=count)
    assert len(result.token_ids) == count or result.finish_reason == "stop"
    assert len(result.token_ids) <= count


def test_stories_equal_generate_with_and_without_references(shared) -> None:
    """A pretrained model: 40 prompts x 150 tokens, real argmax, fp32."""
    folder = str(shared / "weights" / "stories260K")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    decoder = Decoder(model, tokenizer)
    source = random.Random(3)
    forwards = plain_forwards = 0
    for number in range(40):
        names = source.sample(["Lily", "Tom", "Ben", "Mia", "Sam", "Anna", "Max", "Sue"], 2)
        prompt = tokenizer(f"{PROMPTS[number % len(PROMPTS)]} {names[0]} and {names[1]}")
        ids = prompt["input_ids"]
        expected = greedy(model, ids, 150)
        plain = decoder.generate(ids, draft=False, max_new_tokens=150)
        text = plain.text
        references = [text[10:200], text[:60] + " dragon " + text[60:], "No overlap whatsoever."]
        result = decoder.generate(ids, references=references, max_new_tokens=150)
        assert list(plain.token_ids) == expected
        assert list(result.token_ids) == expected
        assert result.text == tokenizer.decode(expected, skip_special_tokens=True)
        forwards += result.stats.forward_passes
        plain_forwards += plain.stats.forward_passes
        for span in result.copied_spans:
            copied = references[span.reference_index][span.reference_start : span.reference_end]
            assert result.text[span.start : span.end] == copied
    assert forwards < plain_forwards / 3
