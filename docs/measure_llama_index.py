"""Measure what `docs/llama_index.md` tells; then run `make docs`.

`python docs/measure_llama_index.py PART...` from the root, where a part is one of

- `defects`: fifteen things asked of HuggingFaceLLM and of LLMA;
- `capture`: the capture matrix, the isolation tests and the cost of capture, also under the
  interpreters of further environments that `--python` names;
- `service`: ticks of an event loop during an answer of the bundled model.

The last two want a machine, or a core, with nothing else to do.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import write_parts

ROOT = Path(__file__).parents[1]
TESTS = "integrations.llama_index.tests"
PACKAGES = ("llama-index-core", "llama-index-workflows", "llama-index-llms-huggingface")


def main() -> None:
    """Measure and write."""
    write_parts(__doc__, "llama-index", PARTS, PACKAGES)


def defects(pythons: list[str]) -> list[dict[str, Any]]:
    """Return one row for each probe, with what it saw of each class."""
    rows: list[dict[str, Any]] = _printed(pythons[0], f"{TESTS}.defects")
    return rows


def capture(pythons: list[str]) -> list[dict[str, Any]]:
    """Return matrix, isolation and cost for each interpreter's version of core."""
    return [_printed(python, f"{TESTS}.measure") for python in pythons]


def service(pythons: list[str]) -> list[dict[str, Any]]:
    """Return the ticks of an event loop."""
    return [_printed(pythons[0], f"{TESTS}.measure", "--service")]


PARTS: dict[str, Callable[[list[str]], list[dict[str, Any]]]] = {
    "defects": defects,
    "capture": capture,
    "service": service,
}


def _printed(python: str, module: str, *arguments: str) -> Any:
    """Run a module from the root with this tree's packages; return the JSON it printed."""
    paths = [str(ROOT), str(ROOT / "integrations" / "llama_index"), os.getenv("PYTHONPATH", "")]
    done = subprocess.run(
        [python, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
