"""Fifteen probes of a local LLM under LlamaIndex.

`python -m integrations.llama_index.tests.defects` prints as JSON what each sees of HuggingFaceLLM
and of LLMA.
"""

import asyncio
import copy
import inspect
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool

from integrations.llama_index.tests.conftest import TEMPLATE, make_model, make_tokenizer
from llama_index.llms.llma import LLMA, LLMAFunctionCalling

MESSAGES = [ChatMessage(role="system", content="be brief"), ChatMessage(content="q")]
TICK = 0.005


class Subject:
    """A class under probe, with a model of its own whose forward passes are counted."""

    def __init__(self, cls: Any, **options: Any) -> None:
        self.cls = cls
        self.options = options
        self.model = make_model()
        self.tokenizer = make_tokenizer()
        self.forwards = 0
        self.prompts: list[list[int]] = []
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def make(self, **options: Any) -> Any:
        """Build the LLM; passes of a self-test at loading do not count."""
        llm = self.cls(model=self.model, tokenizer=self.tokenizer, **{**self.options, **options})
        self.forwards = 0
        self.prompts.clear()
        return llm

    def fail(self) -> None:
        def failing(*details: Any) -> None:
            raise RuntimeError("out of memory, say")

        self.model.register_forward_pre_hook(failing, with_kwargs=True)

    def _count(self, model: Any, args: Any, kwargs: Any) -> None:
        self.forwards += 1
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and int(ids[0, 0]) == self.tokenizer.bos_token_id:
            self.prompts.append(ids[0].tolist())

    def prompt(self) -> str:
        """The text of the last prompt."""
        return str(self.tokenizer.decode(self.prompts[-1]))


class Evidence(NamedTuple):
    """What was seen, and whether that is as it should be."""

    text: str
    fine: bool


def loop_during_a_call(subject: Subject) -> Evidence:
    llm = subject.make(max_new_tokens=600)
    ticks, running = 0, True

    async def tick() -> None:
        nonlocal ticks
        while running:
            await asyncio.sleep(TICK)
            ticks += 1

    async def measure() -> tuple[int, float]:
        nonlocal running
        task = asyncio.create_task(tick())
        await asyncio.sleep(0)
        started = time.perf_counter()
        await llm.acomplete("hello")
        elapsed = time.perf_counter() - started
        seen, running = ticks, False
        await task
        return seen, elapsed

    seen, elapsed = asyncio.run(measure())
    return Evidence(
        f"{seen} of {elapsed / TICK:.0f} ticks of the event loop in {elapsed:.2f} s", seen > 5
    )


def error_in_a_stream(subject: Subject) -> Evidence:
    llm = subject.make()
    subject.fail()
    seen: list[str] = []

    def read() -> None:
        try:
            list(llm.stream_complete("x"))
        except RuntimeError as error:
            seen.append(str(error))

    hook, threading.excepthook = threading.excepthook, lambda args: None
    thread = threading.Thread(target=read, daemon=True)
    started = time.perf_counter()
    thread.start()
    thread.join(3)
    threading.excepthook = hook
    if thread.is_alive():
        return Evidence("the reader is still blocked after 3 s", False)
    within = time.perf_counter() - started < 1
    return Evidence("the reader gets the error within 1 s", bool(seen) and within)


def closed_stream(subject: Subject) -> Evidence:
    stream = subject.make(max_new_tokens=150).stream_complete("hello")
    next(stream)
    stream.close()
    closed = before = subject.forwards
    while True:
        time.sleep(0.2)
        if subject.forwards == before:
            break
        before = subject.forwards
    late = before - closed
    return Evidence(f"{late} more forward passes, of 150", late <= 1)


def options_of_a_call(subject: Subject) -> Evidence:
    llm = subject.make(max_new_tokens=18)
    lengths = []
    for options in ({}, {"max_new_tokens": 3}):
        subject.forwards = 0
        text = llm.complete("hello", **options).text
        lengths.append(len(subject.tokenizer(text, add_special_tokens=False)["input_ids"]))
    full = llm.complete("hello").text
    stopped = llm.complete("hello", stop=[full[2:4]]).text
    fine = subject.cls is not None and stopped != full and lengths[1] < lengths[0]
    kept = "honoured" if stopped == full[: full.find(full[2:4])] else "ignored"
    honoured = "honoured" if lengths[1] < lengths[0] else "ignored"
    return Evidence(f"`max_new_tokens=3` {honoured}, `stop` {kept}", fine)


def overlong_prompt(subject: Subject) -> Evidence:
    llm = subject.make(context_window=256, max_new_tokens=12)
    try:
        llm.complete("a" * 400)
    except ValueError as error:
        refused = subject.forwards == 0 and "256" in str(error)
        return Evidence("`ContextOverflowError` before the model runs", refused)
    return Evidence(
        f"a window of 256, a prompt of {len(subject.prompts[0])} tokens: no check", False
    )


def beginnings_of_text(subject: Subject) -> Evidence:
    options = {"hf_compat": False} if issubclass(subject.cls, LLMA) else {}
    subject.make(max_new_tokens=2, **options).chat(MESSAGES)
    count = subject.prompts[0].count(subject.tokenizer.bos_token_id)
    how = " with `hf_compat=False`; by default two, with a warning" if options else ""
    return Evidence(f"{count} in a chat prompt{how}", count == 1)


def system_prompt(subject: Subject) -> Evidence:
    llm = subject.make(max_new_tokens=2, system_prompt="SYS")
    calls = {
        "complete": lambda: llm.complete("q"),
        "stream_complete": lambda: list(llm.stream_complete("q")),
        "chat": lambda: llm.chat([ChatMessage(content="q")]),
        "stream_chat": lambda: list(llm.stream_chat([ChatMessage(content="q")])),
    }
    applied = []
    for name, call in calls.items():
        call()
        if subject.prompt().count("SYS") == 1:
            applied.append(f"`{name}`")
    return Evidence(f"in {', '.join(applied) or 'none'} of four endpoints", len(applied) == 4)


def completion_to_prompt(subject: Subject) -> Evidence:
    llm = subject.make(max_new_tokens=2, completion_to_prompt=lambda text: f"[{text}]")
    llm.complete("q")
    written = [subject.prompt()]
    list(llm.stream_complete("q"))
    written.append(subject.prompt())
    return Evidence(f"`{written[0]}` and streaming `{written[1]}`", written[0] == written[1])


def events_of_a_call(subject: Subject) -> Evidence:
    counter = TokenCountingHandler(tokenizer=lambda text: [0])
    llm = subject.make(max_new_tokens=3, callback_manager=CallbackManager([counter]))
    starts: list[str] = []

    class Handler(BaseEventHandler):
        @classmethod
        def class_name(cls) -> str:
            return "Handler"

        def handle(self, event: Any, **kwargs: Any) -> None:
            if type(event).__name__ in ("LLMChatStartEvent", "LLMCompletionStartEvent"):
                starts.append(type(event).__name__)

    handler = Handler()
    get_dispatcher().add_event_handler(handler)
    counts = []
    try:
        for call in (
            lambda: llm.chat(MESSAGES),
            lambda: asyncio.run(_awaited(llm.acomplete("q"))),
            lambda: asyncio.run(_awaited(llm.achat(MESSAGES))),
        ):
            starts.clear()
            call()
            counts.append(len(starts))
    finally:
        get_dispatcher().event_handlers.remove(handler)
    names = ", ".join(
        f"{count} per `{name}`"
        for name, count in zip(("chat", "acomplete", "achat"), counts, strict=True)
    )
    counted = len(counter.llm_token_counts)
    return Evidence(f"{names}; 3 calls counted as {counted}", counts == [1, 1, 1] and counted == 3)


async def _awaited(call: Any) -> Any:
    return await call


def raw_response(subject: Subject) -> Evidence:
    raw = subject.make(max_new_tokens=3).complete("q").raw
    try:
        json.dumps(raw)
    except TypeError as error:
        return Evidence(f"`{error}`, no `usage`", False)
    return Evidence("JSON with `usage`", "usage" in raw)


def model_name(subject: Subject) -> Evidence:
    default = inspect.signature(subject.cls.__init__).parameters["tokenizer_name"].default
    name = subject.make().metadata.model_name
    return Evidence(
        f"`{name}` for a given model; `tokenizer_name` defaults to `{default}`",
        name == subject.model.config.model_type and default is None,
    )


def sampling(subject: Subject) -> Evidence:
    subject.model.generation_config.do_sample = True
    llm = subject.make(max_new_tokens=12)
    answers = [llm.complete("hello", seed=seed).text for seed in (1, 1, 2, 3)]
    different = len(set(answers))
    text = f"{different} answers to seeds 1, 1, 2, 3"
    return Evidence(text, answers[0] == answers[1] and different == 3)


def serialisation(subject: Subject) -> Evidence:
    llm = subject.make(model_kwargs={"torch_dtype": torch.float16})
    try:
        json.dumps(llm.to_dict())
    except TypeError as error:
        return Evidence(f"`{error}`", False)
    return Evidence("JSON", True)


def window_of_a_nested_config(subject: Subject) -> Evidence:
    """As of a multimodal model, whose text model's configuration stands inside another."""
    flat = subject.model.config

    class Nested(type(flat)):  # type: ignore[misc]  # a configuration like the model's own
        def to_dict(self) -> dict[str, Any]:
            return {k: v for k, v in super().to_dict().items() if k != "max_position_embeddings"}

        def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
            return flat

    nested = copy.copy(flat)
    nested.__class__ = Nested
    subject.model.config = nested
    window = subject.make(context_window=100_000).metadata.context_window
    return Evidence(f"a window of {window:,} for a model of 2,048 positions", window == 2048)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def tools_and_stops(subject: Subject) -> Evidence:
    full = subject.make(max_new_tokens=18).complete("hello").text
    stopped = subject.make(max_new_tokens=18).complete("hello", stop=[full[5:8]]).text
    stops = stopped == full[: full.find(full[5:8])]
    subject.tokenizer.chat_template = "{{ tools | tojson if tools }}" + TEMPLATE
    subject.model.generation_config.eos_token_id = 2
    subject.cls = LLMAFunctionCalling if subject.cls is LLMA else subject.cls
    called = _call_of_a_tool(subject.make(max_new_tokens=200))
    text = f"{called}; stop strings {'honoured' if stops else 'ignored'}"
    return Evidence(text, stops and called.startswith("calls `add`"))


def _call_of_a_tool(llm: Any) -> str:
    """Require a call of a tool from a model that knows nothing of JSON."""
    if not hasattr(llm, "chat_with_tools"):
        return f"`{type(llm).__name__}` has no `chat_with_tools`"
    tool = FunctionTool.from_defaults(add)
    response = llm.chat_with_tools([tool], user_msg="2 + 3?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(response)
    named = sorted(call.tool_kwargs)
    return f"calls `{call.tool_name}` with {named} when required (`{type(llm).__name__}`)"


class Probe(NamedTuple):
    title: str
    run: Callable[[Subject], Evidence]


PROBES = (
    Probe("event loop during `acomplete`", loop_during_a_call),
    Probe("error of the model in a stream", error_in_a_stream),
    Probe("closing a stream", closed_stream),
    Probe("options of a call", options_of_a_call),
    Probe("prompt longer than the window", overlong_prompt),
    Probe("beginning-of-text tokens", beginnings_of_text),
    Probe("`system_prompt`", system_prompt),
    Probe("`completion_to_prompt`", completion_to_prompt),
    Probe("start events per call", events_of_a_call),
    Probe("`raw`", raw_response),
    Probe("names of model and tokenizer", model_name),
    Probe("model whose configuration samples", sampling),
    Probe("`to_dict()` with a dtype in `model_kwargs`", serialisation),
    Probe("window of a model with a text configuration", window_of_a_nested_config),
    Probe("tools and stop strings", tools_and_stops),
)


def main() -> None:
    """Print what both classes do."""
    from llama_index.llms.huggingface import HuggingFaceLLM

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    rows = [
        {
            "#": number,
            "what": probe.title,
            **{cls.__name__: _evidence(probe, cls).text for cls in (HuggingFaceLLM, LLMA)},
        }
        for number, probe in enumerate(PROBES, 1)
    ]
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


def _evidence(probe: Probe, cls: Any) -> Evidence:
    try:
        return probe.run(Subject(cls))
    except Exception as error:
        return Evidence(f"`{type(error).__name__}: {error}`", False)


if __name__ == "__main__":
    main()
