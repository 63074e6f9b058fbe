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

from cells import origin, table
from decoding_tables import (
    bf16_table,
    bitwise_trees,
    drafting_answers,
    drafting_hostile,
    drafting_nodes,
    drafting_sets,
    drafting_speed,
    drafting_time,
    engine_first_token,
    engine_gpu,
    engine_steps,
    engine_summary,
    engine_table,
    losslessness_table,
    recycling_table,
)
from integration_tables import (
    langchain_capture,
    langchain_cost,
    langchain_probes,
    langchain_standard,
    llama_index_capture,
    llama_index_defects,
    llama_index_service,
)

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
    return table([*heads.split("|"), "`generate`", "identical"], lines) + origin(measured)


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
    return table(heads, lines) + origin(measured)


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


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "bf16-table": bf16_table,
    "bitwise-trees": bitwise_trees,
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
    "engine-first-token": engine_first_token,
    "engine-gpu": engine_gpu,
    "engine-steps": engine_steps,
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


if __name__ == "__main__":
    main()
