"""The engine's rows, trees, failures and caches: T18, T20 and the trees of T01."""

import copy
import inspect
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llma_rag import Decoder
from llma_rag.engine.cache import GROWTH, SlabCache, layer_count
from llma_rag.engine.probe import runner_of
from llma_rag.engine.snapshot import Snapshot
from llma_rag.engine.step import MAX_OWED, Pass, StepRunner
from tests.driving import decode, random_chain, random_tree
from tests.families import attentions, build, model_of
from tests.models import VOCAB, character_tokenizer

TREE_FAMILIES = ["llama", "qwen2", "mistral_window", "gpt2", "gemma2", "gemma3"]
TREE_MODELS = [(family, kind) for family in TREE_FAMILIES for kind in attentions(family)]


@pytest.mark.parametrize(("family", "attention"), TREE_MODELS)
def test_random_trees_give_the_logits_of_single_steps(family: str, attention: str) -> None:
    runner = runner_of(model_of(family, attention))
    assert runner.supports_trees
    for seed in range(25):
        source = random.Random(seed)
        prompt = [source.randrange(4, VOCAB) for _ in range(source.randrange(1, 20))]
        plain = decode(runner, prompt, 24)
        tree = decode(runner, prompt, 24, random_tree(source, plain.tokens))
        assert tree.tokens == plain.tokens
        assert torch.allclose(tree.logits, plain.logits, rtol=1e-4, atol=1e-4)
        assert tree.passes < plain.passes


@st.composite
def trees(draw):
    """Parents of up to 12 nodes, and a path from the root that is accepted."""
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(1, 12)))]
    path, node = [], -1
    while children := [child for child, parent in enumerate(parents) if parent == node]:
        if draw(st.booleans()):
            break
        node = draw(st.sampled_from(children))
        path.append(node)
    return parents, path


@pytest.mark.parametrize("family", TREE_FAMILIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), seed=st.integers(0, 999), length=st.integers(1, 14))
def test_an_accepted_path_is_compacted(family: str, tree, seed: int, length: int) -> None:
    """Whatever path is kept, what follows is computed as if only it had ever been fed."""
    parents, path = tree
    runner, source = runner_of(model_of(family)), random.Random(seed)
    prompt, drafted, end = (
        [source.randrange(VOCAB) for _ in range(count)] for count in (length, len(parents), 2)
    )
    row = runner.open_row(64)
    step = Pass(row, prompt, drafted, parents)
    runner.logits(step)
    runner.keep(step, path)
    expected = runner.open_row(64)
    kept = [*prompt, *(drafted[node] for node in path)]
    assert row.tokens == kept
    straight = Pass(expected, [*kept, *end])
    logits = runner.logits(Pass(row, end))
    assert torch.allclose(logits, runner.logits(straight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon_alibi", "gpt_neo", "lfm2"])
def test_models_that_take_no_such_mask_get_chains(family: str) -> None:
    runner = runner_of(model_of(family))
    assert not runner.supports_trees
    assert runner.verdict.wide_passes == "exact"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral_window", "lfm2", "qwen3_next"])
def test_a_pass_that_fails_at_any_layer_leaves_the_row_as_it_was(family: str) -> None:
    """The pass fails before each decoder layer in turn, at every step, and is asked for again."""
    model = model_of(family)
    runner = runner_of(model)
    prompt = [9, 20, 9, 21, 9]
    expected = decode(runner, prompt, 10).tokens
    layers = [module for name, module in model.named_modules() if name.endswith(("layers", ".h"))]
    for layer in layers[0]:
        failures = 0

        def fail(*_: object) -> None:
            raise torch.OutOfMemoryError("out of memory")

        def run(step: Pass, layer=layer, fail=fail) -> torch.Tensor:
            nonlocal failures
            if step.drafted:
                hook = layer.register_forward_pre_hook(fail)
                with pytest.raises(torch.OutOfMemoryError):
                    runner.logits(step)
                hook.remove()
                failures += 1
            return runner.logits(step)

        source = random.Random(1)
        found = decode(runner, prompt, 10, random_chain(source, expected), run)
        assert found.tokens == expected
        assert failures > 0


def test_T30_less_memory_halves_the_draft_and_changes_no_token() -> None:
    model = build("llama", seed=4)
    decoder = Decoder(model, character_tokenizer())
    plain = decoder.generate([10, 11, 12], max_new_tokens=30, draft=False)
    forward = model.forward

    def limited(*args, **kwargs):
        if kwargs["input_ids"].shape[1] > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    limited.__signature__ = inspect.signature(forward)
    model.forward = limited
    references = [character_tokenizer().decode(list(plain.token_ids))]
    result = decoder.generate([10, 11, 12], references=references, max_new_tokens=30)
    assert result.token_ids == plain.token_ids
    assert result.stats.accepted_tokens > 0


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_an_error_at_any_step_reaches_the_caller_and_spares_the_next_call(family: str) -> None:
    model = build(family, seed=5)
    decoder = Decoder(model, character_tokenizer())
    prompt = [10, 11, 12]
    plain = decoder.generate(prompt, max_new_tokens=12)
    references = [plain.text]
    usual = decoder.generate(prompt, references=references, max_new_tokens=12)
    for index in range(usual.stats.forward_passes):
        count = 0

        def fail(*_: object, index=index) -> None:
            nonlocal count
            count += 1
            if count == index + 1:
                raise ZeroDivisionError(f"at step {index}")

        hook = model.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError, match=f"at step {index}"):
            decoder.generate(prompt, references=references, max_new_tokens=12)
        hook.remove()
        again = decoder.generate(prompt, references=references, max_new_tokens=12)
        assert again.token_ids == plain.token_ids


def test_S14_the_callers_objects_are_unchanged() -> None:
    model, tokenizer = build("gemma3", "sdpa", seed=6), copy.deepcopy(character_tokenizer())

    def picture():
        modules = {name: (type(one), *one._forward_hooks) for name, one in model.named_modules()}
        numbers = {name: value.clone() for name, value in model.state_dict().items()}
        settings = (
            model.config.to_dict(),
            model.config._attn_implementation,
            model.generation_config.to_dict(),
            model.training,
        )
        return settings, modules, numbers, (tokenizer.padding_side, tokenizer.pad_token)

    before = picture()
    decoder = Decoder(model, tokenizer)
    decoder.generate("abcabc", references=["abcd"], max_new_tokens=10, stop=["zz"])
    after = picture()
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert before[3] == after[3]
    assert before[2].keys() == after[2].keys()
    assert all(torch.equal(value, after[2][name]) for name, value in before[2].items())


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gpt2"])
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_T18_ragged_rows_of_one_slab_are_independent(family: str, rows: int) -> None:
    """Rows of different lengths and accepted runs, one with NaN keys: each as if alone."""
    model, source = model_of(family), random.Random(rows)
    cache = SlabCache(layer_count(model.config), capacity=64, rows=rows)
    single = StepRunner(model)
    alone = [single.open_row(64) for _ in range(rows)]
    poisoned = rows - 1
    for turn in range(4):
        width = source.randrange(1, 6)
        ids = [[source.randrange(VOCAB) for _ in range(width)] for _ in range(rows)]
        logits = _ragged_pass(model, cache, ids)
        for row in range(rows):
            step = Pass(alone[row], ids[row][:1], ids[row][1:], range(-1, width - 2))
            expected = single.logits(step)
            if row != poisoned or turn == 0:
                assert torch.allclose(logits[row], expected, rtol=1e-4, atol=1e-4)
            accepted = source.randrange(width)
            single.keep(step, range(accepted))
            cache.keep(row, 1 + accepted)
        with torch.inference_mode():
            for layer in cache.layers:
                layer.keys[poisoned] = float("nan")


@torch.inference_mode()
def _ragged_pass(model, cache: SlabCache, ids: list[list[int]]) -> torch.Tensor:
    """One forward for all rows: each row's mask ends at its own tokens."""
    width, longest = len(ids[0]), max(cache.lengths)
    lengths = torch.tensor(cache.lengths)
    positions = lengths[:, None] + torch.arange(width)
    slots = torch.arange(longest + width)
    distance = positions[:, :, None] - slots
    window = getattr(model.config, "sliding_window", None) or 10**6
    visible = ((distance >= 0) & (distance < window))[:, None]
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    output = model(
        input_ids=torch.tensor(ids),
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    return output.logits


def test_T20_a_row_grows_beyond_its_reserve() -> None:
    runner = runner_of(model_of("llama"))
    source = random.Random(0)
    prompt = [source.randrange(4, VOCAB) for _ in range(GROWTH - 10)]
    roomy, tight = runner.open_row(2 * GROWTH), runner.open_row(1)
    for row in (roomy, tight):
        step = Pass(row, prompt)
        runner.logits(step)
        runner.keep(step, [])
    for token in range(4, 34):
        steps = Pass(roomy, [token]), Pass(tight, [token])
        logits = [runner.logits(step) for step in steps]
        assert torch.allclose(*logits, rtol=1e-4, atol=1e-4)
        for step in steps:
            runner.keep(step, [])
    assert tight.length > GROWTH


def test_a_snapshot_of_a_cache_puts_back_every_layer() -> None:
    model = model_of("qwen3_next")
    runner = runner_of(model)
    row = runner.open_row(32)
    step = Pass(row, [10, 11, 12, 13, 14])
    runner.logits(step)
    runner.keep(step, [])
    state = row.memory.open(0)["past_key_values"]
    before = copy.deepcopy(state)
    snapshot = Snapshot(state)
    runner.logits(Pass(row, [15, 16, 17]))
    assert snapshot.restore() is state
    for layer, old in zip(state.layers, before.layers, strict=True):
        for name, value in vars(old).items():
            _assert_same(getattr(layer, name), value)


def _assert_same(got, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    elif isinstance(expected, dict):
        for key, value in expected.items():
            _assert_same(got[key], value)
    else:
        assert got == expected


def test_tokens_owed_are_settled_by_a_pass_without_a_draft() -> None:
    """With every draft rejected, the tokens to feed again stay within bounds."""
    runner = runner_of(model_of("lfm2"))
    plain = decode(runner, [10, 11, 12], 60)
    wrong = [(token + 1) % VOCAB for token in plain.tokens]
    found = decode(
        runner, [10, 11, 12], 60, lambda written, most: (wrong[written : written + 2], [-1, 0])
    )
    assert found.tokens == plain.tokens
    assert MAX_OWED < found.widest <= MAX_OWED + 4
