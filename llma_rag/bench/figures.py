"""Measure the drafting figures of the documentation; writes one JSON file.

Run `python -m llma_rag.bench.figures --shared ../shared --out FILE [--only SECTION ...]`.
"""

import argparse
import json
import platform
import random
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from llma_rag.acceptance import AcceptanceModel
from llma_rag.bench.forced import ForcedRun, MakeDrafter, force
from llma_rag.bench.replay import OURS, replay, tokenised
from llma_rag.bench.summary import ALL_SETS, ReplayRow, interval, speed_up
from llma_rag.bench.traces import TraceTokens
from llma_rag.costs import CostCurve
from llma_rag.drafting import Drafter, ReferenceDrafter

COSTS = (0.005, 0.02, 0.05, 0.15)
DEV = ("llma_rag", "pld_hagrid", "pld_cnndm", "aragog", "summedits")
TEST = ("specbench_rag", "specbench_summarization")
CONTROLS = ("specbench_qa", "specbench_translation", "specbench_math_reasoning")
ROWS = 100
NODES = 64

PEERS = [
    *(
        f"suffix-decoding:draft_length={length},factor={factor},offset={offset},"
        f"min_probability={least}"
        for length, factor, offset, least in product(
            (8, 16, 32, 64), (1, 2, 4), (-1, 0, 1), (0.1, 0.3, 0.5)
        )
    ),
    *(
        f"prompt-lookup:match_length={match},draft_length={length}"
        for match, length in product((1, 2, 3), (1, 2, 3, 5, 8, 10, 16, 20))
    ),
    *(
        f"llma:min_match_length={match},draft_length={length}"
        for match, length in product((1, 2, 3, 4), (1, 2, 3, 5, 8, 12, 20))
    ),
]
"""The grid on which the peers are tuned, for every cost apart."""


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
        rows = [
            *replay(traces, drafters=[OURS], budget=20, costs=()),
            *(
                row
                for nodes in (16, 32, 64)
                for row in replay(traces, drafters=[OURS], budget=nodes, branching=True, costs=())
            ),
        ]
        return {
            f"{row.nodes} nodes" if row.nodes != 20 else "chain of 20": {
                "tokens_per_forward": round(row.tokens_per_forward, 3),
                "interval": [round(end, 3) for end in row.tokens_per_forward_interval],
            }
            for row in rows
        }

    def speed_ups(self) -> dict[str, Any]:
        """S(c) of ours and of every peer tuned per cost, and the same settings on other sets."""
        dev, test = self.traces("dev", DEV), self.traces("public_test", TEST)
        ours = _means(replay(dev, drafters=[OURS], budget=NODES, branching=True, costs=COSTS))
        peers = _means(replay(dev, drafters=PEERS, budget=NODES, costs=COSTS))
        ours_test = _means(replay(test, drafters=[OURS], budget=NODES, branching=True, costs=COSTS))
        found: dict[str, Any] = {}
        for cost in map(str, COSTS):
            best = {
                family: max(
                    (name for name in peers if name.startswith(family)),
                    key=lambda name: peers[name][cost],
                )
                for family in dict.fromkeys(name.partition(":")[0] for name in PEERS)
            }
            tested = _means(
                replay(test, drafters=list(best.values()), budget=NODES, costs=[float(cost)])
            )
            found[cost] = {
                "ours": round(ours[OURS][cost], 3),
                "peers": {best[family]: round(peers[best[family]][cost], 3) for family in best},
                "gain": round(
                    ours[OURS][cost] / max(peers[name][cost] for name in best.values()) - 1, 4
                ),
                "test_ours": round(ours_test[OURS][cost], 3),
                "test_peers": {name: round(tested[name][cost], 3) for name in best.values()},
            }
        return found

    def controls(self) -> dict[str, Any]:
        """S(c) where there is little to copy, and the least S(c) over all sets."""
        traces = self.traces("public_test", CONTROLS) + self.traces("dev", DEV)
        rows = replay(traces, drafters=[OURS], budget=NODES, branching=True, costs=COSTS)
        return {row.set: {key: round(value, 3) for key, value in row.s.items()} for row in rows}

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
            for trace in self.traces("dev", ["pld_cnndm"])[:10]
        ]
        found: dict[str, Any] = {}
        for name, settings in {
            "ours, chain of 20": {"drafters": [OURS], "budget": 20},
            "ours, tree of 32": {"drafters": [OURS], "budget": 32, "branching": True},
            "suffix-decoding, tree": {"drafters": ["suffix-decoding"], "budget": 32},
            "prompt-lookup": {"drafters": ["prompt-lookup"], "budget": 10},
        }.items():
            row = replay(traces, costs=(), **settings)[-1]  # type: ignore[arg-type]
            found[name] = {
                "step_us_p50": round(row.step_us_p50, 1),
                "step_us_p99": round(row.step_us_p99, 1),
                "build_ms": round(row.build_ms, 1),
            }
        return found


SECTIONS: tuple[str, ...] = (
    "tokens_per_forward",
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


def _bait(length: int) -> Callable[[Sequence[int], random.Random], list[int]]:
    """Return a maker of texts in which n-grams of the answer go on with other tokens."""

    def make(answer: Sequence[int], chance: random.Random) -> list[int]:
        made: list[int] = []
        for place in range(len(answer) - length):
            made += answer[place : place + length]
            made += [chance.randrange(3, 32_000) for _ in range(8)]
        return made

    return make


def _shuffled(answer: Sequence[int], chance: random.Random) -> list[int]:
    return chance.sample(list(answer) * 5, 5 * len(answer))


def _repeated(answer: Sequence[int], chance: random.Random) -> list[int]:
    return [chance.choice(answer)] * 2_000


def _unrelated(answer: Sequence[int], chance: random.Random) -> list[int]:
    return [chance.randrange(3, 32_000) for _ in range(1_000)]


HOSTILE = (_bait(1), _bait(2), _bait(3), _bait(5), _shuffled, _repeated, _unrelated)


def _environment() -> dict[str, str]:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit,
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        **{name: installed(name) for name in ("numpy", "tokenizers", "arctic-inference")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure some sections and put them into the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with `traces`")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write or update")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS)
    given = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    figures = Figures(given.shared)
    for section in given.only:
        found[section] = getattr(figures, section)()
        found[section]["environment"] = _environment()
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
