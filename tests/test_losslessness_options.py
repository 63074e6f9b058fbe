"""Rows T13 to T16 and T19: every option alone and combined, against `generate` and against ours."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessor,
    SynthIDTextWatermarkingConfig,
    TopKLogitsWarper,
    WatermarkingConfig,
)

from llma_rag import Decoder, Reference
from llma_rag.testing import ScriptedModel
from tests.models import VOCAB, character_tokenizer, of_generate, tiny_model
from tests.scripted import PROMPT, ids, tell

FAMILY = "llama-gqa"
COUNT = 24

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "repetition_penalty": [{"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}],
    "no_repeat_ngram_size": [{"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3}],
    "bad_words_ids": [{"bad_words_ids": [[n] for n in range(4, 40)] + [[50, 60]]}],
    "sequence_bias": [{"sequence_bias": [[[n], 4.0] for n in range(60, 64)] + [[[61, 62], -9.0]]}],
    "suppress_tokens": [{"suppress_tokens": list(range(4, 60))}],
    "begin_suppress_tokens": [{"begin_suppress_tokens": list(range(4, 90))}],
    "forced_bos_token_id": [{"forced_bos_token_id": 95}],
    "forced_eos_token_id": [{"forced_eos_token_id": 1}, {"forced_eos_token_id": [1, 7]}],
    "min_new_tokens": [{"min_new_tokens": 12, "eos_token_id": list(range(1, 60))}],
    "eos_token_id": [{"eos_token_id": list(range(40, 44))}, {"eos_token_id": np.int64(41)}],
    "exponential_decay_length_penalty": [
        {"exponential_decay_length_penalty": (5, 1.6), "eos_token_id": list(range(1, 6))}
    ],
    "renormalize_logits": [{"renormalize_logits": True, "repetition_penalty": 1.2}],
}
SAMPLED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "no top_k": {"top_k": 0},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.7},
    "epsilon_cutoff": {"epsilon_cutoff": 0.01},
    "eta_cutoff": {"eta_cutoff": 0.02},
}
OURS: dict[str, dict[str, Any]] = {
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.7},
}


class Shaped(LogitsProcessor):
    """Returns something else than scores of the shape that it got."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.change(scores)


def decoder() -> Decoder:
    return Decoder(tiny_model(FAMILY), character_tokenizer())


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[0, *[source.randrange(4, VOCAB) for _ in range(6)] * 3] for _ in range(count)]


def check(prompt: list[int], options: dict[str, Any], oracle: bool = True) -> int:
    """Assert that references change nothing; return how many drafted tokens were accepted."""
    ours = decoder()
    options = {"max_new_tokens": COUNT, **options}
    plain = ours.generate(prompt, draft=False, **options)
    references = [plain.text, plain.text[4:] * 2, "of no use"]
    result = ours.generate(prompt, references=references, **options)
    assert result.token_ids == plain.token_ids
    assert (result.text, result.finish_reason) == (plain.text, plain.finish_reason)
    if oracle:
        assert list(plain.token_ids) == of_generate(tiny_model(FAMILY), prompt, **options)
    return result.stats.accepted_tokens


@pytest.mark.parametrize("name", OPTIONS)
def test_T13_processors_give_what_generate_gives(name: str) -> None:
    accepted = [check(p, options) for options in OPTIONS[name] for p in prompts(4)]
    assert sum(accepted) > 0


@pytest.mark.parametrize("name", [*SAMPLED, *OURS])
def test_T13_options_without_an_oracle_give_what_plain_decoding_gives(name: str) -> None:
    options = OURS.get(name) or {"do_sample": True, "seed": 11, **SAMPLED[name]}
    accepted = [check(p, options, oracle=False) for p in prompts(4)]
    assert sum(accepted) > 0


@pytest.mark.parametrize("seed", range(50))
def test_T13_random_combinations(seed: int) -> None:
    source = random.Random(seed)
    options: dict[str, Any] = {}
    for name in source.sample(list(OPTIONS), source.randrange(2, 5)):
        options |= source.choice(OPTIONS[name])
    ours = source.random() < 0.5
    if ours:
        options |= source.choice([*OURS.values(), {}])
        for name in source.sample(list(SAMPLED), 2):
            options |= SAMPLED[name] | {"do_sample": True, "seed": seed}
    check(prompts(1, seed)[0], options, oracle=not ours)


@pytest.mark.parametrize(
    ("name", "value", "kept"), [("presence_penalty", 150.0, 1), ("frequency_penalty", 70.0, 2)]
)
def test_T13_repeat_penalties_lower_what_the_answer_holds(
    name: str, value: float, kept: int
) -> None:
    """The script says "aaaa" with 100 points; the penalty outweighs it at once or by its count."""
    told = tell("aaaaaaaa")
    assert told.generate("a" * 9, max_new_tokens=8).text == "aaaaaaaa"
    lowered = told.generate("a" * 9, references=["aaaaaaaa"], max_new_tokens=8, **{name: value})
    assert lowered.token_ids[:kept] == tuple(ids("a" * kept))
    assert lowered.token_ids.count(ids("a")[0]) == kept


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_T14_guidance_gives_what_generate_gives(scale: float) -> None:
    """Every pass of the unconditional branch is counted, one per token."""
    for prompt in prompts(3):
        check(prompt, {"guidance_scale": scale})
    result = decoder().generate(prompts(1)[0], guidance_scale=scale, draft=False, max_new_tokens=5)
    assert result.stats.forward_passes == 10


class Recorder(LogitsProcessor):
    """Remembers the context of each call; keeps state that a call too many would spoil."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert input_ids.dtype == torch.long
        assert scores.dtype == torch.float32
        self.seen.append(input_ids[0].tolist())
        scores = scores.clone()
        if len(self.seen) % 5 == 0:
            scores[0, 40 + len(self.seen)] += 1000
        return scores


def test_T15_a_stateful_processor_is_called_once_per_position_in_order() -> None:
    for prompt in prompts(4):
        plain, drafted = Recorder(), Recorder()
        expected = decoder().generate(
            prompt, draft=False, logits_processor=[plain], max_new_tokens=40
        )
        result = decoder().generate(
            prompt, references=[expected.text], logits_processor=[drafted], max_new_tokens=40
        )
        assert result.token_ids == expected.token_ids
        assert drafted.seen == plain.seen
        assert [len(one) for one in drafted.seen] == list(
            range(len(prompt), len(prompt) + len(result.token_ids))
        )
        assert result.stats.forward_passes < expected.stats.forward_passes


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_T15_a_watermark_is_that_of_generate(scheme: str) -> None:
    mark = WatermarkingConfig(bias=4.0, seeding_scheme=scheme)
    accepted = [check(p, {"watermarking_config": mark}) for p in prompts(4)]
    unmarked = decoder().generate(prompts(1)[0], max_new_tokens=COUNT)
    marked = decoder().generate(prompts(1)[0], max_new_tokens=COUNT, watermarking_config=mark)
    assert marked.token_ids != unmarked.token_ids
    assert sum(accepted) > 0


def test_T15_a_watermark_with_state_is_the_same_with_drafts() -> None:
    """SynthID remembers the contexts that it marked, so that a call too many would spoil it."""
    mark = SynthIDTextWatermarkingConfig(keys=[654, 400, 836, 123, 340], ngram_len=3)
    options = {"watermarking_config": mark, "do_sample": True, "seed": 5, "max_new_tokens": 60}
    accepted = [check(p, options, oracle=False) for p in prompts(4)]
    marked = decoder().generate(prompts(1)[0], **options)
    options.pop("watermarking_config")
    assert marked.token_ids != decoder().generate(prompts(1)[0], **options).token_ids
    assert sum(accepted) > 0


def test_T15_a_processor_of_the_caller_takes_the_place_of_ours() -> None:
    options = {"do_sample": True, "seed": 3, "top_k": 40, "max_new_tokens": 12}
    prompt = prompts(1)[0]
    narrowed = decoder().generate(prompt, **(options | {"top_k": 1}))
    greedy = decoder().generate(prompt, max_new_tokens=12)
    given = decoder().generate(prompt, logits_processor=[TopKLogitsWarper(1)], **options)
    assert narrowed.token_ids == greedy.token_ids == given.token_ids


class Forcing(LogitsProcessor):
    """Forces a token by an infinite score."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[0, 40 + input_ids.shape[1]] = float("inf")
        return scores


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "seed": 1, "top_k": 0}])
def test_T13_a_token_forced_by_an_infinite_score_is_taken(sampled: dict[str, Any]) -> None:
    options = {"logits_processor": [Forcing()], "max_new_tokens": 9}
    forced = of_generate(tiny_model(FAMILY), [5, 6, 7], do_sample=False, **options)
    assert forced == list(range(43, 52))
    assert list(decoder().generate([5, 6, 7], **options, **sampled).token_ids) == forced


UNSUPPORTED = {
    "num_beams": 4, "num_return_sequences": 2, "penalty_alpha": 0.6, "dola_layers": "high",
    "token_healing": True, "encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2,
    "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True,
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_T19_what_is_not_decoded_here_is_refused_by_name(name: str) -> None:
    model = ScriptedModel(ids("abc"))
    ours = Decoder(model, character_tokenizer())
    setattr(model.generation_config, name, UNSUPPORTED[name])
    with pytest.raises(ValueError, match=f"`{name}`.*not supported.*use `model.generate`"):
        ours.generate([5, 6], max_new_tokens=3)
    with pytest.raises(TypeError, match=f"Unknown generation option `{name}`"):
        ours.generate([5, 6], **{name: UNSUPPORTED[name]})


def test_a_model_that_ships_with_sampling_is_sampled() -> None:
    model = ScriptedModel([])
    ours = Decoder(model, character_tokenizer())
    greedy = ours.generate([5, 6], max_new_tokens=20)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    sampled = ours.generate([5, 6], max_new_tokens=20, seed=1)
    assert sampled.token_ids != greedy.token_ids
    assert ours.generate([5, 6], max_new_tokens=20, seed=1).token_ids == sampled.token_ids
    for options in ({"do_sample": False}, {"temperature": 0.0}, {"temperature": 0}):
        assert ours.generate([5, 6], max_new_tokens=20, **options).token_ids == greedy.token_ids


def test_options_of_the_call_win_over_defaults_they_over_the_model() -> None:
    model = ScriptedModel(ids("abcdefghij"))
    model.generation_config.max_new_tokens = 6
    prompt = ids(PROMPT)
    tokenizer = character_tokenizer()
    assert len(Decoder(model, tokenizer).generate(prompt).token_ids) == 6
    ours = Decoder(model, tokenizer, defaults={"max_new_tokens": 4})
    assert len(ours.generate(prompt).token_ids) == 4
    assert len(ours.generate(prompt, max_new_tokens=2).token_ids) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0, "do_sample": True}, "temperature"),
        ({"top_p": 1.5, "top_k": -2, "do_sample": True}, "top_k"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be at least 0, got -1"),
        ({"seed": 1.5}, "`seed` must be an integer, got 1.5"),
        ({"stop": [""]}, "`stop` must hold non-empty strings"),
        ({"regex": "a", "grammar": "b"}, "exclude each other"),
        ({"suppress_tokens": list(range(VOCAB))}, "forbid every token at position 2"),
        (
            {"suppress_tokens": list(range(VOCAB)), "renormalize_logits": True},
            "forbid every token at position 2",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder().generate([5, 6], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": "5"}, "`max_new_tokens` must be an integer, got '5'"),
        ({"max_new_tokens": 1.7}, "`max_new_tokens` must be an integer, got 1.7"),
        ({"stop": 5}, "`stop` must be a string or a list of strings, got 5"),
        ({"eos_token_id": "</s>"}, "`eos_token_id` must be .* as `stop`"),
        ({"eos_token_id": ["</s>"]}, "`eos_token_id` must be .* as `stop`"),
        ({"logits_processor": Shaped(None)}, "`logits_processor` must be a list of processors"),
        ({"stopping_criteria": Shaped(None)}, "`stopping_criteria` must be a list of criteria"),
        ({"references": "one text"}, "`references` must be a list of texts, got a `str`"),
        ({"references": Reference("one text")}, "`references` must be a list .* `Reference`"),
        ({"references": {"id": "text"}}, "`references` must be a list of texts, got a `dict`"),
        ({"history": "one text"}, "`history` must be a list of texts, got a `str`"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        decoder().generate([5, 6], **options)


@pytest.mark.parametrize("names", [["references", "history"], ["draft"], ["stop", "regex"]])
def test_options_that_are_none_are_not_set(names: list[str]) -> None:
    plain = decoder().generate([5, 6], max_new_tokens=30)
    result = decoder().generate([5, 6], max_new_tokens=30, **dict.fromkeys(names))
    assert result.token_ids == plain.token_ids
    assert result.stats.forward_passes == plain.stats.forward_passes


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda scores: scores[0], rf"\({VOCAB},\)"),
        (lambda scores: scores[:, :7], r"\(1, 7\)"),
        (lambda scores: None, "NoneType"),
    ],
)
def test_a_processor_that_returns_something_else_is_named(
    change: Any, got: str, sample: bool
) -> None:
    with pytest.raises(ValueError, match=rf"shape \(1, {VOCAB}\), got {got} from Shaped"):
        decoder().generate([5, 6], logits_processor=[Shaped(change)], do_sample=sample)


@pytest.mark.parametrize("temperature", [1e-40, 1e-38, -1.0, float("nan")])
def test_a_temperature_that_no_score_can_be_divided_by_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"`temperature` must be 0.* or at least 1e-30, got"):
        decoder().generate([5, 6], do_sample=True, temperature=temperature)
