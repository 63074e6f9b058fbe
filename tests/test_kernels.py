"""The Triton kernel passes in Triton's interpreter on the CPU; its speed is not tested here."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).parent / "interpreted"


@pytest.mark.skipif(find_spec("triton") is None, reason="triton has no wheel for this system")
@pytest.mark.parametrize("file", ["kernels.py", "captured.py", "fused.py"])
def test_the_kernel_passes_in_the_interpreter(file: str) -> None:
    """In a process of its own: the interpreter is chosen before Triton is first imported."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-n0",
            str(INTERPRETED / file),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
