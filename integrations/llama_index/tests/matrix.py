"""The capture matrix: run an unchanged program, count the model calls that saw all true nodes."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from integrations.llama_index.tests.probes import (
    ProbeFunctionLLM,
    ProbeLLM,
    make_faiss_index,
    make_index,
)
from llama_index.llms.llma.spans import tree

QUESTION = "alpha topic zero"

INDEX = make_index()
FAISS = make_faiss_index()
LONG = make_index(size=6, length=200)
"""Fills several windows of 1,800 tokens, so that a synthesizer calls the model several times."""


class Row(NamedTuple):
    """One program.

    `short` calls see less than all nodes: rightly, or because nothing links them to the retrieval.
    """

    name: str
    scenario: Callable[..., Any]
    function: bool
    short: int
    options: dict[str, Any]


class Outcome(NamedTuple):
    calls: int
    complete: int
    reaches: frozenset[str]


ROWS: dict[str, Row] = {}


def row(name, *, function=False, short=0, **options):
    """Register a program; it takes an LLM, returns the true ids and the calls that count."""

    def register(scenario):
        assert name not in ROWS, name
        ROWS[name] = Row(name, scenario, function, short, options)
        return scenario

    return register


def last(llm):
    """The calls that share the prompt of the last one: the answer, not the preparations."""
    return [call for call in llm.calls if call.prompt == llm.calls[-1].prompt]


def in_fresh_context(function, *args):
    """Run a program in a context of its own; coroutine functions in a new event loop.

    The loop is there for synchronous programs too: the framework makes one where it finds none, and
    leaves it open.
    """

    def run():
        with asyncio.Runner() as runner:
            runner.get_loop()
            result = function(*args)
            return runner.run(result) if inspect.iscoroutine(result) else result

    return contextvars.Context().run(run)


def run_row(row: Row) -> Outcome:
    llm = ProbeFunctionLLM() if row.function else ProbeLLM(**row.options)
    truth, calls = in_fresh_context(row.scenario, llm)
    assert truth, "the program retrieved nothing"
    assert calls, "the program did not call the model"
    assert len(tree) == 0, "a span stayed open"
    return Outcome(
        calls=len(calls),
        complete=sum(truth <= call.seen for call in calls),
        reaches=frozenset(call.reach for call in calls),
    )
