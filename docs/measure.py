"""Measure what the documents tell: the demo's answers, and recorded answers replayed.

Writes `docs/results/demo.json` and, where `--traces` exists, `docs/results/replay.json`; then run
`make docs`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from results import RESULTS, write

from llma_rag.bench.replay import DRAFTERS, replay, tokenised
from llma_rag.demo.running import Demo


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="recorded answers")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of their tokenizer")
    arguments = parser.parse_args()
    write("demo", [asdict(row) for row in Demo().rows()])
    if not arguments.traces.exists():
        sys.stderr.write("No recorded answers there: replay.json stays as it is.\n")
        return
    written = json.loads((RESULTS / "replay.json").read_text())["rows"]
    if missing := {row["drafter"] for row in written} - DRAFTERS.keys():
        sys.exit(f"replay.json stays as it is: {', '.join(missing)} would be left out of it here.")
    traces = tokenised([arguments.traces], tokenizer=arguments.tokenizer)
    write("replay", [row.to_json() for row in replay(traces, drafters=list(DRAFTERS), budget=20)])


def write_parts(
    document: str | None,
    prefix: str,
    parts: dict[str, Callable[[list[str]], list[dict[str, Any]]]],
    packages: Sequence[str],
) -> None:
    """Measure the parts named on the command line, under this and further interpreters."""
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--python", action="append", default=[], help="a further interpreter")
    arguments = parser.parse_args()
    for part in arguments.parts:
        rows = parts[part]([sys.executable, *arguments.python])
        write(f"{prefix}-{part}", rows, packages=packages)


if __name__ == "__main__":
    main()
