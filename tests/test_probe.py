"""The load-time probe: it finds what is wrong, blames no rounding, and changes nothing."""

import random
import warnings

import pytest
import torch
from transformers import AutoConfig

from llma_rag import Decoder
from llma_rag.engine import probe as probing
from llma_rag.engine.doctor import examine
from llma_rag.engine.load import context_length, most_selected
from llma_rag.engine.masks import knows_layers
from llma_rag.engine.probe import EXPLAINED, probe, runner_of
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.engine.verdict import Verdict
from tests.families import ATTENTION, HYBRID, MASKED, UNWINDOWED, build, config_of, model_of
from tests.models import VOCAB, character_tokenizer, of_generate


@pytest.mark.parametrize("family", ATTENTION)
def test_attention_models_are_exact_on_a_slab(family: str) -> None:
    verdict = probe(model_of(family))
    assert (verdict.wide_passes, verdict.memory) == ("exact", "slab")
    assert verdict.trees == (family not in {"bloom", "mpt", "falcon_alibi", "gpt_neo"})


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe", *sorted({*HYBRID} - {"xlstm"})])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_not_taken_for_an_error(family: str, dtype: torch.dtype) -> None:
    verdict = probe(build(family, dtype=dtype))
    assert verdict.wide_passes == "rounded"
    assert str(dtype).removeprefix("torch.") in verdict.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mamba", "jamba", "falcon_mamba"])
def test_passes_over_several_tokens_that_are_wrong_are_found(family, dtype) -> None:
    verdict = probe(build(family, dtype=dtype))
    assert (verdict.wide_passes, verdict.memory) == ("off", "own")
    assert "other logits than single steps" in verdict.reason


def test_state_in_the_modules_is_found() -> None:
    verdict = probe(model_of("recurrent_gemma"))
    assert (verdict.wide_passes, verdict.memory) == ("off", "none")
    assert "state" in verdict.reason


def test_state_that_rows_share_is_found() -> None:
    """Its logits hang on the token it saw last, whoever asked."""
    model, last = build("llama", seed=19), [0]

    def change(forward, given):
        output = forward(**given)
        output.logits[..., last[0]] += 30.0
        last[0] = int(given["input_ids"][0, -1])
        return output

    _Wrapped(model, change)
    verdict = probe(model)
    assert (verdict.wide_passes, verdict.memory) == ("off", "none")
    assert "not in a cache that a request could own" in verdict.reason


class _Wrapped:
    """Replaces a model's forward for one test; a mutant of the model."""

    def __init__(self, model, change) -> None:
        self.forward, self.change = model.forward, change
        model.forward = self

    def __call__(self, input_ids=None, position_ids=None, past_key_values=None, **rest):
        given = {"input_ids": input_ids, "position_ids": position_ids}
        given |= {"past_key_values": past_key_values, **rest}
        return self.change(self.forward, given)


def test_a_model_that_sees_later_tokens_is_found() -> None:
    """A warm pass over several tokens without causality, as with a broken attention kernel."""
    model = build("llama", seed=11)

    def change(forward, given):
        rows, cache = given["input_ids"].shape[1], given["past_key_values"]
        kept = cache.get_seq_length() if cache is not None else 0
        if kept and rows > 1:
            given["attention_mask"] = torch.zeros((1, 1, rows, kept + rows))
        return forward(**given)

    _Wrapped(model, change)
    verdict = probe(model)
    assert verdict.wide_passes == "off"
    assert "other logits" in verdict.reason


def test_a_pass_over_several_tokens_that_fails_is_a_reason_and_no_error() -> None:
    model = build("llama", seed=12)

    def change(forward, given):
        cache = given["past_key_values"]
        if cache is not None and cache.get_seq_length() and given["input_ids"].shape[1] > 1:
            raise RuntimeError("one token at a time")
        return forward(**given)

    _Wrapped(model, change)
    verdict = probe(model)
    assert (verdict.wide_passes, verdict.memory) == ("off", "own")
    assert "one token at a time" in verdict.reason


def test_a_model_that_always_fails_is_no_error_of_the_probe() -> None:
    model = build("llama", seed=13)

    def change(forward, given):
        raise RuntimeError("broken")

    _Wrapped(model, change)
    assert probe(model).reason == "The probe failed (RuntimeError: broken)."


def test_logits_that_are_not_finite_are_a_reason() -> None:
    model = build("llama", seed=14)
    model.lm_head.weight.data[3] = float("nan")
    verdict = probe(model)
    assert verdict.wide_passes == "off"
    assert "not finite" in verdict.reason


@pytest.mark.parametrize("padded", [1, 40])
def test_a_padded_vocabulary_at_minus_infinity_is_exact(padded: int) -> None:
    """As models hide it; with every option that looks at all scores, answers are `generate`'s."""
    model = build("llama", seed=14)

    def change(forward, given):
        output = forward(**given)
        output.logits[..., -padded:] = -float("inf")
        return output

    _Wrapped(model, change)
    assert probe(model).wide_passes == "exact"
    assert examine(model).status == "safe"
    decoder = Decoder(model, character_tokenizer())
    prompt = [20, 21, 22, 20, 21]
    for options in ({}, {"repetition_penalty": 1.2}, {"renormalize_logits": True}):
        expected = of_generate(model, prompt, max_new_tokens=20, **options)
        text = character_tokenizer().decode(expected)
        result = decoder.generate(prompt, references=[text], max_new_tokens=20, **options)
        assert list(result.token_ids) == expected
    sampled = {"do_sample": True, "seed": 2, "top_k": 0, "max_new_tokens": 20}
    plain = decoder.generate(prompt, draft=False, **sampled)
    drafted = decoder.generate(prompt, references=[plain.text], **sampled)
    assert drafted.token_ids == plain.token_ids
    assert max(plain.token_ids) < VOCAB - padded


def test_rows_of_minus_infinity_alone_are_not_finite() -> None:
    model = build("llama", seed=14)

    def change(forward, given):
        output = forward(**given)
        output.logits[:] = -float("inf")
        return output

    _Wrapped(model, change)
    with pytest.warns(UserWarning, match="not finite.*decoded as without references"):
        runner_of(model)


def test_a_mask_that_is_ignored_leaves_chains() -> None:
    model = build("llama", seed=15)

    def change(forward, given):
        return forward(**{**given, "attention_mask": None})

    _Wrapped(model, change)
    verdict = probe(model)
    assert (verdict.wide_passes, verdict.trees) == ("exact", False)


def test_the_probe_is_run_once_for_each_model_and_dtype(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(probing, "probe", lambda model: calls.append(model) or Verdict())
    model = build("llama", seed=16)
    for _ in range(3):
        runner_of(model)
    assert len(calls) == 1
    runner_of(model.to(torch.bfloat16))
    assert len(calls) == 2


def test_a_model_that_is_exact_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runner_of(build("llama", seed=17)).verdict.wide_passes == "exact"


def test_the_probe_takes_a_bounded_number_of_passes(monkeypatch) -> None:
    model, count = build("llama", seed=18), 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    model.register_forward_pre_hook(counted)
    probe(model)
    assert count <= 34
    count = 0
    monkeypatch.setattr(probing, "SLOW_PASS", 0.0)
    assert probe(model).wide_passes == "exact"
    assert count <= 24


@pytest.mark.parametrize("positions", [8, 12, 20])
def test_short_contexts(positions: int) -> None:
    verdict = probe(build("gpt2", n_positions=positions))
    assert verdict.wide_passes == ("off" if positions < 12 else "exact")


def test_windows_the_masks_do_not_know_exclude_trees() -> None:
    assert knows_layers(config_of("gemma3"))
    assert not knows_layers(config_of("gpt_neo"))
    config = config_of("gemma3")
    config.layer_types = ["chunked_attention", *config.layer_types[1:]]
    assert not knows_layers(config)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*MASKED, *UNWINDOWED, "mistral_window", "gemma3"])
def test_trees_see_what_steps_see_beyond_the_probe(family: str, attention: str) -> None:
    """Windows of which the masks of trees are made are longer than what is probed."""
    own = family in MASKED or family in UNWINDOWED
    model = build(family, attention, **({} if own else {"sliding_window": 64}))
    runner = runner_of(model)
    assert runner.supports_trees == runner.can_fix == (family not in {*UNWINDOWED, "llama4_text"})
    if not runner.supports_trees:
        assert runner.verdict.memory == ("own" if family in UNWINDOWED else "slab")
        return
    ids = [4 + n * n % 50 for n in range(150)]
    row = runner.open_row(200)
    prompt = Pass(row, ids[:-3])
    runner.run(prompt)
    runner.keep(prompt, [])
    step = Pass(row, ids[-3:-2], [5, ids[-2], 6, ids[-1], 7], [-1, -1, 0, 1, 1])
    found = runner.logits(step)[[0, 2, 4]]
    expected = model(torch.tensor([ids])).logits[0, -3:]
    assert (found - expected).abs().max() / expected.abs().max() < EXPLAINED


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "max_position_embeddings"), ("gpt2", "n_positions"), ("mpt", "max_seq_len"),
        ("whisper", "max_target_positions"),
    ],
)  # fmt: skip
def test_the_context_is_read_under_every_name(kind: str, name: str) -> None:
    assert context_length(AutoConfig.for_model(kind, **{name: 123})) == 123


def test_no_draft_reaches_tokens_among_which_a_model_selects() -> None:
    """Ties and roundings decide what it looks at, and are others in passes of another width."""
    runner = runner_of(build("deepseek_v32", seed=1))
    row = runner.open_row(100)
    for kept, limit in ((1, 62), (60, 3), (62, 1), (63, 0), (80, 0)):
        row.tokens = [5] * kept
        row.memory.length = kept
        assert runner.draft_limit(row) == limit
    assert most_selected(config_of("deepseek_v4", index_topk=8)) == 8 * 4


def test_queries_that_are_scaled_by_their_place_in_a_pass_exclude_trees() -> None:
    config = config_of("llama4_text", attention_chunk_size=None, no_rope_layers=[0, 0])
    config.layer_types = ["full_attention"] * 2
    config.attn_temperature_tuning = False
    assert knows_layers(config)
    config.attn_temperature_tuning = True
    assert not knows_layers(config)


def test_a_hook_that_is_set_later_is_probed() -> None:
    """As steering vectors are added: to the last token of a pass, whatever that is."""
    model = build("llama", "sdpa", seed=3)
    decoder = Decoder(model, character_tokenizer())

    def steer(module: object, given: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, -1] += 2.0
        return output

    handle = model.model.layers[0].mlp.register_forward_hook(steer)
    with pytest.warns(UserWarning, match="do not speed up"):
        plain = decoder.generate("abcdefgh", draft=False, max_new_tokens=30)
    drafted = decoder.generate("abcdefgh", references=[plain.text], max_new_tokens=30)
    expected = of_generate(model, decoder.tokenizer("abcdefgh")["input_ids"], max_new_tokens=30)
    assert list(drafted.token_ids) == list(plain.token_ids) == expected
    handle.remove()
    other = decoder.generate("abcdefgh", max_new_tokens=30)
    assert decoder.exactness == "argmax"
    assert other.token_ids != plain.token_ids


def test_autocast_of_the_caller_changes_nothing() -> None:
    """The worker's thread has none; kernels that were given mixed dtypes wrote past their slabs."""
    model = build("llama", "sdpa", hidden_size=64, head_dim=64)
    with torch.autocast("cpu", torch.bfloat16):
        verdict, runner = probe(model), runner_of(model)
        row = runner.open_row(40)
        for start, end in ((0, 20), (20, 25)):
            step = Pass(row, [5] * (end - start))
            assert runner.logits(step).dtype is torch.float32
            runner.keep(step, [])
    assert (verdict.wide_passes, verdict.fast) == ("exact", True)


@pytest.mark.parametrize("family", [*MASKED, "mistral_window", "gemma3"])
def test_windows_longer_than_the_probe_count(family: str) -> None:
    """Our attention is given no masks, so that it must be told of a window by other means."""
    model = build(family, "sdpa", **({} if family in MASKED else {"sliding_window": 64}))
    runner = runner_of(model)
    assert runner.verdict.fast == (family not in MASKED)
    ids = [4 + n * n % 50 for n in range(150)]
    row = runner.open_row(len(ids))
    found = []
    for start, end in ((0, 100), (100, 101), (101, 150)):
        step = Pass(row, ids[start : start + 1], ids[start + 1 : end], range(-1, end - start - 2))
        found.append(runner.logits(step).clone())
        runner.keep(step, range(end - start - 1))
    expected = model(torch.tensor([ids])).logits[0]
    difference = (torch.cat(found) - expected).abs().max() / expected.abs().max()
    assert difference < EXPLAINED


def test_a_row_of_any_memory_can_start_again() -> None:
    source = random.Random(0)
    prompt = [source.randrange(4, 60) for _ in range(10)]
    for family, memory in (("llama", "slab"), ("lfm2", "own"), ("llama", "none")):
        runner = StepRunner(model_of(family), Verdict(memory=memory))
        row = runner.open_row(32)
        first = runner.logits(Pass(row, prompt))
        runner.keep(Pass(row, prompt), [])
        row.memory.forget()
        assert row.owed == prompt
        row.tokens.clear()
        assert torch.equal(runner.logits(Pass(row, prompt)), first)
