"""Steps of our own kernels on the CPU, without a graph; `tests/test_kernels.py` runs this."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from llma_rag.engine import bitwise
from llma_rag.engine.bitwise import agrees, is_bitwise
from llma_rag.engine.cache import SlabCache, layer_count
from llma_rag.engine.cuda import fused_step as fused
from llma_rag.engine.cuda.captured import CapturedSteps
from llma_rag.engine.cuda.compiled_step import CompiledStep, can_capture
from llma_rag.engine.cuda.fused_step import FusedStep, can_fuse
from llma_rag.engine.fixed import FixedShape
from llma_rag.engine.probe import runner_of
from llma_rag.engine.step import Pass, StepRunner
from tests.interpreted.captured import rows_keep_their_bits

WIDTH = 16


@pytest.fixture(autouse=True)
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bits of bfloat16 as whole numbers."""
    monkeypatch.setattr(fused, "DTYPES", {torch.float16})


SIZES: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip


def made(config: Any) -> PreTrainedModel:
    """Return a model in float16 whose norms and biases are not what they start with."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.half()


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Return a model; the first's output layer is not a whole number of tiles, nor tied."""
    if request.param == "llama":
        return made(LlamaConfig(**SIZES, intermediate_size=512))
    return made(Qwen2Config(**SIZES, intermediate_size=256, tie_word_embeddings=True))


def stepped(
    model: PreTrainedModel, ids: torch.Tensor, function: FusedStep | None = None
) -> tuple[torch.Tensor, list[int]]:
    """Return logits and tokens of the last `WIDTH` of some tokens, in one step."""
    start = ids.shape[1] - WIDTH
    slab = SlabCache(layer_count(model.config), capacity=ids.shape[1])
    model(input_ids=ids[:, :start], past_key_values=slab, use_cache=True)
    slab.keep(0, start)
    inputs = torch.tensor([*ids[0, start:].tolist(), *range(start, ids.shape[1]), start])
    logits, tokens = (function or FusedStep(model, WIDTH))(inputs, slab)
    return logits, tokens.tolist()


@torch.inference_mode()
@pytest.mark.parametrize("length", [17, 150])
def test_a_step_gives_the_logits_of_the_model(model: PreTrainedModel, length: int) -> None:
    assert can_fuse(model)
    ids = torch.randint(0, 99, (1, length), generator=torch.Generator().manual_seed(length))
    expected = model.double()(input_ids=ids).logits[0, -WIDTH:]
    theirs = model.half()(input_ids=ids).logits[0, -WIDTH:]
    logits, tokens = stepped(model, ids)
    error, usual = ((one.double() - expected).norm() for one in (logits, theirs))
    assert error < 1.5 * usual
    assert tokens == logits.float().argmax(-1).tolist()


@torch.inference_mode()
@pytest.mark.parametrize("split", [1, 2, 4])
def test_programs_that_share_rows_give_the_same(
    split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**SIZES, "hidden_size": 256, "num_hidden_layers": 1}
    model = made(LlamaConfig(**sizes, intermediate_size=512))
    ids = torch.arange(40)[None]
    expected, _ = stepped(model, ids)
    monkeypatch.setattr(fused, "ADD", fused.Tiles(64, split))
    monkeypatch.setattr(fused, "PROJECT", fused.Tiles(64, split))
    step = FusedStep(model, WIDTH)
    for _ in range(2):  # counts are as before once the last program is done
        logits, _ = stepped(model, ids, step)
        assert torch.allclose(logits, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_number_is_no_token(model: PreTrainedModel) -> None:
    ids = torch.arange(30)[None]
    weight = model.lm_head.weight
    before = weight[7].clone()
    try:
        for wrong in (float("nan"), float("inf")):
            weight[7] = wrong
            assert stepped(model, ids)[1] == [-1] * WIDTH
    finally:
        weight[7] = before
    assert -1 not in stepped(model, ids)[1]


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_steps_keep_their_bits_with_drafts(model: PreTrainedModel) -> None:
    free = runner_of(model)
    steps = CapturedSteps(FusedStep(free.model, 4), 4)
    runner = StepRunner(free.model, free.verdict, FixedShape(4, bucket=16), steps)
    assert agrees(free, runner)
    if not rows_keep_their_bits():
        pytest.skip("numpy, which computes for the interpreter, rounds by a row's place here")
    assert is_bitwise(runner)


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_step_that_rotates_by_its_row_is_refused(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: positions count from the beginning of the step."""

    class Shifted(FusedStep):
        def __call__(self, inputs: torch.Tensor, slab: SlabCache) -> Any:
            inputs[4:-1] = torch.arange(4)
            return super().__call__(inputs, slab)

    free = runner_of(model)
    steps = CapturedSteps(Shifted(free.model, 4), 4)
    assert not agrees(free, StepRunner(free.model, free.verdict, FixedShape(4), steps))


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def quantised(model: Any) -> None:
    class Int8(torch.nn.Linear):
        pass

    model.model.layers[1].mlp.up_proj = Int8(128, 256).half()


def single(model: Any) -> None:
    model.float()


@pytest.mark.parametrize("change", [hooked, quantised, single])
def test_what_the_kernels_do_not_know_is_not_fused(change: Callable[[Any], None]) -> None:
    model = made(LlamaConfig(**SIZES, intermediate_size=256))
    assert can_capture(model)
    assert can_fuse(model)
    change(model)
    assert not (can_capture(model) and can_fuse(model))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, intermediate_size=256, attention_bias=True),
        LlamaConfig(**SIZES, intermediate_size=192),
        LlamaConfig(**SIZES, intermediate_size=256, hidden_act="gelu"),
        LlamaConfig(**SIZES, intermediate_size=256, head_dim=16),
        Qwen3Config(**SIZES, intermediate_size=256, head_dim=32),
    ],
    ids=["bias behind attention", "odd size", "gelu", "small heads", "norms of heads"],
)
def test_other_shapes_are_not_fused(config: Any) -> None:
    assert not can_fuse(made(config))


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_row_of_a_request_that_ended_is_free_at_once(model: PreTrainedModel) -> None:
    free = runner_of(model)
    steps = CapturedSteps(FusedStep(free.model, 4), 4)
    runner = StepRunner(free.model, free.verdict, FixedShape(4), steps)
    row = runner.open_row(64)
    for tokens in ([5, 6, 7], [8]):
        step = Pass(row, tokens)
        runner.run(step)
        runner.keep(step, [])
    slab = row.memory.cache
    assert steps.take(64) is None
    row.release()
    row.release()
    assert steps.take(64) is slab
    assert steps.take(64) is None


def test_our_kernels_are_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(LlamaConfig(**SIZES, intermediate_size=256))
    gpu = SimpleNamespace(device=torch.device("cuda"))
    on_gpu = SimpleNamespace(model=gpu, verdict=SimpleNamespace(fast=True))
    for name in ("can_capture", "can_fuse"):
        monkeypatch.setattr(bitwise, name, lambda _: True)
    for kind in (FusedStep, CompiledStep):
        monkeypatch.setattr(bitwise, kind.__name__, lambda _, width, kind=kind: kind(model, width))
    ways = [*bitwise._ways(on_gpu, 4)]
    assert [type(one and one.function) for one in ways] == [FusedStep, CompiledStep, type(None)]
