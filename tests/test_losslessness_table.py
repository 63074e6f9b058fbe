"""The page docs/losslessness.md says what these tests find, and every row of it is a test.

`LLMA_RAG_WRITE=1` writes docs/results/losslessness.json from this run; `make docs` then writes the
table. Without it, this run must find what is written there.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.losslessness_table import rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "losslessness.json"
ROWS = {f"T{number:02}" for number in range(1, 41)}
ELSEWHERE = {"T37"}
"""Capturing retrieved chunks belongs to the integrations and is tested there."""


@pytest.mark.slow
def test_the_table_says_what_this_run_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(rows())
    for row in found:
        equal = re.fullmatch(r"(\d+)/(\d+) equal", row["ours"])
        assert row["row"] in {"T15", "T31"} or (equal and equal[1] == equal[2]), row
    if os.environ.get("LLMA_RAG_WRITE"):
        monkeypatch.syspath_prepend(str(ROOT / "docs"))
        sys.modules.pop("results", None)
        from results import write

        write("losslessness", found)
    written = json.loads(RESULTS.read_text())["rows"]
    assert [(row["row"], row["what"], row["ours"]) for row in written] == [
        (row["row"], row["what"], row["ours"]) for row in found
    ]


def test_every_row_is_a_test_here_or_elsewhere() -> None:
    texts = [path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py"))]
    tested = {
        row for text in texts for row in re.findall(r"^(?:async )?def test_(T\d\d)_", text, re.M)
    }
    assert tested | set(ELSEWHERE) == ROWS
    assert not tested & set(ELSEWHERE)
