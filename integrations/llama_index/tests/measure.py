"""Print as JSON the figures that `docs/llama_index.md` gives for capture and service.

`python -m integrations.llama_index.tests.measure [--service]`; the second part needs the bundled
model and a machine with nothing else to do.
"""

import asyncio
import json
import logging
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import llma_rag
from integrations.llama_index.tests import leaks, matrix, matrix_chats, matrix_engines
from integrations.llama_index.tests.probes import ProbeLLM
from llama_index.llms.llma import LLMA, capture, handler

assert matrix_chats
assert matrix_engines

BUNDLED = Path(llma_rag.__file__).parent / "demo" / "model"
TICK = 0.01


def measure_matrix() -> dict[str, Any]:
    outcomes = [matrix.run_row(row) for row in matrix.ROWS.values()]
    reaches: dict[str, int] = {}
    for outcome in outcomes:
        for reach in outcome.reaches:
            reaches[reach] = reaches.get(reach, 0) + 1
    return {
        "rows": len(outcomes),
        "calls": sum(outcome.calls for outcome in outcomes),
        "calls_with_all_nodes": sum(outcome.complete for outcome in outcomes),
        "rows_by_reach": reaches,
    }


def measure_leaks() -> dict[str, int]:
    counts = [count for program in leaks.PROGRAMS for count in leaks.run_program(program)]
    return {
        "tests": len(counts),
        "calls": sum(count.calls for count in counts),
        "leaks": sum(count.leaks for count in counts),
        "misses": sum(count.misses for count in counts),
        "spans_left_open": len(handler.tree),
    }


def measure_cost(queries: int = 400) -> dict[str, float]:
    """CPU time of this package's part of a query, in microseconds, without that of the clock."""
    spent = {"handler": 0, "lookup": 0, "handler_calls": 0, "lookups": 0}
    cls = handler.CaptureSpanHandler
    methods = {name: getattr(cls, name) for name in ("span_enter", "span_exit", "span_drop")}

    def timed(kind: str, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                spent[kind] += time.thread_time_ns() - started
                spent[f"{kind}_calls" if kind == "handler" else "lookups"] += 1

        return wrapper

    llm, tag = ProbeLLM(), leaks.TAGS[0]
    engine = leaks.engine(llm, tag)
    find = capture.find_references
    for _ in range(50):
        engine.query(leaks.question(tag))
    for name, method in methods.items():
        setattr(cls, name, timed("handler", method))
    llm_module = sys.modules[ProbeLLM.__module__]
    llm_module.find_references = timed("lookup", find)  # type: ignore[attr-defined]
    try:
        for _ in range(queries):
            engine.query(leaks.question(tag))
    finally:
        for name, method in methods.items():
            setattr(cls, name, method)
        llm_module.find_references = find  # type: ignore[attr-defined]
    calls, lookups = spent["handler_calls"], spent["lookups"]
    handler_ns, lookup_ns = spent["handler"], spent["lookup"]
    nothing = timed("handler", lambda: None)
    spent["handler"] = 0
    for _ in range(10_000):
        nothing()
    clock = spent["handler"] / 10_000
    return {
        "handler_calls_per_query": calls / queries,
        "handler_us_per_query": round((handler_ns - clock * calls) / queries / 1000, 1),
        "lookup_us_per_call": round((lookup_ns - clock * lookups) / lookups / 1000, 1),
        "clock_us_per_call": round(clock / 1000, 2),
    }


async def measure_ticks() -> dict[str, float]:
    """Ticks of the event loop during one answer, against those of an idle loop of that length."""
    llm = LLMA(model_name=str(BUNDLED), model_kwargs={"dtype": "float32"})
    prompt = "The ferry leaves at nine. " * 20
    await llm.acomplete(prompt, max_new_tokens=8)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(TICK)
            ticks += 1

    task = asyncio.create_task(tick())
    await asyncio.sleep(0)
    started = time.perf_counter()
    await llm.acomplete(prompt, max_new_tokens=200, min_new_tokens=200, draft=False)
    elapsed, busy = time.perf_counter() - started, ticks
    ticks = 0
    await asyncio.sleep(elapsed)
    idle = ticks
    task.cancel()
    return {"ticks": busy, "ticks_of_an_idle_loop": idle, "seconds": round(elapsed, 2)}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    names = ("llama-index-core", "llama-index-workflows")
    report: dict[str, Any] = {name: version(name) for name in names}
    if "--service" in sys.argv:
        torch.set_num_threads(1)
        report["event_loop"] = asyncio.run(measure_ticks())
    else:
        report["matrix"] = measure_matrix()
        report["isolation"] = measure_leaks()
        report["cost"] = measure_cost()
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
