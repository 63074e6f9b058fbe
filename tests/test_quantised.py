"""Quantised models load and decode, references change no token, and measured costs decide."""

import copy
import random
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from llma_rag import Decoder, decoder
from llma_rag.engine import calibration
from llma_rag.engine.calibration import Calibration
from llma_rag.engine.cpu.prepack import PrepackedLinear
from llma_rag.engine.step import StepRunner
from tests.models import character_tokenizer, tiny_model

FREE, DEAR = {1: 1.0, 64: 1.0}, {1: 1.0, 2: 2.0}
"""Costs by width: further rows are free, or each costs a pass."""


class Int8Linear(nn.Module):
    """A layer with 8-bit weights and a scale per row, as quantising libraries have them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return linear(states, self.weight.to(states.dtype) * self.scale, self.bias)


def int8_model(name: str) -> PreTrainedModel:
    model = copy.deepcopy(tiny_model(name))
    for parent in list(model.model.modules()):
        for child_name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, child_name, Int8Linear(child))
    return model


def check(made: Callable[[], Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode with free and with dear rows; drafts must only be tried where they pay."""
    passes: list[int] = []
    for points in (FREE, DEAR):
        monkeypatch.setattr(
            decoder, "calibrate", lambda _, points=points: Calibration({128: points})
        )
        mine, source = made(), random.Random(2)
        for _ in range(3):
            prompt = "".join(source.choices("abcdefgh", k=9))
            plain = mine.generate(prompt, draft=False, max_new_tokens=40)
            drafted = mine.generate(prompt, references=[plain.text], max_new_tokens=40)
            assert drafted.token_ids == plain.token_ids
        passes.append(drafted.stats.forward_passes)
        assert (drafted.stats.drafted_tokens == 0) == (points is DEAR)
        mine.close()
    assert passes[0] < 25
    assert passes[1] == len(plain.token_ids)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2"])
def test_a_model_with_layers_of_another_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(lambda: Decoder(int8_model(name), character_tokenizer()), monkeypatch)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_a_model_that_transformers_quantises_with_torchao(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        tiny_model("llama-gqa").save_pretrained(tmp_path)
        character_tokenizer().save_pretrained(tmp_path)

        def made() -> Decoder:
            options: dict[str, Any] = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
            return Decoder.from_pretrained(tmp_path, device="cpu", dtype=torch.float32, **options)

        model = made().model
        assert type(model.model.layers[0].mlp.up_proj.weight).__module__.startswith("torchao")
        assert not any(isinstance(module, PrepackedLinear) for module in model.model.modules())
        check(made, monkeypatch)


def test_quantised_weights_are_measured_apart() -> None:
    """torchao exchanges the class of a layer's weight and leaves the layer's."""

    class Quantised(torch.Tensor):
        pass

    model = copy.deepcopy(tiny_model("llama-gqa"))
    before = calibration._key(StepRunner(model))
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    assert calibration._key(StepRunner(model)) != before
    assert calibration._key(StepRunner(int8_model("llama-gqa"))) != before
