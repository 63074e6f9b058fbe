"""The dtype in which a model is loaded where nobody chose one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llma_rag.engine import load as loading
from llma_rag.engine.cpu.half_product import can_keep
from llma_rag.engine.cpu.onednn_product import OneDnnProduct
from llma_rag.engine.cpu.prepack import prepack_in_place
from llma_rag.engine.load import load
from tests.models import character_tokenizer, tiny_model

Save = Callable[[torch.dtype], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(dtype: torch.dtype) -> Path:
        copy.deepcopy(tiny_model("llama-gqa")).to(dtype).save_pretrained(tmp_path)
        character_tokenizer().save_pretrained(tmp_path)
        return tmp_path

    return saved


def _without(monkeypatch: pytest.MonkeyPatch, *missing: torch.dtype) -> None:
    monkeypatch.setattr(loading, "can_multiply", lambda dtype: dtype not in missing)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_become_float32_where_the_processor_lacks_them(save, monkeypatch, dtype):
    _without(monkeypatch, torch.bfloat16, torch.float16)
    model, _ = load(save(dtype), {"device": "cpu", "prepack": False})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.dtype is torch.float32


@pytest.mark.parametrize(
    "chosen",
    [
        {"dtype": "bfloat16"},
        {"dtype": torch.bfloat16},
        {"model_kwargs": {"dtype": torch.bfloat16}},
        {"model_kwargs": {"torch_dtype": "bfloat16"}},
    ],
)
def test_a_chosen_dtype_stays(save, monkeypatch, chosen: Any):
    _without(monkeypatch, torch.bfloat16)
    model, _ = load(save(torch.bfloat16), {"device": "cpu", "prepack": False, **chosen})
    assert model.dtype is torch.bfloat16


@pytest.mark.parametrize("missing", [(), (torch.bfloat16, torch.float32)])
def test_the_dtype_stays_where_float32_gains_nothing(save, monkeypatch, missing):
    _without(monkeypatch, *missing)
    model, _ = load(save(torch.bfloat16), {"device": "cpu", "prepack": False, "dtype": "auto"})
    assert model.dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_that_become_float32_are_laid_out_from_their_own_weights(save, monkeypatch, dtype):
    """No weight is held in float32 but those that nothing else holds."""
    folder = save(dtype)
    expected, _ = load(folder, {"device": "cpu", "prepack": False, "dtype": torch.float32})
    _without(monkeypatch, torch.bfloat16, torch.float16)
    widened: list[torch.Size] = []
    original = OneDnnProduct.__init__

    def noted(self: OneDnnProduct, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        widened.append(weight.shape)
        original(self, weight, bias)

    def pack(model: Any, dtype: torch.dtype | None = None) -> int:
        packed.append((prepack_in_place(model, dtype), dtype))
        return packed[-1][0]

    packed: list[tuple[int, torch.dtype | None]] = []
    monkeypatch.setattr(OneDnnProduct, "__init__", noted)
    monkeypatch.setattr(loading, "prepack_in_place", pack)
    model, _ = load(folder, {"device": "cpu"})
    assert model.dtype is torch.float32
    assert packed == [(15, torch.float32), (0, None)]
    if can_keep(dtype):
        assert not widened
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)
