"""Kept beginnings of prompts change no bit, stay within their memory and within their namespace."""

import copy
from collections.abc import Sequence

import pytest
import torch

from llma_rag import Decoder
from llma_rag.engine import prefixes
from llma_rag.engine.prefixes import PrefixCache
from llma_rag.engine.probe import runner_of
from llma_rag.engine.step import Pass, StepRunner
from tests.models import VOCAB, character_tokenizer, tiny_model
from tests.test_losslessness_caches import adapt

CHUNK = 16
NAMES = ("llama-gqa", "qwen2", "mistral", "gemma", "gemma2")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "CHUNK", CHUNK)
    monkeypatch.setattr("llma_rag.loop.CHUNK", CHUNK)


def decoder(name: str = "llama-gqa", size: int = 1 << 20) -> Decoder:
    return Decoder(tiny_model(name), character_tokenizer(), prefix_cache_bytes=size)


def prompt(length: int, seed: int = 0) -> list[int]:
    return [4 + (seed * 7 + n * n + n // 3) % (VOCAB - 4) for n in range(length)]


def logits_of(runner: StepRunner, cache: PrefixCache, ids: Sequence[int]) -> torch.Tensor:
    row = runner.open_row(len(ids))
    start = cache.restore(row, ids, None)
    while len(ids) - start > CHUNK:
        step = Pass(row, ids[start : start + CHUNK])
        runner.run(step)
        runner.keep(step, [])
        start += CHUNK
    cache.store(row, None)
    return runner.logits(Pass(row, ids[start:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [CHUNK, 3 * CHUNK, 3 * CHUNK + 5])
def test_found_and_computed_chunks_give_the_same_bits(
    name: str, dtype: torch.dtype, shared: int
) -> None:
    runner = runner_of(copy.deepcopy(tiny_model(name)).to(dtype))
    first, second = prompt(70), prompt(shared) + prompt(40, seed=3)
    cache = PrefixCache(runner, 1 << 20)
    logits_of(runner, cache, first)
    row = runner.open_row(0)
    assert cache.restore(row, second, None) == shared // CHUNK * CHUNK
    found = logits_of(runner, cache, second)
    assert torch.equal(found, logits_of(runner, PrefixCache(runner, 1 << 20), second))


def test_answers_are_those_without_and_the_stats_say_what_was_found() -> None:
    kept, plain = decoder(), decoder(size=0)
    turns, length = prompt(50), 0
    for turn in range(3):
        found = kept.generate(turns, max_new_tokens=20)
        assert found.token_ids == plain.generate(turns, max_new_tokens=20).token_ids
        assert found.stats.cached_prompt_tokens == length // CHUNK * CHUNK
        assert found.stats.forward_passes <= 20
        length = len(turns) - 1
        turns = [*turns, *found.token_ids, *prompt(9, seed=turn)]


def test_nothing_crosses_namespaces() -> None:
    kept = decoder()
    for namespace in (None, "a", "b"):
        found = kept.generate(prompt(50), max_new_tokens=4, namespace=namespace)
        assert found.stats.cached_prompt_tokens == 0
    again = kept.generate(prompt(50), max_new_tokens=4, namespace="a")
    assert again.stats.cached_prompt_tokens == 48


def test_memory_is_bounded_and_the_longest_unused_goes_first() -> None:
    runner = runner_of(tiny_model("llama-gqa"))
    cache = PrefixCache(runner, 1 << 20)
    logits_of(runner, cache, prompt(2 * CHUNK + 1))
    cache.most_bytes = two = cache.bytes
    used, unused = prompt(2 * CHUNK + 1), prompt(CHUNK + 1, seed=5)
    cache.restore(runner.open_row(0), used, None)
    logits_of(runner, cache, unused)
    assert cache.bytes <= two
    assert cache.restore(runner.open_row(0), used, None) == CHUNK
    assert cache.restore(runner.open_row(0), unused, None) == CHUNK


def test_the_beginning_of_a_prompt_outlives_its_end() -> None:
    """A chunk is found behind all before it only."""
    runner = runner_of(tiny_model("llama-gqa"))
    cache = PrefixCache(runner, 1 << 20)
    logits_of(runner, cache, prompt(CHUNK + 1, seed=9))
    cache.most_bytes = 5 * cache.bytes
    shared = prompt(4 * CHUNK)
    for seed in range(1, 5):
        ids = shared + prompt(4 * CHUNK + 1, seed=seed)
        assert cache.restore(runner.open_row(0), ids, None) == (4 * CHUNK if seed > 1 else 0)
        logits_of(runner, cache, ids)
        assert cache.bytes <= cache.most_bytes


def test_chunks_are_written_to_slabs_that_were_captured() -> None:
    """Those are made in inference mode, and requests begin outside of it."""
    runner = runner_of(tiny_model("llama-gqa"))
    cache, ids = PrefixCache(runner, 1 << 20), prompt(2 * CHUNK + 1)
    logits_of(runner, cache, ids)
    row = runner.open_row(len(ids))
    runner.run(Pass(row, ids))  # allocates the slab
    assert cache.restore(row, ids, None) == 2 * CHUNK


@pytest.mark.parametrize("write", ["data", "exchange", "buffer", "assign"])
def test_weights_that_torch_does_not_see_written_to_count(write: str) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    kept = Decoder(model, character_tokenizer(), prefix_cache_bytes=1 << 20)
    kept.generate(prompt(50), max_new_tokens=4)
    assert kept.generate(prompt(50), max_new_tokens=4).stats.cached_prompt_tokens == 48
    weight = model.model.layers[0].mlp.up_proj.weight
    if write == "data":
        weight.data += 0.1
    elif write == "exchange":
        weight.data = weight.data.clone()
    elif write == "assign":
        exchanged = {name: one.clone() for name, one in model.state_dict().items()}
        model.load_state_dict(exchanged, assign=True)
    else:
        model.model.rotary_emb.inv_freq.mul_(0.5)
    assert kept.generate(prompt(50), max_new_tokens=4).stats.cached_prompt_tokens == 0


def test_weights_that_were_written_to_are_not_mixed_with_old_chunks() -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    kept = Decoder(model, character_tokenizer(), prefix_cache_bytes=1 << 20)
    kept.generate(prompt(50), max_new_tokens=4)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert kept.generate(prompt(50), max_new_tokens=4).stats.cached_prompt_tokens == 0


def test_a_model_with_adapters_is_not_served() -> None:
    """They may be switched between two requests, and are no part of a chunk's key."""
    model = copy.deepcopy(tiny_model("llama-gqa"))
    assert PrefixCache.serves(runner_of(model), model)
    adapt(model)
    assert not PrefixCache.serves(runner_of(model), model)


def test_a_model_with_hooks_of_callers_is_not_served() -> None:
    """What they do may be something else in the next request."""
    model = copy.deepcopy(tiny_model("llama-gqa"))
    kept = Decoder(model, character_tokenizer(), prefix_cache_bytes=1 << 20)
    scale = [1.0]
    model.model.layers[0].register_forward_hook(lambda module, given, output: output * scale[0])
    kept.generate(prompt(50), max_new_tokens=4)
    scale[0] = -3.0
    result = kept.generate(prompt(50), max_new_tokens=4)
    assert result.stats.cached_prompt_tokens == 0
    assert result.token_ids == kept.generate(prompt(50), max_new_tokens=4, draft=False).token_ids


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix_cache_bytes"):
        decoder(size=-1)
