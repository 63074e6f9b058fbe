"""Measure once what wider passes cost on this device, and remember it on disk."""

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llma_rag.costs import CostCurve
from llma_rag.engine.cpu.prepack import PrepackedLinear
from llma_rag.engine.load import most_positions
from llma_rag.engine.machine import processor
from llma_rag.engine.memory import SlabMemory
from llma_rag.engine.progress import progress
from llma_rag.engine.step import Pass, Row, StepRunner
from llma_rag.folders import cache_folder

SWITCH = "LLMA_RAG_CALIBRATION"
"""Environment variable: "off" measures nothing, "refresh" measures again, else the disk is used."""

FORMAT = 8
"""Version of the files; others are measured again."""

WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
CONTEXTS = (128, 1024)
SECONDS = 1.0
"""Time to spend; every width is measured, slow models at fewer widths."""

BRANCHED = 8
"""Drafted tokens with which the cost of branching is measured."""

ROUNDS = 3, 50
"""Least and most times that each width is measured."""

SLOW_ROUNDS = 3
"""Least times that a slow model's widths are measured: one time may be another program's."""

SETTLED, FURTHER_ROUNDS = 0.03, 4
"""By which share the last round may have changed a relative time for it to be the last; else, and
for at most so many rounds more, the times are measured again."""

SLOW_PASS = 0.15
"""Seconds of one pass from which a model is measured at few widths, behind the longer context."""

SMALLEST = 20_000_000
"""Parameters below which a model is not measured: its passes cost what launching them costs."""


@dataclass(frozen=True)
class Calibration:
    """Times of passes relative to one token, by context and width.

    Attributes:
        times: Context in tokens -> width in tokens -> time relative to width 1.
        branching: Context in tokens -> what a draft that is a tree takes longer than a chain.
    """

    times: Mapping[int, Mapping[int, float]]
    branching: Mapping[int, float] = field(default_factory=dict)

    def curve(self, context: int) -> CostCurve | None:
        """Return the costs at the measured context nearest to `context`; None if there is none.

        It is one curve for all requests, which learns from their passes.
        """
        if not self.times:
            return None
        return self._curves[min(self.times, key=lambda one: abs(one - context))]

    @cached_property
    def _curves(self) -> Mapping[int, CostCurve]:
        return {
            context: CostCurve(times, self.branching.get(context, 0.0))
            for context, times in self.times.items()
        }


def calibrate(runner: StepRunner, folder: Path | None = None) -> Calibration:
    """Return the costs of a runner's passes, from disk where they were measured before.

    Args:
        runner: Measured with its own attention, weights and widths.
        folder: Where files are kept; None for `cache_folder("calibration")`.
    """
    switch = os.environ.get(SWITCH, "")
    if switch == "off" or not _is_worth_it(runner.model):
        return Calibration({})
    folder = folder or cache_folder("calibration")
    if folder is None:
        return measure(runner)
    file = folder / f"{_key(runner)}.json"
    known = None if switch == "refresh" else _read(file)
    if known is None:
        known = measure(runner)
        _write(file, known)
    return known


def measure(runner: StepRunner) -> Calibration:
    """Time passes of several widths at two context lengths, in about a second for small models."""
    with progress("Timing passes", "pass") as bar:
        return _measure(_Timer(runner, bar))


class _Timer:
    """Times passes of a runner and tells a progress bar."""

    def __init__(self, runner: StepRunner, bar: Any) -> None:
        self.runner = runner
        self._bar = bar

    def time(self, row: Row, width: int, parents: Sequence[int] | None = None) -> float:
        """Return the seconds of one pass; drafts are chains unless `parents` say otherwise."""
        drafted = width - 1
        chain = range(-1, drafted - 1)
        step = Pass(row, [0], [0] * drafted, chain if parents is None else parents)
        started = time.perf_counter()
        self.runner.run(step).likeliest()
        taken = time.perf_counter() - started
        if drafted or isinstance(row.memory, SlabMemory):
            row.memory.undo()
        else:
            self.runner.keep(step, [])  # a model's own state has moved, and was not copied before
        self._bar.update()
        return taken


def _measure(timer: _Timer) -> Calibration:
    runner = timer.runner
    most = min(most_positions(runner.model.config), max(CONTEXTS) + 2 * max(WIDTHS))
    contexts = [one for one in CONTEXTS if one + max(WIDTHS) < most] or [1]
    deadline = time.perf_counter() + SECONDS / len(contexts)
    found: dict[int, Mapping[int, float]] = {}
    branching: dict[int, float] = {}
    for context in sorted(contexts, reverse=True):
        row = _row(runner, context)
        times = _times(timer, row, deadline)
        found[context] = _relative(times)
        single = min(one[1] for one in times)
        if runner.supports_trees:
            rounds = SLOW_ROUNDS if single > SLOW_PASS else ROUNDS[0]
            branching[context] = round(_branching(timer, row, rounds) / single, 4)
        if single > SLOW_PASS:
            break
        deadline += SECONDS / len(contexts)
    return Calibration(found, branching)


def _branching(timer: _Timer, row: Row, rounds: int) -> float:
    """Return by how many seconds a small tree takes longer than a chain of its size."""
    if timer.runner.draft_limit(row) < BRANCHED:
        return 0.0
    chain, tree = range(-1, BRANCHED - 1), [-1, *range(-1, BRANCHED - 2)]
    timer.time(row, BRANCHED + 1, tree)
    times = [
        [timer.time(row, BRANCHED + 1, parents) for parents in (chain, tree)] for _ in range(rounds)
    ]
    chained, branched = (min(of) for of in zip(*times, strict=True))
    return float(max(0.0, branched - chained))


def _is_worth_it(model: PreTrainedModel) -> bool:
    packed = (one for one in model.modules() if isinstance(one, PrepackedLinear))
    weights = sum(one.in_features * one.out_features for one in packed)
    return weights + sum(one.numel() for one in model.parameters()) >= SMALLEST


def _row(runner: StepRunner, context: int) -> Row:
    """Return a row that stands at `context`; a slab is not filled, since zeros take as long."""
    row = runner.open_row(context + max(WIDTHS))
    fed = 1 if isinstance(row.memory, SlabMemory) else context
    step = Pass(row, [0] * fed)
    runner.run(step)
    runner.keep(step, [])
    if isinstance(row.memory, SlabMemory):
        row.memory.cache.lengths[row.memory.row] = context
        row.tokens = [0] * context
    return row


def _times(timer: _Timer, row: Row, deadline: float) -> list[dict[int, float]]:
    """Return the times of all widths, round by round."""
    widths = [one for one in WIDTHS if one <= 1 + timer.runner.draft_limit(row)]
    timer.time(row, 1)
    first = timer.time(row, 1)
    least, most = ROUNDS
    if first > SLOW_PASS:
        widths, least = [one for one in widths if one in (1, 4, 8, 16, 32)], SLOW_ROUNDS
    for width in widths[1:]:
        timer.time(row, width)
    rounds: list[dict[int, float]] = []
    found: dict[int, float] = {}
    while len(rounds) < most:
        rounds.append({width: timer.time(row, width) for width in widths})
        before, found = found, _relative(rounds)
        settled = all(abs(found[one] / known - 1) <= SETTLED for one, known in before.items())
        late = time.perf_counter() >= deadline and len(rounds) >= least
        if late and (settled or len(rounds) >= least + FURTHER_ROUNDS):
            break
    return rounds


def _relative(rounds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return times relative to width 1: medians of what they are within a round.

    A machine that others use as well is slow for seconds at a time, which all widths of a round
    meet; the least times of several rounds would come from different ones. What a wider pass takes
    bounds what a narrower one does.
    """
    bound, found = float("inf"), dict[int, float]()
    for width in sorted(rounds[0], reverse=True):
        bound = min(statistics.median(one[width] / one[1] for one in rounds), bound)
        found[width] = bound
    return {width: round(found[width] / bound, 4) for width in sorted(found)}


def _key(runner: StepRunner) -> str:
    """Return what a measurement holds for: model, device, dtype, kernels, shapes, threads."""
    model = runner.model
    config = model.config.get_text_config(decoder=True).to_dict()
    sizes = {name: value for name, value in config.items() if isinstance(value, (int, float))}
    device = model.device
    on_gpu = device.type == "cuda"
    parts = {
        "model": type(model).__name__,
        "sizes": sizes,
        "layers": sorted({type(module).__name__ for module in model.modules()}),
        "products": sorted(
            {
                type(module.product).__name__
                for module in model.modules()
                if isinstance(module, PrepackedLinear)
            }
        ),
        "weights": sorted({type(weight).__name__ for weight in model.parameters()}),
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "machine": [platform.machine(), device.type],
        "dtype": str(model.dtype),
        "kernel": model.config._attn_implementation,
        "width": None if runner.fixed is None else runner.fixed.width,
        "step": None if runner.captured is None else type(runner.captured.function).__name__,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: Path) -> Calibration | None:
    try:
        content = json.loads(file.read_text())
        if content["format"] != FORMAT:
            return None
        times = {
            int(context): {int(width): float(time) for width, time in widths.items()}
            for context, widths in content["times"].items()
        }
        branching = {int(one): float(time) for one, time in content["branching"].items()}
        for widths in times.values():
            CostCurve(widths)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Calibration(times, branching)


def _write(file: Path, calibration: Calibration) -> None:
    """Write a file whole or not at all; a folder that cannot be written to is no error."""
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"format": FORMAT, **asdict(calibration)}))
        partial.replace(file)
    except OSError:
        with suppress(OSError):
            partial.unlink()
