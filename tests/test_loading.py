"""The dtype in which a model is loaded where nobody chose one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llma_rag.engine import load as loading
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
    monkeypatch.setattr(loading, "can_prepack", lambda dtype: dtype not in missing)


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
