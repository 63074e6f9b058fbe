"""Print what capture costs a chain of eight runnables: CPU milliseconds, the least of many rounds.

`python -m integrations.langchain.tests.measure_cost [--json]`
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough

from integrations.langchain.tests.matrix import CHAT_PROMPT
from integrations.langchain.tests.probes import UserRetriever, joined
from langchain_llma import no_capture

ROUNDS, CALLS = 15, 60
CHAIN = (
    {"context": UserRetriever() | joined, "question": RunnablePassthrough()}
    | CHAT_PROMPT
    | FakeListChatModel(responses=["ok"])
    | StrOutputParser()
)


def _sync() -> None:
    for _ in range(CALLS):
        CHAIN.invoke("u1")


async def _awaited() -> None:
    for _ in range(CALLS):
        await CHAIN.ainvoke("u1")


def _milliseconds(calls: Callable[[], None], capture: bool) -> float:
    with nullcontext() if capture else no_capture():
        started = time.process_time()
        calls()
        return (time.process_time() - started) / CALLS * 1000


def main() -> None:
    rows = {}
    for name, calls in (("sync", _sync), ("async", lambda: asyncio.run(_awaited()))):
        times = [[_milliseconds(calls, on) for on in (False, True)] for _ in range(ROUNDS)]
        without, with_capture = map(min, zip(*times, strict=True))
        rows[name] = {
            "without_ms": round(without, 3),
            "with_ms": round(with_capture, 3),
            "cost_ms": round(with_capture - without, 3),
        }
    sys.stdout.write(json.dumps(rows) + "\n" if "--json" in sys.argv else f"{rows}\n")


if __name__ == "__main__":
    main()
