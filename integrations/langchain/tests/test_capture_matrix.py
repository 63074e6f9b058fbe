"""Every row of the capture matrix: exactly the documents that belong to each model call."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from integrations.langchain.tests.matrix import Row, all_rows, judge

ROOT = Path(__file__).parents[3]
ROWS = all_rows()


def _captured(row: Row) -> bool:
    return not row.hook and not row.never


@pytest.mark.filterwarnings("ignore:The apply_and_parse method is deprecated:UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row) -> None:
    if row.missing:
        pytest.skip(f"needs {', '.join(row.missing)}, which is not installed")
    outcome = judge(row)
    assert outcome.error is None
    assert outcome.right is _captured(row), outcome
    if not _captured(row):
        strange = [marks for marks in outcome.got if marks and marks not in outcome.expected]
        assert not strange, "a row that is said to miss documents gave others"


def test_enough_rows_are_captured_without_any_change() -> None:
    assert len(ROWS) == 98
    assert sum(map(_captured, ROWS)) == 92


@pytest.mark.slow
def test_the_store_hook_captures_all_but_two_rows() -> None:
    """In a process of its own: the hook stays for the life of a process."""
    command = [sys.executable, "-m", "integrations.langchain.tests.matrix", "--json"]
    printed = subprocess.run(
        [*command, "--with-store-hook"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        check=True,
        text=True,
    )
    wrong = [outcome["name"] for outcome in json.loads(printed.stdout) if not outcome["right"]]
    assert wrong == [row.name for row in ROWS if row.never]
