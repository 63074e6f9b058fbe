"""Measure the drafting figures of the documentation; writes `docs/results/drafting.json`.

Each section says for itself what it was measured on, so that one may be measured again alone.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results import RESULTS, measured_on

from llma_rag.acceptance import AcceptanceModel
from llma_rag.bench.forced import ForcedRun, MakeDrafter, force
from llma_rag.bench.hostile import HOSTILE
from llma_rag.bench.replay import OURS, replay, tokenised
from llma_rag.bench.search import Search
from llma_rag.bench.summary import ALL_SETS, ReplayRow, interval, speed_up
from llma_rag.bench.traces import TraceTokens
from llma_rag.costs import CostCurve
from llma_rag.drafting import Drafter, ReferenceDrafter

COSTS = (0.005, 0.02, 0.05, 0.15)
DEV = ("llma_rag", "pld_hagrid", "pld_cnndm", "aragog", "summedits")
TEST = ("specbench_rag", "specbench_summarization")
CONTROLS = ("specbench_qa", "specbench_translation", "specbench_math_reasoning")
COPIES = f"{OURS}:recycling=0"
PEER = "arctic-inference"
"""The distribution of SuffixDecoding; its rows need it."""

ROWS = 100
NODES = 64
STEP_ANSWERS = 20

GRID: dict[str, dict[str, tuple[float, ...]]] = {
    "suffix-decoding": {
        "draft_length": (32, 8, 16, 64),
        "factor": (4, 1, 2, 8),
        "offset": (1, -1, 0, 2, 3),
        "min_probability": (0.1, 0.02, 0.05, 0.2, 0.3, 0.5),
        "cached_requests": (1_000, 0),
    },
    "prompt-lookup": {
        "match_length": (3, 1, 2, 4),
        "draft_length": (10, 1, 2, 3, 5, 8, 16, 32),
    },
    "llma": {
        "min_match_length": (1, 2, 3),
        "draft_length": (20, 2, 3, 5, 8, 12),
    },
}
"""What the options of the peers may be; the first value of each is where the search begins."""


class Figures:
    """Sections of figures over the recorded answers in one folder."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared

    def traces(self, folder: str, names: Iterable[str]) -> list[TraceTokens]:
        """Return the first rows of some sets."""
        files = [self._shared / "traces" / folder / f"{name}.jsonl" for name in names]
        return tokenised(files, rows=ROWS)

    def tokens_per_forward(self) -> dict[str, Any]:
        """Trees of 16, 32 and 64 nodes, and chains of 20, on the answers of the LLMA paper."""
        traces = self.traces("dev", ["llma_rag"])
        found: dict[str, Any] = {}
        for nodes in (20, 16, 32, 64):
            rows = replay(
                traces, drafters=[OURS, COPIES], budget=nodes, branching=nodes != 20, costs=()
            )
            found["chain of 20" if nodes == 20 else f"{nodes} nodes"] = {
                row.drafter: {
                    "tokens_per_forward": round(row.tokens_per_forward, 3),
                    "interval": [round(end, 3) for end in row.tokens_per_forward_interval],
                }
                for row in rows
            }
        return found

    def peers(self) -> dict[str, Any]:
        """S(c) of every peer of the grid, on the sets for tuning and on the others."""
        dev, test = self.traces("dev", DEV), self.traces("public_test", TEST)
        search = Search(
            lambda name: _means(replay(dev, drafters=[name], budget=NODES, costs=COSTS))[name]
        )
        best = {
            str(cost): dict(
                search.best(family, options, str(cost)) for family, options in GRID.items()
            )
            for cost in COSTS
        }
        names = sorted({name for found in best.values() for name in found})
        tested = _means(replay(test, drafters=names, budget=NODES, costs=COSTS))
        return {
            cost: {
                name: {"dev": round(value, 3), "test": round(tested[name][cost], 3)}
                for name, value in found.items()
            }
            for cost, found in best.items()
        }

    def speed_ups(self) -> dict[str, Any]:
        """S(c) of ours on the same sets, with and without recycling."""
        dev, test = self.traces("dev", DEV), self.traces("public_test", TEST)
        rows = {
            part: replay(traces, drafters=[OURS, COPIES], budget=NODES, branching=True, costs=COSTS)
            for part, traces in (("dev", dev), ("test", test))
        }
        means = {part: _means(found) for part, found in rows.items()}
        found: dict[str, Any] = {
            cost: {
                name: {part: round(of[name][cost], 3) for part, of in means.items()}
                for name in (OURS, COPIES)
            }
            for cost in map(str, COSTS)
        }
        found["sets"] = {
            row.set: {key: round(value, 3) for key, value in row.s.items()}
            for row in (*rows["dev"], *rows["test"])
            if row.set != ALL_SETS and row.drafter == OURS
        }
        return found

    def controls(self) -> dict[str, Any]:
        """S(c) where there is little to copy, and on all other sets."""
        traces = self.traces("public_test", CONTROLS)
        rows = replay(traces, drafters=[OURS, COPIES], budget=NODES, branching=True, costs=COSTS)
        return {
            row.set: {
                other.drafter: {key: round(value, 3) for key, value in other.s.items()}
                for other in rows
                if other.set == row.set
            }
            for row in rows
            if row.set != ALL_SETS
        }

    def answer_store(self) -> dict[str, Any]:
        """Tokens per forward with earlier answers to the same question, and with the same one."""
        file = self._shared / "traces" / "dev" / "ray_answers.jsonl"
        groups: defaultdict[str, list[TraceTokens]] = defaultdict(list)
        for trace in tokenised([file]):
            groups[trace.trace.group].append(trace)
        chosen = [group for group in groups.values() if len(group) > 10]

        def force_with(earlier: int, repeats: int) -> dict[str, Any]:
            model = AcceptanceModel.shipped()
            runs = [
                force(
                    group[earlier],
                    _with_answers(group[:earlier], group[earlier:][:repeats], model),
                    NODES,
                )
                for group in chosen
            ]
            low, high = interval(runs, 0.0)
            return {
                "tokens_per_forward": round(speed_up(runs, 0.0), 3),
                "interval": [round(low, 3), round(high, 3)],
                "answers": len(runs),
            }

        return {
            "no earlier answers": force_with(0, 0),
            "3 earlier answers": force_with(3, 0),
            "10 earlier answers": force_with(10, 0),
            "exact repeat": force_with(0, 1),
        }

    def hostile(self) -> dict[str, Any]:
        """Time over plain decoding with references made to mislead, at a cost of .05."""
        chance = random.Random(0)
        traces = [trace for trace in self.traces("dev", DEV) if len(trace.answer) > 30]
        model = AcceptanceModel.shipped()
        runs: list[ForcedRun] = []
        for number in range(1_000):
            trace = chance.choice(traces)
            bait = HOSTILE[number % len(HOSTILE)](trace.answer, chance)
            hostile = replace(trace, references=(tuple(bait),), prompt=(1,))
            runs.append(force(hostile, _plain(model, CostCurve.linear(0.05)), NODES))
        times = np.array([(r.forwards + 0.05 * r.drafted) / r.tokens for r in runs])
        steps = np.concatenate([run.step_seconds for run in runs]) * 1e6
        return {
            "cases": len(runs),
            "time_over_plain_mean": round(float(times.mean()), 4),
            "time_over_plain_p99": round(float(np.quantile(times, 0.99)), 4),
            "time_over_plain_max": round(float(times.max()), 4),
            "cases_above_1.02": int((times > 1.02).sum()),
            "step_us_p50": round(float(np.median(steps)), 1),
            "step_us_mean": round(float(steps.mean()), 1),
        }

    def step_time(self) -> dict[str, Any]:
        """Microseconds per step with 64k tokens of context, one thread, beside the peers."""
        texts = self.traces("dev", ["pld_cnndm", "llma_cnndm", "aragog"])
        prompt = [token for trace in texts for token in trace.prompt][:65_536]
        traces = [
            replace(trace, prompt=tuple(prompt), references=())
            for trace in self.traces("dev", ["pld_cnndm"])[:STEP_ANSWERS]
        ]
        found: dict[str, Any] = {}
        for name, drafter, nodes, branching in (
            ("chain of 20", OURS, 20, False),
            ("chain of 20, copies only", COPIES, 20, False),
            ("tree of 32", OURS, 32, True),
            ("tree of 32, copies only", COPIES, 32, True),
            ("SuffixDecoding, tree of 32", "suffix-decoding", 32, True),
            ("prompt lookup, chain of 10", "prompt-lookup", 10, False),
        ):
            row = replay(traces, drafters=[drafter], budget=nodes, branching=branching, costs=())[
                -1
            ]
            found[name] = {
                "step_us_p50": round(row.step_us_p50, 1),
                "step_us_p99": round(row.step_us_p99, 1),
                "build_ms": round(row.build_ms, 1),
                "tokens_per_forward": round(row.tokens_per_forward, 3),
            }
        return found


SECTIONS: tuple[str, ...] = (
    "tokens_per_forward",
    "peers",
    "speed_ups",
    "controls",
    "answer_store",
    "hostile",
    "step_time",
)


def _means(rows: Sequence[ReplayRow]) -> dict[str, Mapping[str, float]]:
    """Return the mean over sets of S(c), by drafter."""
    return {row.drafter: row.s_mean for row in rows if row.set == ALL_SETS and row.s_mean}


def _with_answers(
    earlier: Sequence[TraceTokens], repeats: Sequence[TraceTokens], model: AcceptanceModel
) -> MakeDrafter:
    def make(trace: TraceTokens) -> Drafter:
        return ReferenceDrafter(
            trace.references,
            trace.prompt,
            max_draft_tokens=NODES,
            branching=True,
            banned_tokens=trace.special_tokens,
            acceptance=model,
            earlier=[other.answer for other in earlier],
            repeats=[other.answer for other in repeats],
        )

    return make


def _plain(model: AcceptanceModel, costs: CostCurve) -> MakeDrafter:
    return lambda trace: ReferenceDrafter(
        trace.references,
        trace.prompt,
        max_draft_tokens=NODES,
        branching=True,
        costs=costs,
        acceptance=model,
    )


def main() -> None:
    """Measure some sections and put them into the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with `traces`")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS)
    given = parser.parse_args()
    file = RESULTS / "drafting.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    figures = Figures(given.shared)
    for section in given.only:
        measured = getattr(figures, section)()
        found[section] = measured | {"environment": measured_on(("numpy", "tokenizers", PEER))}
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
