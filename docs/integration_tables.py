"""Tables of what was measured in LangChain and LlamaIndex."""

from collections.abc import Callable
from typing import Any

from cells import origin, table


def langchain_probes(measured: dict[str, Any]) -> str:
    """Return what each class does when it is asked the same thing."""
    classes = [name for name in measured["rows"][0] if name != "what"]
    lines = [[row["what"], *(row[name] for name in classes)] for row in measured["rows"]]
    return table(["", *classes], lines) + origin(measured)


def langchain_standard(measured: dict[str, Any]) -> str:
    """Return the counts of LangChain's standard tests."""
    names = ("passed", "failed", "expected_failures", "skipped")
    lines = [[row["class"], *(str(row[name]) for name in names)] for row in measured["rows"]]
    return table(["", *(name.replace("_", " ") for name in names)], lines) + origin(measured)


def langchain_capture(measured: dict[str, Any]) -> str:
    """Return what is captured under each version of langchain-core."""
    lines = [
        [
            row["langchain-core"],
            str(row["rows"]),
            str(row["captured"]),
            str(row["captured_with_the_store_hook"]),
            f"{row['isolation_tests_passed']}, {row['isolation_tests_failed']}",
        ]
        for row in measured["rows"]
    ]
    heads = "langchain-core|ways|captured|with the store hook|isolation tests passed, failed"
    return table(heads.split("|"), lines) + origin(measured)


def langchain_cost(measured: dict[str, Any]) -> str:
    """Return what capture costs a chain."""
    names = ("without_ms", "with_ms", "cost_ms")
    lines = [[row["chain"], *(f"{row[name]:.2f} ms" for name in names)] for row in measured["rows"]]
    return table(["chain of eight runnables", "without", "with", "cost"], lines) + origin(measured)


def llama_index_capture(measured: dict[str, Any]) -> str:
    """Return what is captured under each version of llama-index-core, and what that costs."""
    rows = measured["rows"]
    heads = [
        f"llama-index-core {row['llama-index-core']}, workflows {row['llama-index-workflows']}"
        for row in rows
    ]
    cells: dict[str, Callable[[dict[str, Any]], Any]] = {
        "programs in the matrix": lambda row: row["matrix"]["rows"],
        "model calls": lambda row: row["matrix"]["calls"],
        "of them saw all their nodes": lambda row: row["matrix"]["calls_with_all_nodes"],
        "isolation tests": lambda row: row["isolation"]["tests"],
        "their model calls": lambda row: row["isolation"]["calls"],
        "saw another user's node": lambda row: row["isolation"]["leaks"],
        "missed their own": lambda row: row["isolation"]["misses"],
        "spans left open": lambda row: row["isolation"]["spans_left_open"],
        "CPU time added to a query": lambda row: (
            f"{row['cost']['added_us_per_query'] / 1000:.2f} ms"
        ),
    }
    lines = [[name, *(str(cell(row)) for row in rows)] for name, cell in cells.items()]
    return table(["", *heads], lines) + origin(measured)


def llama_index_defects(measured: dict[str, Any]) -> str:
    """Return what fifteen probes see of HuggingFaceLLM and of LLMA."""
    heads = list(measured["rows"][0])
    lines = [[str(row[head]) for head in heads] for row in measured["rows"]]
    return table(heads, lines) + origin(measured)


def llama_index_service(measured: dict[str, Any]) -> str:
    """Return the ticks of an event loop during one answer, beside those of an idle loop."""
    loops = [row["event_loop"] for row in measured["rows"]]
    names = ("ticks", "ticks_of_an_idle_loop", "seconds")
    lines = [[str(loop[name]) for name in names] for loop in loops]
    heads = ["ticks during an answer", "ticks of an idle loop", "seconds"]
    return table(heads, lines) + origin(measured)
