"""Write the tables of README and docs again from the JSON in `docs/results`.

A place is marked `<!-- NAME of FILE.json -->` ... `<!-- end -->`; what stands between is generated.
With `--check` nothing is written, and the exit code is 1 if a document is out of date.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PLACE = re.compile(
    r"(?P<open><!-- (?P<name>[\w-]+) of (?P<file>[\w-]+\.json) -->\n).*?(?P<close><!-- end -->)",
    re.DOTALL,
)


def main() -> None:
    """Write, or check with `--check`."""
    stale = [document for document in documents() if filled(document) != document.read_text()]
    if "--check" in sys.argv[1:]:
        for document in stale:
            sys.stderr.write(f"{document.relative_to(ROOT)} is out of date; run `make docs`.\n")
        sys.exit(bool(stale))
    for document in stale:
        document.write_text(filled(document))


def documents() -> list[Path]:
    """Return the Markdown files that may hold tables."""
    folders = (ROOT / "docs", *sorted((ROOT / "integrations").iterdir()))
    return [ROOT / "README.md", *(file for each in folders for file in sorted(each.glob("*.md")))]


def filled(document: Path) -> str:
    """Return a document's text with its tables made from the results that are there."""

    def make(place: re.Match[str]) -> str:
        results = RESULTS / place["file"]
        measured = json.loads(results.read_text()) if results.exists() else None
        if measured is None or not measured.keys() >= set(NEEDS.get(place["name"], ())):
            body = "*Not measured yet.*\n"
        else:
            body = TABLES[place["name"]](measured)
        return place["open"] + body + place["close"]

    return PLACE.sub(make, document.read_text())


def demo_table(measured: dict[str, Any]) -> str:
    """Return tokens, passes and times of the demo, one line per framework."""
    rows = measured["rows"]
    lines = []
    for framework in dict.fromkeys(row["framework"] for row in rows):
        own = [row for row in rows if row["framework"] == framework]
        total = {name: sum(row[name] for row in own) for name in _SUMMED}
        lines.append(
            [
                framework,
                str(len(own)),
                str(total["tokens"]),
                str(total["forwards"]),
                f"{total['tokens'] / total['forwards']:.2f}",
                *(f"{total[name]:.2f} s" for name in _SECONDS),
                f"{sum(row['identical'] for row in own)} of {len(own)}",
            ]
        )
    heads = "framework|answers|tokens|forward passes|tokens per forward|with drafts|without"
    return _table([*heads.split("|"), "`generate`", "identical"], lines) + _origin(measured)


def replay_table(measured: dict[str, Any]) -> str:
    """Return what each drafter reaches on recorded answers."""
    lines = [
        [
            row["set"],
            row["drafter"],
            str(row["rows"]),
            str(row["tokens"]),
            str(row["forwards"]),
            f"{row['tokens_per_forward']:.2f}",
        ]
        for row in measured["rows"]
    ]
    heads = ["set", "drafter", "answers", "tokens", "forward passes", "tokens per forward"]
    return _table(heads, lines) + _origin(measured)


def demo_answer(measured: dict[str, Any]) -> str:
    """Return the demo's first answer with its sources and its cost."""
    row = measured["rows"][0]
    return (
        "```text\n"
        f"{row['question']}\n"
        f"{row['answer']}\n"
        f"sources: {', '.join(row['sources'])}\n"
        f"{row['tokens']} tokens, {row['forwards']} forward passes, "
        f"{row['tokens_per_forward']:.2f} tokens per forward; "
        f"identical: {'yes' if row['identical'] else 'no'}\n"
        "```\n"
    )


def langchain_probes(measured: dict[str, Any]) -> str:
    """Return what each class does when it is asked the same thing."""
    classes = [name for name in measured["rows"][0] if name != "what"]
    lines = [[row["what"], *(row[name] for name in classes)] for row in measured["rows"]]
    return _table(["", *classes], lines) + _origin(measured)


def langchain_standard(measured: dict[str, Any]) -> str:
    """Return the counts of LangChain's standard tests."""
    names = ("passed", "failed", "expected_failures", "skipped")
    lines = [[row["class"], *(str(row[name]) for name in names)] for row in measured["rows"]]
    return _table(["", *(name.replace("_", " ") for name in names)], lines) + _origin(measured)


def langchain_capture(measured: dict[str, Any]) -> str:
    """Return what is captured under each version of langchain-core."""
    lines = [
        [
            row["langchain-core"],
            str(row["rows"]),
            str(row["captured"]),
            str(row["captured_with_the_store_hook"]),
            f"{row['isolation_tests_passed']}, {row['isolation_tests_failed']}",
        ]
        for row in measured["rows"]
    ]
    heads = "langchain-core|ways|captured|with the store hook|isolation tests passed, failed"
    return _table(heads.split("|"), lines) + _origin(measured)


def langchain_cost(measured: dict[str, Any]) -> str:
    """Return what capture costs a chain."""
    names = ("without_ms", "with_ms", "cost_ms")
    lines = [[row["chain"], *(f"{row[name]:.2f} ms" for name in names)] for row in measured["rows"]]
    return _table(["chain of eight runnables", "without", "with", "cost"], lines) + _origin(
        measured
    )


def losslessness_table(measured: dict[str, Any]) -> str:
    """Return in which settings drafting changes no token, ours and transformers' prompt lookup."""
    ordered = sorted(measured["rows"], key=lambda row: str(row["row"]))
    lines = [[row[name] for name in ("row", "what", "ours", "peer")] for row in ordered]
    return _table(["row", "setting", "ours", "prompt lookup"], lines) + _origin(measured)


def bf16_table(measured: dict[str, Any]) -> str:
    """Return how often drafts change a sequence, by dtype and way to draft."""
    lines = [
        [
            row["dtype"],
            row["way"],
            f"{row['changed']} of {row['sequences']}",
            f"{row['tokens'] / row['forward_passes']:.2f}",
            f"{1000 * row['changed'] / row['tokens_before_a_change']:.1f}",
        ]
        for row in measured["rows"]
    ]
    heads = ["dtype", "drafts copy", "sequences changed", "tokens per forward"]
    return _table([*heads, "changes per 1,000 tokens"], lines) + _origin(measured)


def drafting_nodes(measured: dict[str, Any]) -> str:
    """Return tokens per forward pass by node budget."""
    found, origin = _section(measured, "tokens_per_forward")
    ours = list(next(iter(found.values())))
    lines = [
        [budget, *(_with_interval(row[name]) for name in ours)] for budget, row in found.items()
    ]
    return _table(["draft", *(f"`{name}`" for name in ours)], lines) + origin


def drafting_speed(measured: dict[str, Any]) -> str:
    """Return S(c) of ours and of the peers, tuned, and of the same settings on other sets."""
    ours, origin = _section(measured, "speed_ups")
    peers, _ = _section(measured, "peers")
    lines = []
    for cost, found in peers.items():
        rows = {**{f"**{name}**": row for name, row in ours[cost].items()}, **found}
        best = {part: max(row[part] for row in found.values()) for part in ("dev", "test")}
        lines += [
            [
                cost,
                name.replace(":", ": ").replace(",", ", "),
                *(f"{row[part]:.3f} ({row[part] / best[part] - 1:+.1%})" for part in best),
            ]
            for name, row in rows.items()
        ]
    heads = ["c", "drafter", "S(c), tuned sets", "S(c), test sets"]
    return _table(heads, lines) + origin


def drafting_sets(measured: dict[str, Any]) -> str:
    """Return S(c) of ours on every set, the controls included."""
    found, origin = _section(measured, "speed_ups")
    controls, _ = _section(measured, "controls")
    rows = {**found["sets"], **{name: row["llma-rag"] for name, row in controls.items()}}
    costs = list(next(iter(rows.values())))
    lines = [[name, *(f"{row[cost]:.3f}" for cost in costs)] for name, row in rows.items()]
    return _table(["set", *(f"S({cost})" for cost in costs)], lines) + origin


def drafting_answers(measured: dict[str, Any]) -> str:
    """Return tokens per forward pass with earlier answers."""
    found, origin = _section(measured, "answer_store")
    lines = [[name, str(row["answers"]), _with_interval(row)] for name, row in found.items()]
    return _table(["earlier answers", "answers", "tokens per forward"], lines) + origin


def drafting_time(measured: dict[str, Any]) -> str:
    """Return the time of a drafting step with 64k tokens of context."""
    found, origin = _section(measured, "step_time")
    lines = [
        [name, *(f"{row[key]:.0f}" for key in ("step_us_p50", "step_us_p99", "build_ms"))]
        for name, row in found.items()
    ]
    return _table(["drafter", "step p50, us", "step p99, us", "build, ms"], lines) + origin


def drafting_hostile(measured: dict[str, Any]) -> str:
    """Return what misleading references cost."""
    found, origin = _section(measured, "hostile")
    lines = [[name.replace("_", " "), str(value)] for name, value in found.items()]
    return _table(["hostile references, c = 0.05", ""], lines) + origin


def engine_table(measured: dict[str, Any]) -> str:
    """Return times of every arm, after the first token, with ratios to two of them."""
    lines = [
        [
            row["shape"],
            row["dtype"],
            row["work"],
            row["arm"],
            f"{row['tpot_ms']:.1f}",
            f"{row['ttft_ms']:.0f}",
            f"{row['tokens_per_forward']:.2f}",
            *(_interval(row["tpot_ratio"].get(other)) for other in ("hf-greedy", "plain")),
        ]
        for row in measured["rows"]
    ]
    heads = "shape|dtype|work|arm|ms per token|ms to first|tokens per forward|`generate`|plain"
    return _table([*heads.split("|")], lines) + _engine_notes(measured)


def engine_summary(measured: dict[str, Any]) -> str:
    """Return how many times quicker than each arm answers with drafts come."""
    others = ("hf-greedy", "hf-prompt-lookup", "plain")
    lines = [
        [
            row["dtype"],
            row["work"],
            f"{row['tokens_per_forward']:.2f}",
            *(_interval(row["tpot_ratio"].get(other)) for other in others),
        ]
        for row in measured["rows"]
        if row["arm"] == "llma"
    ]
    heads = "dtype|answers|tokens per forward|`generate`|its prompt lookup|our plain decoding"
    return _table(heads.split("|"), lines) + _engine_notes(measured)


def _engine_notes(measured: dict[str, Any]) -> str:
    run = measured["rows"][0]["run"]
    return (
        f"\n{run['threads']} threads, at most {run['prompts']} prompts of up to {run['tokens']} "
        "tokens. Times are those after the first token; the last columns say how many times "
        "quicker than these arms (median over prompts, 95 % interval; no interval: one prompt).\n"
        + _origin(measured)
    )


def _interval(ratio: dict[str, Any] | None) -> str:
    if not ratio:
        return ""
    if ratio["low"] == ratio["high"]:
        return f"{ratio['median']:.2f}"
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def llama_index_capture(measured: dict[str, Any]) -> str:
    """Return what is captured under each version of llama-index-core, and what that costs."""
    rows = measured["rows"]
    heads = [
        f"llama-index-core {row['llama-index-core']}, workflows {row['llama-index-workflows']}"
        for row in rows
    ]
    cells: dict[str, Callable[[dict[str, Any]], Any]] = {
        "programs in the matrix": lambda row: row["matrix"]["rows"],
        "model calls": lambda row: row["matrix"]["calls"],
        "of them saw all their nodes": lambda row: row["matrix"]["calls_with_all_nodes"],
        "isolation tests": lambda row: row["isolation"]["tests"],
        "their model calls": lambda row: row["isolation"]["calls"],
        "saw another user's node": lambda row: row["isolation"]["leaks"],
        "missed their own": lambda row: row["isolation"]["misses"],
        "spans left open": lambda row: row["isolation"]["spans_left_open"],
        "CPU time added to a query": lambda row: (
            f"{row['cost']['added_us_per_query'] / 1000:.2f} ms"
        ),
    }
    lines = [[name, *(str(cell(row)) for row in rows)] for name, cell in cells.items()]
    return _table(["", *heads], lines) + _origin(measured)


def llama_index_defects(measured: dict[str, Any]) -> str:
    """Return what fifteen probes see of HuggingFaceLLM and of LLMA."""
    heads = list(measured["rows"][0])
    lines = [[str(row[head]) for head in heads] for row in measured["rows"]]
    return _table(heads, lines) + _origin(measured)


def llama_index_service(measured: dict[str, Any]) -> str:
    """Return the ticks of an event loop during one answer, beside those of an idle loop."""
    loops = [row["event_loop"] for row in measured["rows"]]
    names = ("ticks", "ticks_of_an_idle_loop", "seconds")
    lines = [[str(loop[name]) for name in names] for loop in loops]
    heads = ["ticks during an answer", "ticks of an idle loop", "seconds"]
    return _table(heads, lines) + _origin(measured)


def recycling_table(measured: dict[str, Any]) -> str:
    """Return what recycling yields with the models' own choices, one line per way."""
    lines = [
        [
            row["model"],
            row["drafts"],
            row["way"],
            str(row["tokens"]),
            str(row["forwards"]),
            f"{row['tokens_per_forward']:.2f}",
            f"{row['identical']} of {row['answers']}",
        ]
        for row in measured["rows"]
    ]
    heads = "model|drafts|way|tokens|forward passes|tokens per forward|identical"
    return _table(heads.split("|"), lines) + _origin(measured)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "bf16-table": bf16_table,
    "demo-answer": demo_answer,
    "demo-table": demo_table,
    "langchain-capture": langchain_capture,
    "langchain-cost": langchain_cost,
    "langchain-probes": langchain_probes,
    "langchain-standard": langchain_standard,
    "losslessness-table": losslessness_table,
    "drafting-answers": drafting_answers,
    "drafting-hostile": drafting_hostile,
    "drafting-nodes": drafting_nodes,
    "drafting-sets": drafting_sets,
    "drafting-speed": drafting_speed,
    "drafting-time": drafting_time,
    "engine-summary": engine_summary,
    "engine-table": engine_table,
    "llama-index-capture": llama_index_capture,
    "llama-index-defects": llama_index_defects,
    "llama-index-service": llama_index_service,
    "recycling-table": recycling_table,
    "replay-table": replay_table,
}
NEEDS: dict[str, tuple[str, ...]] = {
    "drafting-answers": ("answer_store",),
    "drafting-hostile": ("hostile",),
    "drafting-nodes": ("tokens_per_forward",),
    "drafting-sets": ("speed_ups", "controls"),
    "drafting-speed": ("speed_ups", "peers"),
    "drafting-time": ("step_time",),
}
"""Sections of a file that a table is made of; each is measured on its own."""
_SECONDS = ("seconds", "seconds_plain", "seconds_generate")
_SUMMED = ("tokens", "forwards", *_SECONDS)


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rules = ["---"] * len(heads)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rules, *lines))


def _with_interval(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['tokens_per_forward']:.2f} ({low:.2f}-{high:.2f})"


def _section(measured: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the rows of a section that was measured on its own, and what it was measured on."""
    found = dict(measured[name])
    return found, _origin(found.pop("environment"))


def _origin(measured: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in measured["versions"].items())
    return (
        f"\n{measured['machine']}; {versions}; commit {measured['commit']}, {measured['date']}.\n"
    )


if __name__ == "__main__":
    main()
