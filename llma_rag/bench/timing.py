"""Time arms against each other: interleaved, ratio by ratio, with intervals over prompts."""

import gc
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llma_rag.bench.arms import Timed
from llma_rag.bench.traces import TraceTokens

RESAMPLES = 2_000

WARM_UP_TOKENS = 8
"""Tokens of the forced answer that warms up."""

Run = Callable[[str, TraceTokens], Timed]

REFERENCE = {"hf-prompt-lookup": "hf-greedy", "hf-static-compiled": "hf-greedy"}
"""Whose answers an arm must repeat; our own arms must repeat `plain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One arm over all prompts; times are medians over repeats, then over prompts.

    Attributes:
        arm: Its name.
        ms_per_token: Time per token after the first, milliseconds.
        ttft_ms: Time to the first token, milliseconds.
        tokens_per_forward: Tokens over forward passes, all prompts together.
        ms_per_forward: Time per forward pass after the first, milliseconds; 0 if there is none.
        context: Tokens behind which a pass stands, half of the answer included.
        identical: Share of answers equal to those of the reference arm; None without that arm.
        ratio: By other arm, its time per token after the first over this one's: above 1 this arm
            is quicker. Median over prompts with a 95 % bootstrap interval, and each prompt's ratio.
        answer_ratio: The same of whole answers, the time to the first token included.
        ttft_more_ms: By other arm, by how many milliseconds this one's first token comes later:
            the median over prompts, an interval, and each prompt's median over repeats.
    """

    arm: str
    ms_per_token: float
    ttft_ms: float
    tokens_per_forward: float
    ms_per_forward: float = 0.0
    context: float = 0.0
    identical: float | None
    ratio: dict[str, dict[str, object]] = field(default_factory=dict)
    answer_ratio: dict[str, dict[str, object]] = field(default_factory=dict)
    ttft_more_ms: dict[str, dict[str, object]] = field(default_factory=dict)


def interleave(
    run: Run,
    arms: Sequence[str],
    traces: Sequence[TraceTokens],
    repeats: int,
    progress: Callable[[], None] = lambda: None,
    time_is_up: Callable[[], bool] = lambda: False,
) -> dict[str, list[list[Timed]]]:
    """Run all arms on each prompt, in random order, and again; a short answer warms up.

    Args:
        run: Decodes a prompt by an arm.
        arms: Names.
        traces: Prompts and answers.
        repeats: Times that each arm decodes each prompt.
        progress: Called after each answer.
        time_is_up: Asked between prompts; true ends the run where it stands.

    Returns:
        For each arm and prompt its repeats; prompts that were not reached are left out.
    """
    gc.collect()
    gc.freeze()  # what loading left behind slows no arm
    try:
        return _interleaved(run, arms, traces, repeats, progress, time_is_up)
    finally:
        gc.unfreeze()


def _interleaved(
    run: Run,
    arms: Sequence[str],
    traces: Sequence[TraceTokens],
    repeats: int,
    progress: Callable[[], None],
    time_is_up: Callable[[], bool],
) -> dict[str, list[list[Timed]]]:
    order = random.Random(0)
    warm = replace(traces[0], answer=traces[0].answer[:WARM_UP_TOKENS])
    found: dict[str, list[list[Timed]]] = {arm: [[] for _ in traces] for arm in arms}
    turns = [0, *(number for _ in range(repeats) for number in range(len(traces)))]
    for turn, number in enumerate(turns):
        if turn > 1 and time_is_up():
            break
        for arm in order.sample(list(arms), len(arms)):
            timed = run(arm, traces[number] if turn else warm)
            if turn:
                found[arm][number].append(timed)
            progress()
    return {arm: [runs for runs in by_prompt if runs] for arm, by_prompt in found.items()}


def rows_of(found: Mapping[str, Sequence[Sequence[Timed]]]) -> list[ArmRow]:
    """Return one row per arm."""
    return [_row(arm, found) for arm in found]


def _row(arm: str, found: Mapping[str, Sequence[Sequence[Timed]]]) -> ArmRow:
    mine = found[arm]
    last = [runs[-1] for runs in mine]
    tokens = np.array([len(one.token_ids) for one in last])
    reference = REFERENCE.get(arm, arm if arm.startswith("hf-") else "plain")
    same = None
    if reference in found:
        theirs = [runs[0].token_ids for runs in found[reference]]
        pairs = zip(mine, theirs, strict=True)
        same = float(np.mean([all(one.token_ids == right for one in a) for a, right in pairs]))
    seconds, after = per_prompt(mine), per_prompt(mine, _after_first)
    first = per_prompt(mine, _first)
    return ArmRow(
        arm=arm,
        ms_per_token=float(np.median(after)) * 1e3,
        ttft_ms=float(np.median(first)) * 1e3,
        tokens_per_forward=float(tokens.sum() / max(sum(one.forwards for one in last), 1)),
        ms_per_forward=float(np.median(per_prompt(mine, _per_forward))) * 1e3,
        context=float(np.mean([one.prompt_tokens + len(one.token_ids) / 2 for one in last])),
        identical=same,
        ratio={
            other: ratio_of(per_prompt(found[other], _after_first) / after)
            for other in found
            if other != arm
        },
        answer_ratio={
            other: ratio_of(per_prompt(found[other]) / seconds) for other in found if other != arm
        },
        ttft_more_ms={
            other: ratio_of((first - per_prompt(found[other], _first)) * 1e3)
            for other in found
            if other != arm
        },
    )


def per_prompt(
    runs: Sequence[Sequence[Timed]], of: Callable[[Timed], float] = lambda one: one.seconds
) -> np.ndarray:
    """Return the median seconds of an answer, or of a part of it, for each prompt."""
    return np.array([np.median([of(one) for one in repeats]) for repeats in runs])


def _after_first(timed: Timed) -> float:
    return timed.per_token


def _first(timed: Timed) -> float:
    return timed.first_token


def _per_forward(timed: Timed) -> float:
    return (timed.seconds - timed.first_token) / max(timed.forwards - 1, 1)


def ratio_of(ratios: np.ndarray) -> dict[str, object]:
    """Return median and 95 % bootstrap interval over prompts, and the ratios themselves."""
    source = np.random.default_rng(0)
    drawn = source.choice(ratios, size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {
        "median": round(float(np.median(ratios)), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "prompts": [round(float(one), 3) for one in ratios],
    }
