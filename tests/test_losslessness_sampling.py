"""Row T17: a seed fixes the draws whatever is drafted; they have the right distribution."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llma_rag import Decoder
from llma_rag.engine.outcome import Outcome
from llma_rag.sampling import Chooser, gumbel
from llma_rag.testing import ScriptedModel, byte_tokenizer
from tests.models import character_tokenizer, tiny_model
from tests.scripted import PROMPT

FALSE_ALARM = 0.001
"""Probability that a right sampler with fresh noise fails one chi-square test; seeds are fixed."""


def chi_square_p(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the p-value; cells that are expected less than 5 times are joined into one."""
    expected = probabilities * counts.sum()
    assert counts[probabilities == 0].sum() == 0, "a token was drawn that the options forbid"
    large = expected >= 5
    seen = np.append(counts[large], counts[~large].sum())
    due = np.append(expected[large], expected[~large].sum())
    used = due > 0
    statistic = ((seen[used] - due[used]) ** 2 / due[used]).sum()
    freedom = torch.tensor((used.sum() - 1) / 2.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2)))


@pytest.mark.parametrize("vocab_size", [5, 40, 260])
@pytest.mark.parametrize("warped", [False, True])
def test_T17_draws_have_the_distribution_of_the_scores(vocab_size: int, warped: bool) -> None:
    """4,000 draws, one per position."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(1, vocab_size, generator=generator) * 2
    processors = LogitsProcessorList()
    if warped:
        processors += [TemperatureLogitsWarper(1.4), TopKLogitsWarper(30), TopPLogitsWarper(0.95)]
    chooser = Chooser(processors, seed=5)
    context: list[int] = []
    counts = np.zeros(vocab_size)
    choose = chooser.over(Outcome(logits), context)
    for _ in range(4000):
        context.append(choose(-1))
        counts[context[-1]] += 1
    scores = processors(torch.tensor([[0]]), logits)[0]
    assert chi_square_p(counts, scores.double().softmax(-1).numpy()) > FALSE_ALARM


def test_T17_draws_through_the_whole_decoder_with_drafts() -> None:
    """600 tokens whose logits are all the same; the drafts copy what was drawn before."""
    wanted = 2 * torch.randn(10, generator=torch.Generator().manual_seed(1))
    wanted[:4] = -torch.inf  # special tokens, which are never drafted
    model = ScriptedModel([], vocab_size=10)
    decoder = Decoder(model, byte_tokenizer())
    model.logits_at = dict.fromkeys(range(600), wanted)
    result = decoder.generate([8, 9], max_new_tokens=600, do_sample=True, top_k=0, seed=2)
    counts = np.bincount(result.token_ids, minlength=10)
    assert result.stats.accepted_tokens > 50
    assert chi_square_p(counts, wanted.double().softmax(-1).numpy()) > FALSE_ALARM


@pytest.mark.parametrize("seed", range(20))
def test_T17_a_seed_gives_the_same_tokens_under_any_draft(seed: int) -> None:
    decoder = Decoder(tiny_model("qwen2"), character_tokenizer())
    prompt = [0, *[50 + seed, 60, 70, 41] * 4]
    options = {"do_sample": True, "seed": seed, "temperature": 0.4, "max_new_tokens": 40}
    plain = decoder.generate(prompt, draft=False, **options)
    for references in ([], [plain.text], [plain.text[5:] * 3, "hostile " * 9]):
        result = decoder.generate(prompt, references=references, **options)
        assert result.token_ids == plain.token_ids
    wider = Decoder(tiny_model("qwen2"), character_tokenizer(), max_draft_tokens=3)
    assert wider.generate(prompt, references=[plain.text], **options).token_ids == plain.token_ids


def test_T17_other_seeds_give_other_answers_and_a_missing_one_is_drawn() -> None:
    decoder = Decoder(ScriptedModel([]), byte_tokenizer())
    options = {"do_sample": True, "max_new_tokens": 12, "top_k": 0, "temperature": 5.0}
    answers = {decoder.generate(PROMPT, seed=seed, **options).token_ids for seed in range(8)}
    assert len(answers) == 8
    free = {decoder.generate(PROMPT, **options).token_ids for _ in range(4)}
    assert len(free) == 4
    repeated = []
    for _ in range(2):
        torch.manual_seed(9)
        repeated.append(decoder.generate(PROMPT, **options).token_ids)
    assert repeated[0] == repeated[1]


def test_noise_depends_on_seed_position_and_token_alone() -> None:
    tokens = np.arange(1000)
    noise = gumbel(1, 7, tokens)
    assert np.array_equal(gumbel(1, 7, tokens[::-1])[::-1], noise)
    assert np.array_equal(gumbel(1, 7, np.array([5, 900])), noise[[5, 900]])
    assert np.isfinite(noise).all()
    for other in (gumbel(2, 7, tokens), gumbel(1, 8, tokens), gumbel(17, 0, tokens)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.15
    assert abs(noise.mean() - np.euler_gamma) < 0.2
    assert gumbel(-(2**70), 3, tokens).shape == (1000,)


def test_no_two_tokens_noise_differs_by_more_than_what_is_cut_off() -> None:
    """The largest and the smallest uniform numbers that 52 bits give."""
    from llma_rag.sampling import NOISE_RANGE

    extremes = np.array([0.5 * 2.0**-52, 1 - 0.5 * 2.0**-52])
    assert extremes[1] < 1
    noise = -np.log(-np.log(extremes))
    assert noise[1] - noise[0] < NOISE_RANGE
