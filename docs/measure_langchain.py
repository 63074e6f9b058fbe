"""Measure what `docs/langchain.md` tells; then run `make docs`.

`python docs/measure_langchain.py PART...` from the root, where a part is one of

- `probes`: eight things asked of langchain-huggingface's classes and of ours, about three minutes;
- `standard`: LangChain's standard tests of chat models, on ChatHuggingFace and on ChatLLMA;
- `capture`: the capture matrix and the isolation tests, also under the interpreters of further
  environments that `--python` names;
- `cost`: what capture costs a chain, on a machine with nothing else to do.
"""

import json
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from measure import write_parts

ROOT = Path(__file__).parents[1]
TESTS = Path("integrations/langchain/tests")
LANGCHAIN = ("langchain-core", "langchain-huggingface", "langchain-tests")
STANDARD = {
    "ChatHuggingFace over a local pipeline": "standard_huggingface.py",
    "ChatLLMA": "test_standard.py",
}


def main() -> None:
    """Measure and write."""
    write_parts(__doc__, "langchain", PARTS, LANGCHAIN)


def probes(pythons: list[str]) -> list[dict[str, Any]]:
    """Return one row for each thing that is asked, with the answer of each class."""
    table = _printed(pythons[0], "-m", "integrations.langchain.tests.probe_classes", "--json")
    return [{"what": what, **answers} for what, answers in table.items()]


def standard(pythons: list[str]) -> list[dict[str, Any]]:
    """Return how many of the standard tests each class passes."""
    return [
        {"class": name, **_outcomes(pythons[0], TESTS / file, "-k", "TestChat")}
        for name, file in STANDARD.items()
    ]


def capture(pythons: list[str]) -> list[dict[str, Any]]:
    """Return, for each interpreter's version of core, the rows captured and the tests passed."""
    rows = []
    for python in pythons:
        matrix = ("-m", "integrations.langchain.tests.matrix", "--json")
        plain = _printed(python, *matrix)
        hooked = _printed(python, *matrix, "--with-store-hook")
        asked = "import importlib.metadata as m; print(repr(m.version('langchain-core')))"
        isolation = _outcomes(python, TESTS / "test_isolation.py")
        rows.append(
            {
                "langchain-core": _run(python, "-c", asked).strip().strip("'"),
                "rows": len(plain),
                "captured": sum(outcome["right"] for outcome in plain),
                "captured_with_the_store_hook": sum(outcome["right"] for outcome in hooked),
                "isolation_tests_passed": isolation["passed"],
                "isolation_tests_failed": isolation["failed"],
            }
        )
    return sorted(rows, key=lambda row: tuple(map(int, row["langchain-core"].split("."))))


def cost(pythons: list[str]) -> list[dict[str, Any]]:
    """Return milliseconds of CPU time per chain, with and without capture."""
    table = _printed(pythons[0], "-m", "integrations.langchain.tests.measure_cost", "--json")
    return [{"chain": chain, **figures} for chain, figures in table.items()]


PARTS: dict[str, Callable[[list[str]], list[dict[str, Any]]]] = {
    "probes": probes,
    "standard": standard,
    "capture": capture,
    "cost": cost,
}


def _printed(python: str, *arguments: str) -> Any:
    return json.loads(_run(python, *arguments))


def _outcomes(python: str, file: Path, *arguments: str) -> dict[str, int]:
    """Run tests and count them; a test that fails in its preparation has failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = ("-m", "pytest", str(file), "-p", "no:cacheprovider", f"--junitxml={report}")
        _run(python, *tests, *arguments, check=False)
        counted = Counter(map(_outcome, ElementTree.parse(report).iter("testcase")))
    return {name: counted[name] for name in ("passed", "failed", "expected_failures", "skipped")}


def _outcome(case: ElementTree.Element) -> str:
    skipped = case.find("skipped")
    if skipped is not None:
        return "expected_failures" if skipped.get("type") == "pytest.xfail" else "skipped"
    broken = case.find("failure") is not None or case.find("error") is not None
    return "failed" if broken else "passed"


def _run(python: str, *arguments: str, check: bool = True) -> str:
    """Run Python from the root with this tree's packages; return what it printed."""
    paths = [str(ROOT), str(ROOT / "integrations" / "langchain"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        text=True,
        check=check,
    )
    return done.stdout


if __name__ == "__main__":
    main()
