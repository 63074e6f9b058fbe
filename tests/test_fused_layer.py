"""Layers between whose products kernels of our own compute: the same numbers, hooks and masks."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)

from llma_rag.engine.cache import SlabCache
from llma_rag.engine.cpu import fused_layer
from llma_rag.engine.cpu.fused_layer import KINDS, FusedLayer, can_fuse_layer
from llma_rag.engine.cpu.half_product import can_keep
from llma_rag.engine.cpu.layer_kernels import gate, normalise, rotate_and_store
from llma_rag.engine.cpu.prepack import prepack_in_place
from llma_rag.engine.cpu.slab_attention import can_attend
from llma_rag.engine.fast import fast_view
from llma_rag.engine.probe import runner_of
from llma_rag.engine.step import Pass
from llma_rag.engine.twin import twin
from tests.models import CONFIGS, VOCAB, tiny_model

KNOWN = ["llama-gqa", "qwen2", "mistral"]


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("added", [False, True])
def test_norms_are_those_of_transformers(dtype, rows: int, added: bool) -> None:
    norm = LlamaRMSNorm(100, eps=1e-5).to(dtype)
    norm.weight.data = _numbers(100, dtype=dtype, seed=3)
    states, delta = (_numbers(rows, 100, dtype=dtype, seed=seed) for seed in (1, 2))
    states[0, 0] = 300.0
    total = torch.empty_like(states) if added else states
    output = torch.empty_like(states)
    normalise(
        KINDS[dtype], states.data_ptr(), delta.data_ptr() if added else 0,
        total.data_ptr(), norm.weight.data_ptr(), output.data_ptr(), rows, 100, 1e-5,
    )  # fmt: skip
    expected = states + delta if added else states
    assert torch.equal(total, expected)
    eps = torch.finfo(dtype).eps
    normal = norm(expected).detach()
    torch.testing.assert_close(output, normal, rtol=4 * eps, atol=0)
    assert dtype is torch.float32 or (output != normal).float().mean() < 0.05


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("rows", [1, 5])
def test_gates_are_those_of_transformers(dtype, rows: int) -> None:
    """Also where numbers are so large that the exponential function would overflow."""
    both = _numbers(rows, 2, 70, dtype=dtype) * 20
    odd = [0.0, -200.0, 200.0, -88.5, 1e-30, -1e-3, -1e38, -math.inf, math.inf, math.nan]
    both[0, 0, : len(odd)] = torch.tensor(odd).to(dtype)
    gates, ups = both[:, 0], both[:, 1]
    output = torch.empty((rows, 70), dtype=dtype)
    gate(KINDS[dtype], gates.data_ptr(), ups.data_ptr(), output.data_ptr(), rows, 140, 70)
    expected = torch.nn.functional.silu(gates) * ups
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(output, expected, rtol=4 * eps, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("rows", [1, 5])
def test_rotated_queries_and_keys_have_the_bits_of_transformers(dtype, rows: int) -> None:
    heads, kv_heads, dim, start, room = 4, 2, 16, 3, 9
    projected = _numbers(1, rows, heads + 2 * kv_heads, dim, dtype=dtype)
    queries, keys, values = projected.split([heads, kv_heads, kv_heads], dim=2)
    cos, sin = (_numbers(1, rows, dim, dtype=dtype, seed=seed) for seed in (5, 6))
    slabs = [torch.full((kv_heads, room, dim), 7.0, dtype=dtype) for _ in "kv"]
    rotated = torch.empty((heads, rows, dim), dtype=dtype)
    stride = projected.stride(1)
    rotate_and_store(
        KINDS[dtype], queries.data_ptr(), keys.data_ptr(), values.data_ptr(),
        cos.data_ptr(), sin.data_ptr(), rotated.data_ptr(), *(slab.data_ptr() for slab in slabs),
        rows, stride, stride, heads, kv_heads, dim, start, room,
    )  # fmt: skip
    query, key = apply_rotary_pos_emb(queries.transpose(1, 2), keys.transpose(1, 2), cos, sin)
    assert torch.equal(rotated, query[0])
    for slab, kept in zip(slabs, (key, values.transpose(1, 2)), strict=True):
        assert torch.equal(slab[:, start : start + rows], kept[0])
        assert (slab[:, :start] == 7).all()
        assert (slab[:, start + rows :] == 7).all()


def _behind(view: Any, prompt: torch.Tensor, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    """Return the logits of `ids` behind a prompt."""
    cache = SlabCache(view.config.num_hidden_layers, capacity=32)
    with torch.inference_mode():
        view(input_ids=prompt, past_key_values=cache, use_cache=True)
        cache.keep(0, prompt.shape[1])
        logits: torch.Tensor = view(
            input_ids=ids, past_key_values=cache, use_cache=True, **more
        ).logits
        return logits


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many rows fused layers run."""
    noted: list[int] = []
    original: Callable[..., torch.Tensor] = FusedLayer._run

    def noting(self: FusedLayer, states: torch.Tensor, *rest: Any) -> torch.Tensor:
        noted.append(states.shape[1])
        return original(self, states, *rest)

    monkeypatch.setattr(FusedLayer, "_run", noting)
    return noted


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many rows our attention reads."""
    noted: list[int] = []
    original = fused_layer.attend

    def noting(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        noted.append(query.shape[2])
        return original(query, *rest)

    monkeypatch.setattr(fused_layer, "attend", noting)
    return noted


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_few_rows_behind_a_prompt_are_fused_and_the_prompt_is_not(name, dtype, runs) -> None:
    model = copy.deepcopy(tiny_model(name)).to(dtype)
    prompt, ids = torch.randint(4, VOCAB, (1, 20)), torch.randint(4, VOCAB, (1, 5))
    found = _behind(fast_view(model), prompt, ids)
    assert runs == [5] * model.config.num_hidden_layers
    with torch.inference_mode():
        expected = model(input_ids=torch.cat([prompt, ids], 1)).logits[:, -5:]
    tolerance = 1e-5 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not can_keep(torch.bfloat16), reason="our kernels do not run here")
def test_chains_change_no_bit_of_a_logit_where_all_kernels_are_ours(runs) -> None:
    """In float32, with weights that bfloat16 holds, behind and across the end of a piece."""
    config = LlamaConfig(
        hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, vocab_size=VOCAB, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).float().eval()
    prepack_in_place(model)
    runner = runner_of(model)
    ids = torch.randint(4, VOCAB, (290,)).tolist()

    def logits(widths: list[int]) -> torch.Tensor:
        row, found = runner.open_row(len(ids)), []
        prompt = Pass(row, ids[:240])
        runner.run(prompt)
        runner.keep(prompt, [])
        for width in widths:
            here = row.length
            drafted = ids[here + 1 : here + width]
            step = Pass(row, ids[here : here + 1], [*drafted, 5, 6], range(-1, width))
            found.append(runner.logits(step)[:width])
            runner.keep(step, range(len(drafted)))
        return torch.cat(found)

    alone = logits([1] * 48)
    for widths in ([2] * 24, [16] * 3, [5, 11, 1, 17, 14]):
        assert torch.equal(logits(widths), alone)
    assert {3, 4, 18, 7, 13, 19} <= set(runs)


def test_a_twin_of_a_view_has_the_layers_that_fused_ones_stand_for() -> None:
    view = fast_view(tiny_model("llama-gqa"))
    layers = twin(view, attention="eager").model.layers
    assert [type(layer).__name__ for layer in layers] == ["LlamaDecoderLayer"] * len(layers)
    assert all(layer.self_attn.config._attn_implementation == "eager" for layer in layers)


def test_wide_passes_run_as_they_did(runs) -> None:
    model = tiny_model("llama-gqa")
    wide = fused_layer.MAX_PACKED_ROWS + 1
    _behind(fast_view(model), torch.tensor([[5, 6]]), torch.full((1, wide), 7))
    assert runs == []


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("dim", [8, 32])
@pytest.mark.parametrize("name", KNOWN)
def test_prepacked_layers_in_a_slab_that_grows(
    name: str, dim: int, dtype, runs: list[int], attended: list[int]
) -> None:
    """With heads for torch's attention and for ours, joined layers, chains and trees."""
    config = type(CONFIGS[name])(**{**CONFIGS[name].to_dict(), "head_dim": dim})
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(dtype).eval()
    packed_model = copy.deepcopy(model)
    assert prepack_in_place(packed_model) > 0
    runner = runner_of(packed_model)
    assert runner.verdict.fast
    runs.clear()
    attended.clear()
    ids = torch.randint(4, VOCAB, (300,)).tolist()
    row, found = runner.open_row(40), []
    prompt = Pass(row, ids[:30])
    runner.run(prompt)
    runner.keep(prompt, [])
    while row.length < 290:
        here = row.length
        chain = ids[here + 1 : here + 6]
        # Five right tokens in a row, and a wrong sibling beside the first two.
        drafted, parents = [*chain[:2], 4, 5, *chain[2:]], [-1, 0, -1, 0, 1, 4, 5]
        step = Pass(row, ids[here : here + 1], drafted, parents)
        found.append(runner.logits(step)[[0, 1, 2, 5, 6, 7]])
        runner.keep(step, [0, 1, 4, 5, 6])
    assert runs == [8] * config.num_hidden_layers * len(found)
    ours = can_attend(*(torch.zeros((1, 1, 1, dim), dtype=dtype) for _ in "qk"))
    windowed = getattr(config, "sliding_window", None)
    assert attended == (runs if ours and not windowed else [])
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids[: row.length]])).logits[0, 30:]
    logits = torch.cat(found)
    if dtype is torch.float32:
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    else:
        difference = (logits - expected).float().abs().mean() / expected.float().abs().max()
        assert difference < 0.01


def test_a_pass_of_another_dtype_than_the_slab_runs_as_before(runs) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    view, cache = fast_view(model), SlabCache(2, capacity=32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        view(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.keep(0, 3)
        model.bfloat16()
        with pytest.raises(RuntimeError):
            view(input_ids=ids, past_key_values=cache, use_cache=True)
    assert runs == []


def test_values_of_another_dtype_than_keys_run_as_before(runs) -> None:
    """As where a layer's values were kept in float32."""
    view, cache = fast_view(tiny_model("llama-gqa")), SlabCache(2, capacity=32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        view(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.keep(0, 3)
        slabs = cache.slabs
        cache.slabs = lambda layer, end: (slabs(layer, end)[0], slabs(layer, end)[1].double())
        layer = view.model.layers[0]
        given = {"past_key_values": cache, "position_embeddings": (torch.zeros(1),) * 2}
        assert not layer._knows(torch.zeros((1, 1, 32)), given)
        cache.slabs = slabs
        assert layer._knows(torch.zeros((1, 1, 32)), given)
    assert runs == []


def test_a_model_that_was_cast_in_part_runs_as_before(runs) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa")).bfloat16()
    view = fast_view(model)
    for part in (model.model.layers, model.model.norm, model.lm_head):
        part.float()
    prompt, ids = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    found = _behind(view, prompt, ids)
    with torch.inference_mode():
        expected = model(input_ids=torch.cat([prompt, ids], 1)).logits[:, -2:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    model.model.embed_tokens.float()
    assert fast_view(model) is not view


def test_gains_that_are_exchanged_are_seen() -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    view = fast_view(model)
    strided = torch.randn(32, 2)[:, 0]
    name = "model.layers.0.input_layernorm.weight"
    model.load_state_dict({**model.state_dict(), name: strided}, assign=True)
    prompt, ids = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    with torch.inference_mode():
        expected = model(input_ids=torch.cat([prompt, ids], 1)).logits[:, -2:]
    torch.testing.assert_close(_behind(view, prompt, ids), expected, rtol=1e-4, atol=1e-4)


def test_a_default_device_of_others_does_not_matter(runs) -> None:
    model = tiny_model("llama-gqa")
    prompt, ids = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    expected = _behind(fast_view(model), prompt, ids)
    with torch.device("meta"):
        found = _behind(fast_view(model), prompt, ids)
    assert torch.equal(found, expected)
    assert len(runs) == 4


def test_batches_run_as_they_did(runs) -> None:
    view = fast_view(tiny_model("llama-gqa"))
    cache = SlabCache(2, capacity=32, rows=2)
    with torch.inference_mode():
        for _ in range(2):
            view(input_ids=torch.tensor([[5, 6], [7, 8]]), past_key_values=cache, use_cache=True)
            for row in range(2):
                cache.keep(row, 2)
    assert runs == []


def test_hooks_that_transformers_left_behind_do_not_count(runs) -> None:
    model = copy.deepcopy(tiny_model("llama-gqa"))
    model(input_ids=torch.tensor([[5, 6]]), output_hidden_states=True)
    assert model.model.layers[0]._forward_hooks
    _behind(fast_view(model), torch.tensor([[5, 6]]), torch.tensor([[7]]))
    assert runs == [1, 1]


def test_kernels_that_can_not_be_compiled_leave_layers_as_they_are(monkeypatch, runs) -> None:
    def broken() -> None:
        raise RuntimeError("no compiler")

    fused_layer.can_compile.cache_clear()
    monkeypatch.setattr(fused_layer, "_compile", broken)
    model = copy.deepcopy(tiny_model("llama-gqa"))
    _behind(fast_view(model), torch.tensor([[5, 6]]), torch.tensor([[7]]))
    assert runs == []
    fused_layer.can_compile.cache_clear()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
@pytest.mark.parametrize("place", ["self_attn", "mlp", "input_layernorm", "", "mlp.act_fn"])
def test_hooks_are_called_once_a_pass(place: str, kind: str, runs) -> None:
    model = tiny_model("llama-gqa")
    view = fast_view(model)
    calls: list[object] = []
    hooked = model.model.layers[0].get_submodule(place)
    handle = getattr(hooked, f"register_{kind}")(lambda *_: calls.append(1))
    try:
        _behind(view, torch.tensor([[5, 6]]), torch.tensor([[7]]))
    finally:
        handle.remove()
    assert len(calls) == 2
    assert runs == [1] * (model.config.num_hidden_layers - 1)


def test_linear_layers_are_called_with_their_hooks(runs) -> None:
    model = tiny_model("llama-gqa")
    calls: list[object] = []
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: calls.append(1))
    try:
        _behind(fast_view(model), torch.tensor([[5, 6]]), torch.tensor([[7]]))
    finally:
        handle.remove()
    assert len(calls) == 2
    assert len(runs) == model.config.num_hidden_layers


def test_layers_that_do_something_else_are_left() -> None:
    model = tiny_model("llama-gqa")
    layer, rotary = model.model.layers[0], model.model.rotary_emb
    assert can_fuse_layer(layer, rotary)
    assert not can_fuse_layer(layer, None)
    assert not can_fuse_layer(tiny_model("gemma").model.layers[0], rotary)
    other = LlamaConfig(**{**model.config.to_dict(), "hidden_act": "gelu"})
    assert not can_fuse_layer(LlamaDecoderLayer(other, 0), rotary)
    assert can_fuse_layer(LlamaDecoderLayer(model.config, 0), rotary)
    part = type(rotary)(LlamaConfig(**{**model.config.to_dict(), "head_dim": 4}))
    assert not can_fuse_layer(layer, part)
