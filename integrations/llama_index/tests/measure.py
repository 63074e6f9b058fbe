"""Print as JSON the figures that `docs/llama_index.md` gives for capture and service.

`python -m integrations.llama_index.tests.measure [--service]`; the second part needs the bundled
model and a machine with nothing else to do.
"""

import asyncio
import contextlib
import json
import logging
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import NullSpanHandler

import llma_rag
from integrations.llama_index.tests import leaks, matrix, matrix_chats, matrix_engines, probes
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


def measure_cost(rounds: int = 300, queries: int = 10) -> dict[str, Any]:
    """CPU time that this package adds to a query of three nodes, in microseconds.

    Blocks of queries with and without the handler and the model call's lookup take turns, so that
    caches are as cold as in a program; the difference of two neighbours is one sample. Samples of a
    handler that does nothing (what LlamaIndex itself spends to call one) are taken beside them.
    """
    llm, tag, root = ProbeLLM(), leaks.TAGS[0], get_dispatcher()
    engine, question = leaks.engine(llm, tag), leaks.question(tag)
    others = [each for each in root.span_handlers if each is not handler._handler]
    look_up = probes.find_references

    def block(*handlers: Any) -> float:
        root.span_handlers[:] = [*others, *handlers]
        probes.find_references = look_up if handler._handler in handlers else _find_nothing
        started = time.thread_time_ns()
        for _ in range(queries):
            engine.query(question)
        spent = time.thread_time_ns() - started
        llm.calls.clear()
        return spent / queries / 1000

    for _ in range(20):
        block(handler._handler)
    added: list[float] = []
    called: list[float] = []
    without: list[float] = []
    try:
        for _ in range(rounds):
            without.append(block())
            added.append(block(handler._handler) - without[-1])
            called.append(block(NullSpanHandler()) - without[-1])
    finally:
        root.span_handlers[:] = [*others, handler._handler]
        probes.find_references = look_up
    return {
        "us_per_query": round(statistics.median(without)),
        "added_us_per_query": round(statistics.median(added)),
        "quartiles_of_added_us": [round(cut) for cut in statistics.quantiles(added, n=4)],
        "added_us_by_an_empty_handler": round(statistics.median(called)),
    }


def _find_nothing(*args: Any, **kwargs: Any) -> capture.Found:
    return capture.NOTHING


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
    with contextlib.redirect_stdout(sys.stderr):  # some engines of the framework print
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
