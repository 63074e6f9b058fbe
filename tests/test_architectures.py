"""References never change a token, whatever the architecture: T01, T03 to T07 and T21."""

import random
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from llma_rag import Decoder
from llma_rag.engine.probe import runner_of
from llma_rag.engine.snapshot import Snapshot
from llma_rag.engine.step import MAX_OWED, Pass
from tests.driving import decode, random_chain, random_tree
from tests.families import (
    ATTENTION,
    FAMILIES,
    HYBRID,
    attentions,
    build,
    decoder_of,
    model_of,
)
from tests.models import VOCAB, character_tokenizer, greedy, of_generate

PROMPTS = 6
REFERENCES_PER_PROMPT = 3
"""6 x 3 cases for each of more than 112 models: see `test_T01_has_enough_cases`."""

NEW_TOKENS = 14

MODELS = [(family, kind) for family in FAMILIES for kind in attentions(family)]

DECODED_PLAINLY = (
    "mamba", "falcon_mamba", "jamba", "recurrent_gemma", "zamba", "minimax",
    )  # fmt: skip
"""Where a pass over several tokens is wrong in transformers 5.23, or state is in the modules."""


def prompt_of(source: random.Random, most: int = 10) -> list[int]:
    piece = [source.randrange(4, VOCAB) for _ in range(source.randrange(1, most))]
    return piece * source.randrange(1, 3)


def references_of(source: random.Random, answer: list[int]) -> list[str]:
    """The answer itself, a slice of it, the answer with errors, and noise, in any selection."""
    start = source.randrange(len(answer))
    errors = [one if source.random() > 0.2 else source.randrange(VOCAB) for one in answer]
    noise = [source.randrange(4, VOCAB) for _ in range(20)]
    decode_ids = character_tokenizer().decode
    texts = [decode_ids(ids) for ids in (answer, answer[start:], errors, noise)]
    return source.sample(texts, source.randrange(1, 5))


def quiet_decoder(family: str, attention: str) -> Decoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return decoder_of(family, attention)


@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_T01_references_never_change_a_token(family: str, attention: str) -> None:
    source = random.Random(f"{family} {attention}")
    model, decoder = model_of(family, attention), quiet_decoder(family, attention)
    drafted = 0
    for _ in range(PROMPTS):
        prompt = prompt_of(source)
        expected = greedy(model, prompt, NEW_TOKENS)
        plain = decoder.generate(prompt, draft=False, max_new_tokens=NEW_TOKENS)
        assert list(plain.token_ids) == expected
        for _ in range(REFERENCES_PER_PROMPT):
            references = references_of(source, expected)
            result = decoder.generate(prompt, references=references, max_new_tokens=NEW_TOKENS)
            assert list(result.token_ids) == expected
            drafted += result.stats.drafted_tokens
    assert (drafted > 30) == (family not in DECODED_PLAINLY)


def test_T01_has_enough_cases() -> None:
    assert len(MODELS) * PROMPTS * REFERENCES_PER_PROMPT >= 2000
    assert len(ATTENTION) >= 20


WINDOWED = ["mistral_window", "gemma2", "gemma3", "gpt_oss", "cohere2", "starcoder2", "exaone4"]
WINDOWED_MODELS = [(family, kind) for family in WINDOWED for kind in attentions(family)]


@pytest.mark.parametrize(("family", "attention"), WINDOWED_MODELS)
def test_T03_sliding_window_straddled_by_drafts_and_rejected_tails(family, attention) -> None:
    """Windows of 8, prompts of 1 to 24, drafts of up to 20 with errors: the logits are equal."""
    model = model_of(family, attention)
    runner = runner_of(model)
    for length in range(1, 25, 2):
        source = random.Random(length)
        prompt = [source.randrange(4, VOCAB) for _ in range(length)]
        plain = decode(runner, prompt, 20)
        assert plain.tokens == greedy_without_end(model, prompt, 20)
        for propose in (random_chain(source, plain.tokens), random_tree(source, plain.tokens)):
            drafted = decode(runner, prompt, 20, propose)
            assert drafted.tokens == plain.tokens
            assert drafted.passes < plain.passes
            assert torch.allclose(drafted.logits, plain.logits, rtol=1e-4, atol=1e-4)


def greedy_without_end(model, prompt: list[int], count: int) -> list[int]:
    return of_generate(model, prompt, max_new_tokens=count, do_sample=False, eos_token_id=None)


SWITCH = 24
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 3.0, 2.5, 2.0],
    "original_max_position_embeddings": SWITCH,
    "factor": 4.0,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": SWITCH,
}
ROPES = {
    "llama-longrope": ("llama", {"rope_parameters": _LONG, "max_position_embeddings": 4 * SWITCH}),
    "phi3-longrope": (
        "phi3",
        {
            "rope_parameters": _LONG,
            "max_position_embeddings": 4 * SWITCH,
            "original_max_position_embeddings": SWITCH,
        },
    ),
    "llama-dynamic": ("llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": SWITCH}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN, "max_position_embeddings": 4 * SWITCH}),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ROPES)
def test_T04_no_pass_straddles_the_switch_of_the_rotary_embeddings(name, attention) -> None:
    """Prompts that end up to 12 tokens before or 3 behind the switch, each with right and wrong
    drafts that would cross it."""
    family, changes = ROPES[name]
    model = build(family, attention, **changes)
    runner = runner_of(model)
    for length in range(SWITCH - 12, SWITCH + 4):
        source = random.Random(length)
        prompt = [source.randrange(4, VOCAB) for _ in range(length)]
        # `generate` keeps the frequencies of a longer sequence until it sees one below the switch.
        model(torch.tensor([[5]]))
        expected = greedy_without_end(model, prompt, 20)
        plain = decode(runner, prompt, 20)
        assert plain.tokens == expected, f"prompt of {length}"
        for propose in (random_chain(source, expected), random_tree(source, expected)):
            drafted = decode(runner, prompt, 20, propose)
            assert drafted.tokens == expected, f"prompt of {length}"
            assert torch.allclose(drafted.logits, plain.logits, rtol=1e-4, atol=1e-4)


def test_T04_a_longer_row_does_not_rotate_a_shorter_one() -> None:
    """Dynamic rotary embeddings keep the longest length seen; rows that take turns must not."""
    family, changes = ROPES["llama-dynamic"]
    model = build(family, **changes)
    runner = runner_of(model)
    long, short = ([5 + n % 60 for n in range(length)] for length in (60, SWITCH + 2))
    alone = decode(runner, short, 8)
    row = runner.open_row(80)
    runner.logits(Pass(row, long))
    assert torch.equal(decode(runner, short, 8).logits, alone.logits)


@pytest.mark.parametrize("family", [*HYBRID, "bamba", "mamba2", "rwkv"])
def test_T05_recurrent_state_is_put_back_after_a_rejection(family: str) -> None:
    model = model_of(family)
    runner = runner_of(model)
    assert runner.verdict.memory == "own"
    assert runner.verdict.wide_passes == "exact"
    for seed in range(6):
        source = random.Random(seed)
        prompt = prompt_of(source)
        expected = greedy_without_end(model, prompt, 40)
        plain = decode(runner, prompt, 40)
        drafted = decode(runner, prompt, 40, random_chain(source, expected))
        assert drafted.tokens == plain.tokens == expected
        assert torch.allclose(drafted.logits, plain.logits, rtol=1e-4, atol=1e-4)
        assert drafted.passes <= 30
        assert drafted.widest <= MAX_OWED + 2 + 20 + 20


@pytest.mark.parametrize("family", sorted({*HYBRID} - {"qwen4_exp", "deepseek_v4", "xlstm"}))
def test_T05_a_snapshot_copies_recurrent_state_only(family: str) -> None:
    """Its size is the same behind 8 and behind 80 tokens: keys and values are not copied.

    Not so for the compressed keys of two families and for a state that is no cache at all.
    """
    runner = runner_of(model_of(family))
    sizes = []
    for length in (8, 80):
        row = runner.open_row(128)
        step = Pass(row, [4 + n % 50 for n in range(length)])
        runner.logits(step)
        runner.keep(step, [])
        arguments = row.memory.open(0)
        sizes.append(Snapshot(arguments["past_key_values"]).copied_bytes)
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("family", DECODED_PLAINLY)
def test_T06_models_in_which_drafts_would_be_wrong_are_decoded_plainly(family: str) -> None:
    model = build(family, seed=1)
    with pytest.warns(UserWarning, match="do not speed up"):
        decoder = Decoder(model, character_tokenizer())
    Decoder(model, character_tokenizer())  # a second warning would be an error
    prompt = [10, 11, 12, 10, 11]
    expected = greedy(model, prompt, 20)
    text = character_tokenizer().decode(expected)
    result = decoder.generate(prompt, references=[text], max_new_tokens=20)
    assert list(result.token_ids) == expected
    assert result.stats.drafted_tokens == 0
    assert result.stats.forward_passes == result.stats.generated_tokens


@pytest.mark.parametrize("family", ["rwkv", "recurrent_gemma", "mamba"])
def test_T06_rows_that_take_turns_keep_their_own_state(family: str) -> None:
    decoder = quiet_decoder(family, "eager")
    prompts = [[10 + n, 20, 30 + n, 40] for n in range(4)]
    solo = [decoder.generate(one, max_new_tokens=12).token_ids for one in prompts]
    futures = [decoder.submit(one, max_new_tokens=12) for one in prompts]
    assert [future.result().token_ids for future in futures] == solo


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_T07_no_pass_goes_beyond_the_learned_positions(attention: str) -> None:
    """GPT-2 with 64 positions: every prompt from 1 to 63, filled up by drafts of up to 40."""
    model = build("gpt2", attention, n_positions=64)
    decoder = Decoder(model, character_tokenizer(), max_draft_tokens=40)
    for length in range(1, 64):
        source = random.Random(length)
        prompt = [source.randrange(4, VOCAB) for _ in range(length)]
        expected = greedy(model, prompt, 64 - length)
        text = character_tokenizer().decode(expected + expected)
        result = decoder.generate(prompt, references=[text], max_new_tokens=100)
        assert list(result.token_ids) == expected


def test_T07_the_runner_itself_limits_drafts_to_the_positions() -> None:
    model = build("gpt2", n_positions=64)
    runner = runner_of(model)
    row = runner.open_row(64)
    step = Pass(row, list(range(4, 64)))
    runner.logits(step)
    runner.keep(step, [])
    assert runner.draft_limit(row) == 3, "60 kept, one committed, three drafted: 64 positions"


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_T21_encoder_decoder_models_are_refused_by_name(kind: str) -> None:
    sizes = {"t5": {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}}
    sizes["bart"] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    config = AutoConfig.for_model(kind, vocab_size=VOCAB, **sizes[kind])
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(
        ValueError, match=rf"`model` must be decoder-only, got .*{type(model).__name__}"
    ):
        Decoder(model, character_tokenizer())


def test_training_mode_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(model_of("llama").config).train()
    with pytest.raises(ValueError, match="training mode"):
        Decoder(model, character_tokenizer())
