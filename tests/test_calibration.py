"""Costs are measured once per model and device, and remembered on disk."""

import copy
import json
from pathlib import Path

import pytest
import torch

from llma_rag.costs import CostCurve
from llma_rag.engine import calibration
from llma_rag.engine.calibration import SWITCH, Calibration, calibrate, measure
from llma_rag.engine.cpu.half_product import can_keep
from llma_rag.engine.cpu.onednn_product import can_prepack
from llma_rag.engine.cpu.prepack import prepack_in_place
from llma_rag.engine.machine import is_intel, processor
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.engine.verdict import Verdict
from llma_rag.folders import cache_folder
from tests.families import build
from tests.models import tiny_model


class CountingRunner(StepRunner):
    """Counts passes; a pass "takes" as long as it is wide, by a clock of its own."""

    passes = 0
    clock = 0.0

    def run(self, step: Pass) -> Outcome:
        self.passes += 1
        CountingRunner.clock += 1.0 + 0.1 * len(step.drafted) * (step.row.length >= 100)
        CountingRunner.clock += 0.0 if step.is_chain else 0.25
        return super().run(step)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CountingRunner:
    made = CountingRunner(tiny_model("llama-gqa"))
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: CountingRunner.clock)
    monkeypatch.setattr(calibration, "SMALLEST", 0)
    monkeypatch.setattr(calibration, "SLOW_PASS", 10.0)
    monkeypatch.setattr(calibration, "SECONDS", 100.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)
    return made


def test_times_are_relative_to_one_token(runner: CountingRunner) -> None:
    curve = measure(runner).curve(128)
    assert curve is not None
    assert [round(curve(width), 6) for width in (1, 2, 16, 32)] == [1.0, 1.1, 2.5, 4.1]


def test_branching_is_measured_where_trees_are_taken(
    runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = measure(runner).curve(128)
    assert curve is not None
    assert curve.branching == pytest.approx(0.25)
    monkeypatch.setattr(StepRunner, "supports_trees", property(lambda self: False))
    assert measure(runner).branching == {}


def test_weights_that_were_prepacked_count_for_a_models_size(
    runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no parameters any more; without costs nothing bounds drafts that mislead."""
    model = copy.deepcopy(tiny_model("llama-gqa"))
    size = sum(one.numel() for one in model.parameters())
    monkeypatch.setattr(calibration, "SMALLEST", size)
    if not prepack_in_place(model):
        pytest.skip("nothing is prepacked here")
    assert calibrate(CountingRunner(model)).times


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1"])
def test_passes_are_timed_behind_the_context_that_they_are_kept_for(
    runner: CountingRunner, family: str
) -> None:
    """A model's own state is put back after each pass."""
    other = CountingRunner(build(family), Verdict(memory="own", trees=False))
    most = 0
    forward = other.run

    def watch(step: Pass) -> Outcome:
        nonlocal most
        outcome = forward(step)
        state = step.row.memory._state
        most = max(most, state.get_seq_length())
        return outcome

    other.run = watch
    measure(other)
    assert 128 < most <= 128 + max(calibration.WIDTHS) + calibration.ROUNDS[1] + 3


def test_a_model_is_measured_once(runner: CountingRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrate(runner)
    passes = runner.passes
    assert passes > 10
    assert calibrate(runner) == first
    assert runner.passes == passes
    monkeypatch.setenv(SWITCH, "refresh")
    assert calibrate(runner) == first
    assert runner.passes > passes


def test_another_model_is_measured_again(runner: CountingRunner) -> None:
    calibrate(runner)
    other = CountingRunner(tiny_model("mistral"))
    calibrate(other)
    assert other.passes > 0
    assert len(list(cache_folder("calibration").glob("*.json"))) == 2


def test_without_a_home_nothing_is_kept(
    runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("calibration") is None
    assert calibrate(runner).times


def test_threads_and_dtype_are_part_of_the_key(runner: CountingRunner) -> None:
    keys = {calibration._key(runner)}
    runner.model = tiny_model("llama-gqa").__class__(tiny_model("llama-gqa").config)
    assert calibration._key(runner) in keys
    keys.add(calibration._key(StepRunner(runner.model.to(torch.bfloat16).eval())))
    assert len(keys) == 2


@pytest.mark.skipif(not can_keep(torch.bfloat16), reason="our kernel does not run here")
def test_how_weights_are_kept_is_part_of_the_key() -> None:
    wide = copy.deepcopy(tiny_model("llama-gqa"))
    narrow = copy.deepcopy(wide).bfloat16().float()
    keys = {calibration._key(StepRunner(wide))}
    for model in (wide, narrow):
        prepack_in_place(model)
        keys.add(calibration._key(StepRunner(model)))
    assert len(keys) == 2 + can_prepack(torch.float32)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"format": 0, "times": {}}',
        f'{{"format": {calibration.FORMAT}, "times": {{"1": {{"1": 0}}}}}}',
    ],
)
def test_a_spoilt_file_is_measured_again(runner: CountingRunner, content: str) -> None:
    first = calibrate(runner)
    (file,) = cache_folder("calibration").glob("*.json")
    file.write_text(content)
    assert calibrate(runner) == first
    assert json.loads(file.read_text())["format"] == calibration.FORMAT


def test_a_folder_that_cannot_be_written_is_no_error(
    runner: CountingRunner, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert calibrate(runner, blocked / "folder").times


def test_nothing_is_measured_where_it_is_switched_off_or_the_model_is_tiny(
    runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    assert calibrate(runner) == Calibration({})
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(calibration, "SMALLEST", 10_000_000)
    assert calibrate(runner) == Calibration({})
    assert runner.passes == 0
    assert Calibration({}).curve(100) is None


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("disturbed", [1, 4, 8, 16])
def test_a_time_that_another_program_took_is_not_believed(
    runner: CountingRunner, monkeypatch: pytest.MonkeyPatch, disturbed: int, slow: bool
) -> None:
    """One width takes three times as long for the first passes in a row, a warm-up included."""
    expected = measure(runner).times
    monkeypatch.setattr(calibration, "SLOW_PASS", 0.5 if slow else 10.0)
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    left = {128: 2, 1024: 2}
    original = CountingRunner.run

    def noisy(self: CountingRunner, step: Pass) -> Outcome:
        begin, length = CountingRunner.clock, step.row.length
        found = original(self, step)
        if len(step.drafted) + 1 == disturbed and left.get(length, 0):
            left[length] -= 1
            CountingRunner.clock += 2 * (CountingRunner.clock - begin)
        return found

    monkeypatch.setattr(CountingRunner, "run", noisy)
    for context, times in measure(runner).times.items():
        assert times == {width: expected[context][width] for width in times}


def test_a_wider_pass_bounds_the_time_of_a_narrower_one() -> None:
    times = {1: 2.0, 4: 3.2, 8: 3.8, 16: 2.8, 32: 7.0}
    assert calibration._relative([times]) == {1: 1.0, 4: 1.4, 8: 1.4, 16: 1.4, 32: 3.5}
    assert calibration._relative([{1: 4.0, 4: 2.0, 8: 3.0}]) == {1: 1.0, 4: 1.0, 8: 1.5}


def test_a_machine_that_is_slower_for_seconds_changes_no_relative_time() -> None:
    """Even where the quick rounds met another program at some width."""
    times = {1: 2.0, 4: 2.4, 8: 3.0}
    rounds = [
        {width: time * slower for width, time in times.items()} for slower in (1.0, 1.3, 1.5, 1.5)
    ]
    rounds[0][1] = 3.0
    assert calibration._relative(rounds) == {1: 1.0, 4: 1.2, 8: 1.5}


def test_a_slow_model_is_measured_at_few_widths_and_once(
    runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody waits for it at load; what the context changes is less than that is worth."""
    monkeypatch.setattr(calibration, "SLOW_PASS", 0.5)
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    found = measure(runner)
    (times,) = found.times.values()
    assert set(times) == {1, 4, 8, 16, 32}
    assert runner.passes <= 6 + 4 * 5 + 7
    assert found.curve(128) is not None


def test_the_nearest_context_counts() -> None:
    found = Calibration({100: {1: 1.0, 2: 1.5}, 1000: {1: 1.0, 2: 2.0}})
    near, far = found.curve(400), found.curve(4000)
    assert near is not None
    assert far is not None
    assert (near(2), far(2)) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("cost", "branching", "pays"),
    [
        (0.0, 0.0, True),
        (0.005, 0.09, True),
        (0.005, 0.11, False),
        (0.02, 0.02, True),
        (0.02, 0.03, False),
        (0.09, 0.0, True),
        (0.11, 0.0, False),
    ],
)
def test_trees_are_drafted_where_they_pay(cost: float, branching: float, pays: bool) -> None:
    assert CostCurve.linear(cost, branching).branches_pay is pays


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("fpu avx2 avx512f avx512_bf16", "A CPU (AVX-512 with bfloat16)"),
        ("fpu avx2 avx512f", "A CPU (AVX-512)"),
        ("fpu avx avx2", "A CPU (AVX2)"),
        ("fpu", "A CPU"),
    ],
)
def test_a_processor_is_named_with_its_instructions(tmp_path, flags, named):
    """Machines of one name differ in what decides the cost of a pass."""
    listing = tmp_path / "cpuinfo"
    listing.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n\n")
    assert processor(listing) == named


def test_intels_processors_are_told_from_others(tmp_path):
    listing = tmp_path / "cpuinfo"
    assert not is_intel(listing)
    for vendor, intel in (("GenuineIntel", True), ("AuthenticAMD", False)):
        listing.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n\n")
        assert is_intel(listing) is intel


def test_a_processor_has_a_name_where_nothing_lists_it(tmp_path):
    assert processor(tmp_path / "none")
