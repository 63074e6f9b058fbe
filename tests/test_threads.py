"""Idle threads of OpenMP go where another thread computes, and come back."""

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llma_rag import worker
from llma_rag.engine.cpu.threads import _function
from tests.models import tiny_decoder

TASKS = Path("/proc/self/task")
COUNT = """
import os, torch
from llma_rag.engine.cpu.threads import release_idle_threads
def threads():
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
before = threads()
many = torch.ones(1 << 22)
busy = threads()
release_idle_threads()
idle = threads()
many.exp()
print(busy - before, idle - before, threads() - before)
if os.fork() == 0:
    release_idle_threads()
    print("forked", flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(
    not TASKS.exists() or _function("omp_pause_resource_all") is None,
    reason="needs Linux and OpenMP",
)
def test_helpers_go_and_come_back_and_a_forked_process_does_not_wait_for_them() -> None:
    run = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={**os.environ, "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.splitlines() == ["2 0 2", "forked"], run.stdout


def test_the_caller_lets_go_before_a_request_and_the_worker_when_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(
        worker, "release_idle_threads", lambda: released.put(threading.current_thread().name)
    )
    tiny_decoder("llama-gqa").generate("a b c", max_new_tokens=4)
    found = [released.get(timeout=10)]
    while found[-1] != "llma-rag" or len(found) < 2:
        found.append(released.get(timeout=10))
    assert found[0] == threading.current_thread().name
