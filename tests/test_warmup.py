"""What a decoder measures, it measures at load, or with the first request that drafts."""

import io
import sys
from collections.abc import Iterator

import pytest
from transformers.utils import logging

from llma_rag import Decoder, decoder
from llma_rag.engine import calibration, progress
from llma_rag.engine.calibration import Calibration, measure
from llma_rag.engine.step import StepRunner
from tests.models import character_tokenizer, tiny_model


@pytest.mark.parametrize("warmup", [True, False])
def test_passes_are_timed_at_load_or_by_the_first_request_that_drafts(
    warmup: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[StepRunner] = []

    def once(runner: StepRunner) -> Calibration:
        timed.append(runner)
        return Calibration({128: {1: 1.0, 8: 1.1}})

    monkeypatch.setattr(decoder, "calibrate", once)
    made = Decoder(tiny_model("llama-gqa"), character_tokenizer(), warmup=warmup)
    assert len(timed) == warmup
    plain = made.generate("abcab", draft=False, max_new_tokens=20)
    assert len(timed) == warmup
    drafted = [made.generate("abcab", references=[plain.text], max_new_tokens=20) for _ in range(2)]
    assert timed == [made.runner]
    assert {one.token_ids for one in drafted} == {plain.token_ids}
    assert drafted[1].stats.forward_passes < plain.stats.forward_passes
    made.close()


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def bars() -> Iterator[None]:
    """Leave transformers' bars as they were."""
    was = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    (logging.enable_progress_bar if was else logging.disable_progress_bar)()


@pytest.mark.parametrize("case", ["terminal", "file", "switched off", "quick"])
def test_timing_shows_a_bar_where_somebody_waits(
    case: str, monkeypatch: pytest.MonkeyPatch, bars: None
) -> None:
    stream = io.StringIO() if case == "file" else Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "DELAY", 60.0 if case == "quick" else 0.0)
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    if case == "switched off":
        logging.disable_progress_bar()
    assert measure(StepRunner(tiny_model("llama-gqa"))).times
    assert ("Timing passes" in stream.getvalue()) == (case == "terminal")
