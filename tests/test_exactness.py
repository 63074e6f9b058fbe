"""`exactness`, calibration and prepacking reach the decoder, and change no answer."""

from pathlib import Path

import pytest

from llma_rag import Decoder
from llma_rag.engine import bitwise, calibration
from llma_rag.engine.calibration import SWITCH
from llma_rag.engine.cpu.prepack import PrepackedLinear, can_multiply
from tests.models import VOCAB, character_tokenizer, tiny_model

PROMPTS = [[0, *[4 + (seed * 7 + n * n) % (VOCAB - 4) for n in range(12)] * 2] for seed in range(4)]


def decoder(**options: object) -> Decoder:
    return Decoder(tiny_model("llama-gqa"), character_tokenizer(), **options)


def test_bitwise_is_granted_and_answers_do_not_change() -> None:
    fixed, free = decoder(exactness="bitwise"), decoder()
    assert (fixed.exactness, free.exactness) == ("bitwise", "argmax")
    for prompt in PROMPTS:
        answer = fixed.generate(prompt, max_new_tokens=40)
        assert answer.token_ids == free.generate(prompt, max_new_tokens=40).token_ids
        assert answer.token_ids == fixed.generate(prompt, draft=False, max_new_tokens=40).token_ids


def test_an_unknown_promise_is_refused() -> None:
    with pytest.raises(ValueError, match="`exactness` must be"):
        decoder(exactness="exact")


def test_a_promise_that_cannot_be_kept_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitwise, "is_bitwise", lambda _: False)
    with pytest.warns(UserWarning, match="not granted"):
        assert decoder(exactness="bitwise").exactness == "argmax"


def test_measured_costs_reach_the_drafter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where every further token costs a whole pass, nothing is worth drafting."""
    monkeypatch.setattr(calibration, "SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)
    dear = calibration.Calibration({128: {1: 1.0, 2: 2.0, 32: 32.0}})
    monkeypatch.setattr(calibration, "measure", lambda _: dear)
    with_costs = decoder().generate(PROMPTS[0], max_new_tokens=40)
    monkeypatch.setenv(SWITCH, "off")
    without = decoder().generate(PROMPTS[0], max_new_tokens=40)
    assert with_costs.token_ids == without.token_ids
    assert with_costs.stats.drafted_tokens == 0 < without.stats.drafted_tokens


@pytest.mark.skipif(not can_multiply(tiny_model("qwen2").dtype), reason="torch alone")
def test_a_loaded_model_is_prepacked_unless_refused(tmp_path: Path) -> None:
    tiny_model("qwen2").save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    plain = Decoder.from_pretrained(tmp_path, device="cpu", prepack=False)
    packed = Decoder.from_pretrained(tmp_path, device="cpu")
    assert any(isinstance(module, PrepackedLinear) for module in packed.model.modules())
    assert not any(isinstance(module, PrepackedLinear) for module in plain.model.modules())
    for prompt in PROMPTS:
        answer = packed.generate(prompt, max_new_tokens=30)
        assert answer.token_ids == plain.generate(prompt, max_new_tokens=30).token_ids
