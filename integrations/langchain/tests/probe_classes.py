"""Ask the same eight things of langchain-huggingface and of us, and print a table.

`python -m integrations.langchain.tests.probe_classes [--fast] [--json]`, on a tiny random model.
Two rows wait for time limits of one minute, all classes at once; `--fast` leaves them out.
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from integrations.langchain.tests.probes import ticks
from integrations.langchain.tests.tiny import tiny_model
from langchain_llma import LLMA, ChatLLMA

PROMPT = "hello my friend"
SLOW_ROWS = ("error while streaming", "70 s before the first token")
Make = Callable[[], tuple[Any, Any]]
"""Returns a LangChain model and the torch model under it."""


class Passes:
    """Counts forward passes; may break or delay one."""

    def __init__(self, model: Any, fail_at: int = 0, delay: float = 0.0) -> None:
        self.count = 0
        self._fail_at, self._delay = fail_at, delay
        self.handle = model.register_forward_pre_hook(self._before)

    def _before(self, *ignored: object) -> None:
        self.count += 1
        if self.count == 1:
            time.sleep(self._delay)
        if self.count == self._fail_at:
            raise ArithmeticError("the model broke")


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.content)


def _whole(llm: Any, **options: Any) -> str:
    return _text(llm.invoke(PROMPT, **options))


def stop_strings(make: Make) -> str:
    llm, _ = make()
    whole = _whole(llm)
    stop = whole[-20:-17]
    return "honoured" if stop not in _whole(llm, stop=[stop]) else "ignored"


def limit_per_call(make: Make) -> str:
    llm, model = make()
    passes = Passes(model)
    _whole(
        llm, **({"max_tokens": 5} if isinstance(llm, (ChatLLMA, LLMA)) else {"max_new_tokens": 5})
    )
    return f"{passes.count} passes for 5 tokens" if passes.count > 5 else "honoured"


def event_loop(make: Make) -> str:
    llm, _ = make()

    async def go() -> str:
        started = time.perf_counter()
        busy = asyncio.create_task(ticks())
        await llm.ainvoke(PROMPT)
        busy.cancel()
        idle = asyncio.create_task(ticks())
        await asyncio.sleep(time.perf_counter() - started)
        idle.cancel()
        return f"{await busy / await idle:.0%} of an idle loop's ticks"

    return asyncio.run(go())


def usage(make: Make) -> str:
    llm, _ = make()
    if isinstance(llm, LLMA):
        info = llm.generate([PROMPT]).generations[0][0].generation_info or {}
        return f"{info['usage']['output_tokens']} output tokens"
    answer = llm.invoke(PROMPT)
    if isinstance(answer, str):
        return f"{llm.generate([PROMPT]).llm_output}"
    told = answer.usage_metadata
    return "None" if told is None else f"{told['output_tokens']} output tokens"


def error_while_streaming(make: Make) -> str:
    llm, model = make()
    Passes(model, fail_at=3)
    started = time.perf_counter()
    try:
        list(llm.stream(PROMPT))
    except Exception as error:
        return f"{type(error).__name__} after {time.perf_counter() - started:.1f} s"
    return "nothing was raised"


def closed_stream(make: Make) -> str:
    llm, model = make()
    passes = Passes(model)
    stream = llm.stream(PROMPT)
    next(stream)
    next(stream)
    at_close = passes.count
    stream.close()
    while _moves(passes):
        pass
    return f"{passes.count - at_close} further passes"


def _moves(passes: Passes) -> bool:
    before = passes.count
    time.sleep(0.3)
    return passes.count != before


def slow_first_token(make: Make) -> str:
    llm, model = make()
    Passes(model, delay=70)
    try:
        pieces = list(llm.stream(PROMPT))
    except Exception as error:
        return type(error).__name__
    return f"answered, {len(pieces)} chunks"


def stream_equals_invoke(make: Make) -> str:
    llm, _ = make()
    streamed = "".join(_text(piece) for piece in llm.stream(PROMPT))
    return "equal" if streamed == _whole(llm) else "different texts"


ROWS: dict[str, Callable[[Make], str]] = {
    "`invoke(stop=[...])`": stop_strings,
    "a token limit per call": limit_per_call,
    "`ainvoke`": event_loop,
    "token usage": usage,
    "error while streaming": error_while_streaming,
    "stream closed after two chunks": closed_stream,
    "70 s before the first token": slow_first_token,
    "stream and invoke": stream_equals_invoke,
}


def _makers(folder: Path) -> dict[str, Make]:
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    def pipeline() -> tuple[Any, Any]:
        made = HuggingFacePipeline.from_model_id(
            str(folder),
            "text-generation",
            pipeline_kwargs={"max_new_tokens": 200, "do_sample": False},
        )
        return made, made.pipeline.model

    def chat_huggingface() -> tuple[Any, Any]:
        llm, model = pipeline()
        return ChatHuggingFace(llm=llm), model

    def ours(kind: Any) -> Make:
        def make() -> tuple[Any, Any]:
            from llma_rag import Decoder

            decoder = Decoder.from_pretrained(folder, dtype="float32")
            llm = kind.from_decoder(decoder, max_tokens=200, temperature=0, draft=False)
            return llm, decoder.model

        return make

    return {
        "ChatHuggingFace": chat_huggingface,
        "HuggingFacePipeline": pipeline,
        "ChatLLMA": ours(ChatLLMA),
        "LLMA": ours(LLMA),
    }


def _answers(row: Callable[[Make], str], makers: dict[str, Make], at_once: bool) -> dict[str, str]:
    """Ask every class; rows that mostly wait do so together."""
    with ThreadPoolExecutor(len(makers) if at_once else 1) as pool:
        answers = pool.map(lambda make: _answer(row, make), makers.values())
        return dict(zip(makers, answers, strict=True))


def _answer(row: Callable[[Make], str], make: Make) -> str:
    try:
        return row(make)
    except Exception as error:
        return type(error).__name__


def main() -> None:
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None
    rows = {
        name: row for name, row in ROWS.items() if name not in SLOW_ROWS or "--fast" not in sys.argv
    }
    with tempfile.TemporaryDirectory() as folder:
        makers = _makers(tiny_model(Path(folder)))
        table = {name: _answers(row, makers, name in SLOW_ROWS) for name, row in rows.items()}
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(table) + "\n")
        return
    kinds = list(makers)
    lines = [f"| | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(cells[kind] for kind in kinds)} |" for name, cells in table.items()
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
