"""`llma-rag doctor`: what it finds, what it advises, and its exit codes."""

import json

import pytest
import torch
from typer.testing import CliRunner

from llma_rag.cli import app
from llma_rag.engine.doctor import diagnose, examine
from tests.families import build, model_of
from tests.models import character_tokenizer


def test_an_exact_model_is_safe() -> None:
    found = examine(model_of("gemma3", "sdpa"))
    assert (found.status, found.exit_code) == ("safe", 0)
    assert found.advice == "Safe: references never change a token of this model."
    assert found.facts["wide_passes"] == "exact"
    assert found.facts["attention"] == "sdpa"
    assert found.facts["dtype"] == "float32"
    assert found.facts["cache"] == "2 DynamicSlidingWindowLayer, 1 DynamicLayer"
    assert found.facts["rope"] == "default"
    assert found.facts["sliding_window"] == 8
    assert found.facts["context_length"] == 512
    assert found.facts["torch"] == torch.__version__


def test_low_precision_is_safe_with_a_word_on_near_ties() -> None:
    found = examine(build("llama", dtype=torch.bfloat16))
    assert (found.status, found.facts["wide_passes"]) == ("safe", "rounded")
    assert "bfloat16" in found.advice


def test_a_model_that_is_decoded_plainly_is_degraded() -> None:
    found = examine(model_of("jamba"))
    assert (found.status, found.exit_code) == ("degraded", 1)
    assert "decoded plainly" in found.advice
    assert found.facts["trees"] is False


def test_a_switch_of_the_rotary_embeddings_is_told() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    found = examine(build("llama", rope_parameters=rope, max_position_embeddings=64))
    assert (found.facts["rope"], found.facts["rope_switch"]) == ("dynamic", 64)
    assert found.facts["context_length"] == 256


def test_a_model_that_cannot_run_is_unusable() -> None:
    model = build("llama", seed=20)
    model.lm_head.weight.data[0] = float("nan")
    assert "not finite" in examine(model).advice
    assert examine(model).exit_code == 2

    def forward(**_):
        raise RuntimeError("no kernel")

    model.forward = forward
    assert examine(model).advice == "The model fails on three tokens: no kernel"


def test_training_mode_is_unusable() -> None:
    found = examine(build("llama", seed=21).train())
    assert found.status == "unusable"
    assert "model.eval()" in found.advice


def test_a_name_that_leads_nowhere_is_unusable(tmp_path) -> None:
    found = diagnose(str(tmp_path / "nothing"))
    assert found.status == "unusable"
    assert "There is no model folder" in found.advice
    assert found.facts["python"]


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_command_prints_facts_and_advice(folder: str) -> None:
    result = CliRunner().invoke(app, ["doctor", "--model", folder])
    assert result.exit_code == 0
    assert "LlamaForCausalLM" in result.output
    assert result.output.rstrip().endswith("references never change a token of this model.")


def test_the_command_prints_json(folder: str) -> None:
    result = CliRunner().invoke(app, ["doctor", "--model", folder, "--json"])
    found = json.loads(result.stdout)
    assert (found["status"], found["wide_passes"], found["trees"]) == ("safe", "exact", True)


def test_the_command_tells_by_its_exit_code_what_is_unusable(tmp_path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path / "nothing"), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["status"] == "unusable"
