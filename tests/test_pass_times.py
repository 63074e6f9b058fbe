"""Costs that were measured wrongly are put right by the passes of requests."""

import random

import pytest

from llma_rag.costs import CostCurve
from llma_rag.pass_times import LEVELS
from llma_rag.worker import MAX_ACTIVE

MEASURED = {1: 1.0, 2: 1.02, 4: 1.05, 6: 1.2, 8: 1.5, 16: 2.4, 32: 4.5}


def passes(
    curve: CostCurve,
    truth: CostCurve,
    count: int,
    *,
    wide: float = 0.5,
    noise: float = 0.03,
    disturbed: float = 0.02,
    single: float = 0.03,
    drift: float = 0.0,
    seed: int = 0,
) -> None:
    """Let a curve see passes of a machine.

    Args:
        curve: Learns.
        truth: What passes cost there.
        count: How many.
        wide: Share of passes with drafts.
        noise: Standard deviation of the logarithm of a time.
        disturbed: Share of passes during which another program runs.
        single: Seconds of a pass of one token.
        drift: Logarithm of the factor by which all become slower from one to the next.
        seed: Of the chance.
    """
    chance = random.Random(seed)
    for _ in range(count):
        single *= 2.718281828**drift
        width = chance.choice([2, 3, 5, 9, 17, 31]) if chance.random() < wide else 1
        seconds = single * truth(width) * chance.lognormvariate(0, noise)
        curve.observe(width, seconds * (4 if chance.random() < disturbed else 1))


def off(points: dict[int, float], factor: float) -> CostCurve:
    """Return a curve on which every pass of more than a token costs `factor` times as much."""
    return CostCurve({width: time * (factor if width > 1 else 1) for width, time in points.items()})


def furthest(curve: CostCurve, truth: CostCurve) -> float:
    """Return by which share a curve is off at most, at the widths that were seen."""
    return max(abs(curve(width) / truth(width) - 1) for width in (2, 3, 5, 9, 17, 31))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [0.85, 1.0, 1.2])
def test_passes_move_a_curve_to_what_they_take(factor: float, seed: int) -> None:
    curve, truth = CostCurve(MEASURED), off(MEASURED, factor)
    passes(curve, truth, 200, seed=seed)
    assert furthest(curve, truth) < 0.06
    assert factor == 1.0 or furthest(CostCurve(MEASURED), truth) > 0.14


@pytest.mark.parametrize("seed", range(5))
def test_few_passes_with_drafts_teach_most_of_it(seed: int) -> None:
    """As where references mislead: one answer is enough."""
    curve, truth = CostCurve(MEASURED), off(MEASURED, 1.25)
    passes(curve, truth, 100, wide=0.15, seed=seed)
    assert furthest(curve, truth) < 0.12


@pytest.mark.parametrize("drift", [-0.004, 0.004])
def test_a_machine_that_becomes_slower_or_quicker_moves_nothing(drift: float) -> None:
    curve = CostCurve(MEASURED)
    passes(curve, CostCurve(MEASURED), 200, drift=drift)
    assert furthest(curve, CostCurve(MEASURED)) < 0.04


@pytest.mark.parametrize("requests", [2, 8, 20])
def test_requests_of_other_contexts_that_take_turns_teach_nothing_wrong(requests: int) -> None:
    """One drafts little and takes long, the next drafts much."""
    curve, truth, chance = CostCurve(MEASURED), off(MEASURED, 1.2), random.Random(0)
    names = [object() for _ in range(requests)]
    for _ in range(200):
        for number, name in enumerate(names):
            width = chance.choice([2, 5, 9]) if number % 2 else 1
            curve.observe(width, (3 - 2 * (number % 2)) * truth(width), request=name)
            curve.observe(1, 3 - 2 * (number % 2), request=name)
    assert furthest(curve, truth) < (0.21 if requests > 8 else 0.06)
    assert furthest(curve, CostCurve(MEASURED)) < 0.21


def test_all_requests_that_are_decoded_in_turns_are_told_apart() -> None:
    assert LEVELS >= MAX_ACTIVE


def test_times_that_cannot_be_and_widths_that_were_not_measured_teach_nothing() -> None:
    curve = CostCurve(MEASURED)
    for width, seconds in [(8, 0.0), (8, -1.0), (8, float("nan")), (33, 9.0)] * 20:
        curve.observe(1, 0.03)
        curve.observe(width, seconds)
    assert furthest(curve, CostCurve(MEASURED)) == 0


def test_widths_that_were_not_seen_move_with_those_beside_them() -> None:
    curve = CostCurve(MEASURED)
    for _ in range(60):
        curve.observe(1, 0.03)
        curve.observe(8, 0.03 * MEASURED[8] * 1.2)
    assert curve(8) == pytest.approx(MEASURED[8] * 1.2, rel=0.03)
    assert curve(16) == pytest.approx(MEASURED[16] * 1.2, rel=0.05)
    assert MEASURED[4] * 1.05 < curve(4) < MEASURED[4] * 1.19


def test_what_was_learned_is_forgotten_where_nothing_confirms_it() -> None:
    curve, truth = CostCurve(MEASURED), off(MEASURED, 1.25)
    passes(curve, truth, 200)
    learned = curve(5)
    passes(curve, truth, 2_000, wide=0.0)
    assert curve(5) < MEASURED[4] + (learned - MEASURED[4]) / 2


def test_a_wide_pass_is_never_taken_for_quicker_than_a_narrow_one() -> None:
    curve = CostCurve(MEASURED)
    for _ in range(60):
        curve.observe(1, 0.03)
        curve.observe(4, 0.02)
    assert [curve(width) for width in (1, 2, 4)] == [1.0, 1.0, 1.0]
    times = [curve(width) for width in range(1, 40)]
    assert times == sorted(times)


def test_tables_follow_the_curve() -> None:
    curve = CostCurve(MEASURED)
    before = curve.table(16)
    passes(curve, off(MEASURED, 1.25), 100)
    assert curve.table(16).times[7] == pytest.approx(curve(8))
    assert curve.table(16).times[7] > before.times[7] * 1.1


def test_a_tree_is_expected_to_take_what_branching_costs() -> None:
    curve = CostCurve(MEASURED, branching=0.3)
    for _ in range(60):
        curve.observe(1, 0.03)
        curve.observe(8, 0.03 * (MEASURED[8] + 0.3), branches=True)
    assert curve(8) == pytest.approx(MEASURED[8], rel=0.01)


def test_a_curve_without_widths_learns_nothing() -> None:
    curve = CostCurve({1: 1.0})
    for width in (1, 9) * 10:
        curve.observe(width, 0.01 * width)
    assert curve(1) == curve(9) == 1.0
