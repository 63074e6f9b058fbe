"""Write what was measured into `docs/results`, with the machine, the versions and the commit."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import llma_rag
from llma_rag.engine.machine import processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers")


def write(
    name: str, rows: list[dict[str, Any]], packages: Sequence[str] = (), commit: str | None = None
) -> None:
    """Write rows and what they were measured on.

    Args:
        name: Of the file, without its ending.
        rows: What was measured.
        packages: Further packages whose versions count.
        commit: Where there is no repository to ask.
    """
    measured = {**measured_on(packages, commit), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(measured, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def measured_on(packages: Sequence[str] = (), commit: str | None = None) -> dict[str, Any]:
    """Return what something is measured on: machine, date, commit and versions."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
        "commit": commit or _commit(),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
            "llma-rag": llma_rag.__version__,
            **{package: _version(package) for package in packages},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
