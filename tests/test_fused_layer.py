"""Layers between whose products kernels of our own compute: the same numbers, hooks and masks."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from llma_rag.engine import fused_layer
from llma_rag.engine.bf16_product import can_keep_bf16
from llma_rag.engine.cache import SlabCache
from llma_rag.engine.fast import fast_view
from llma_rag.engine.fused_layer import FusedLayer, can_fuse_layer
from llma_rag.engine.layer_kernels import gate, normalise, turn_and_keep
from llma_rag.engine.prepack import prepack_in_place
from llma_rag.engine.probe import runner_of
from llma_rag.engine.step import Pass
from llma_rag.engine.twin import twin
from tests.models import VOCAB, tiny_model

DTYPES = [torch.float32, torch.bfloat16]
KNOWN = ["llama-gqa", "qwen2", "mistral"]


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
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
        dtype is torch.bfloat16, states.data_ptr(), delta.data_ptr() if added else 0,
        total.data_ptr(), norm.weight.data_ptr(), output.data_ptr(), rows, 100, 1e-5,
    )  # fmt: skip
    expected = states + delta if added else states
    assert torch.equal(total, expected)
    eps = torch.finfo(dtype).eps
    normal = norm(expected).detach()
    torch.testing.assert_close(output, normal, rtol=4 * eps, atol=0)
    assert dtype is torch.float32 or (output != normal).float().mean() < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_gates_are_those_of_transformers(dtype, rows: int) -> None:
    """Also where numbers are so large that the exponential function would overflow."""
    both = _numbers(rows, 2, 70, dtype=dtype) * 20
    both[0, 0, :6] = torch.tensor([0.0, -200.0, 200.0, -88.5, 1e-30, -1e-3]).to(dtype)
    gates, ups = both[:, 0], both[:, 1]
    output = torch.empty((rows, 70), dtype=dtype)
    gate(
        dtype is torch.bfloat16, gates.data_ptr(), ups.data_ptr(), output.data_ptr(), rows, 140, 70
    )
    expected = torch.nn.functional.silu(gates) * ups
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(output, expected, rtol=4 * eps, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_turned_queries_and_keys_have_the_bits_of_transformers(dtype, rows: int) -> None:
    heads, kv_heads, dim, start, room = 4, 2, 16, 3, 9
    projected = _numbers(1, rows, heads + 2 * kv_heads, dim, dtype=dtype)
    queries, keys, values = projected.split([heads, kv_heads, kv_heads], dim=2)
    cos, sin = (_numbers(1, rows, dim, dtype=dtype, seed=seed) for seed in (5, 6))
    slabs = [torch.full((kv_heads, room, dim), 7.0, dtype=dtype) for _ in "kv"]
    turned = torch.empty((heads, rows, dim), dtype=dtype)
    stride = projected.stride(1)
    turn_and_keep(
        dtype is torch.bfloat16, queries.data_ptr(), keys.data_ptr(), values.data_ptr(),
        cos.data_ptr(), sin.data_ptr(), turned.data_ptr(), *(slab.data_ptr() for slab in slabs),
        rows, stride, stride, heads, kv_heads, dim, start, room,
    )  # fmt: skip
    query, key = apply_rotary_pos_emb(queries.transpose(1, 2), keys.transpose(1, 2), cos, sin)
    assert torch.equal(turned, query[0])
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


@pytest.mark.parametrize("dtype", DTYPES)
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


@pytest.mark.skipif(not can_keep_bf16(), reason="our kernels do not run here")
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


@pytest.mark.parametrize("place", ["self_attn", "mlp", "input_layernorm", "", "mlp.act_fn"])
def test_hooks_are_called_once_a_pass(place: str, runs) -> None:
    model = tiny_model("llama-gqa")
    view = fast_view(model)
    calls: list[object] = []
    hooked = model.model.layers[0].get_submodule(place)
    handle = hooked.register_forward_hook(lambda *_: calls.append(1))
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
    config = LlamaConfig(**{**model.config.to_dict(), "hidden_act": "gelu"})
    other = fast_view(model).model.layers[0]
    other.mlp, kept = LlamaMLP(config), other.mlp
    try:
        assert not can_fuse_layer(other, rotary)
    finally:
        other.mlp = kept
    part = type(rotary)(LlamaConfig(**{**model.config.to_dict(), "head_dim": 4}))
    assert not can_fuse_layer(layer, part)
