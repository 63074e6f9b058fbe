"""Rows of the matrix: the LCEL chain of every tutorial, in every way to run it."""

from collections.abc import Callable
from typing import Any

from integrations.langchain.tests.matrix import Bench, Expected, Rows, drained, rag, run
from integrations.langchain.tests.probes import of

ROWS = Rows()


def _invoke(chain: Any) -> Expected:
    chain.invoke("u1")
    return of("u1")


def _ainvoke(chain: Any) -> Expected:
    run(chain.ainvoke("u1"))
    return of("u1")


def _batch(chain: Any) -> Expected:
    chain.batch(["u1", "u2", "u3"])
    return of("u1", "u2", "u3")


def _abatch(chain: Any) -> Expected:
    run(chain.abatch(["u1", "u2", "u3"]))
    return of("u1", "u2", "u3")


def _batch_in_pairs(chain: Any) -> Expected:
    users = ["u1", "u2", "u3", "u4"]
    chain.batch(users, config={"max_concurrency": 2})
    return of(*users)


def _as_completed(chain: Any) -> Expected:
    list(chain.batch_as_completed(["u1", "u2"]))
    return of("u1", "u2")


def _stream(chain: Any) -> Expected:
    list(chain.stream("u1"))
    return of("u1")


def _astream(chain: Any) -> Expected:
    run(drained(chain.astream("u1")))
    return of("u1")


def _events(chain: Any) -> Expected:
    run(drained(chain.astream_events("u1", version="v2")))
    return of("u1")


def _two_streams(chain: Any) -> Expected:
    first, second = chain.stream("u1"), chain.stream("u2")
    next(first)
    next(second)
    list(first)
    list(second)
    return of("u1", "u2")


KINDS: dict[str, Callable[[Bench], Any]] = {
    "chat without _stream": lambda bench: bench.chat(),
    "chat": lambda bench: bench.chat(streams=True),
    "text model without _stream": lambda bench: bench.llm(),
    "text model": lambda bench: bench.llm(streams=True),
}
WAYS: dict[str, Callable[[Any], Expected]] = {
    "invoke": _invoke,
    "ainvoke": _ainvoke,
    "batch": _batch,
    "abatch": _abatch,
    "batch with max_concurrency": _batch_in_pairs,
    "batch_as_completed": _as_completed,
    "stream": _stream,
    "astream": _astream,
    "astream_events v2": _events,
    "two streams in turns": _two_streams,
}

for _kind, _model in KINDS.items():
    for _name, _way in WAYS.items():
        ROWS.add(f"LCEL {_kind}: {_name}")(
            lambda bench, model=_model, way=_way: way(rag(model(bench)))
        )
