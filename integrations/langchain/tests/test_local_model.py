"""With real weights: what users of the older classes hit, told in eight rows, and more.

The rows are those of the table in `docs/langchain.md`; `probe_classes.py` asks the same of
`langchain-huggingface`.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from langchain_core.exceptions import ContextOverflowError as CoreContextOverflowError
from langchain_core.messages import HumanMessage
from pydantic import BaseModel
from tqdm import TMonitor

from langchain_llma import LLMA, ChatLLMA
from llma_rag import ContextOverflowError, Decoder


class Counter:
    """Counts a model's forward passes and can make one fail."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.passes = 0
        self.fail_at: int | None = None
        self.entered = threading.Event()
        self._handle = model.register_forward_pre_hook(self._count)

    def _count(self, *ignored: object) -> None:
        self.passes += 1
        self.entered.set()
        if self.passes == self.fail_at:
            raise ArithmeticError("the model broke")

    def remove(self) -> None:
        self._handle.remove()

    def settled(self) -> int:
        """Return the count once it has stopped growing for a while."""
        last = -1
        while last != self.passes:
            last = self.passes
            time.sleep(0.2)
        return last


@pytest.fixture(params=["chat", "text"])
def llm(request: pytest.FixtureRequest, tiny: Path) -> Any:
    kind = ChatLLMA if request.param == "chat" else LLMA
    return kind(model=tiny, max_tokens=40, temperature=0, dtype="float32")


@pytest.fixture
def passes(llm: Any) -> Iterator[Counter]:
    counter = Counter(llm.decoder.model)
    yield counter
    counter.remove()


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.content)


def _stream(llm: Any, prompt: str, **options: Any) -> str:
    return "".join(_text(piece) for piece in llm.stream(prompt, **options))


async def _astream(llm: Any, prompt: str, **options: Any) -> str:
    return "".join([_text(piece) async for piece in llm.astream(prompt, **options)])


PROMPT = "hello my friend"


async def test_row_1_stop_strings_are_honoured_everywhere(llm: Any) -> None:
    whole = _text(llm.invoke(PROMPT))
    stop = whole[12:15]
    expected = whole[: whole.index(stop)]
    assert _text(llm.invoke(PROMPT, stop=[stop])) == expected
    assert _text(await llm.ainvoke(PROMPT, stop=[stop])) == expected
    assert _stream(llm, PROMPT, stop=[stop]) == expected
    assert await _astream(llm, PROMPT, stop=[stop]) == expected
    assert [_text(each) for each in llm.batch([PROMPT] * 2, stop=[stop])] == [expected] * 2
    assert _text(llm.invoke(PROMPT, stop=[stop], references=[whole])) == expected


def test_row_2_limits_per_call(llm: Any, passes: Counter) -> None:
    short = llm.invoke(PROMPT, max_tokens=5, draft=False)
    assert passes.passes == 5
    assert _text(llm.invoke(PROMPT)).startswith(_text(short))
    if isinstance(llm, ChatLLMA):
        assert short.usage_metadata["output_tokens"] == 5
        assert short.response_metadata["finish_reason"] == "length"


async def test_row_3_the_event_loop_keeps_running(llm: Any, passes: Counter) -> None:
    """Every pass waits until the loop has run once: a loop that waits for the pass cannot."""
    loop = asyncio.get_running_loop()

    def wait_for_the_loop(*ignored: object) -> None:
        has_run = threading.Event()
        loop.call_soon_threadsafe(has_run.set)
        if not has_run.wait(timeout=5):
            raise TimeoutError("the event loop stood still during a pass")

    handle = llm.decoder.model.register_forward_pre_hook(wait_for_the_loop)
    await llm.ainvoke(PROMPT, draft=False)
    await _astream(llm, PROMPT, draft=False)
    handle.remove()
    assert passes.passes >= 80


def test_row_4_usage_is_told(llm: Any) -> None:
    if isinstance(llm, LLMA):
        info = llm.generate([PROMPT]).generations[0][0].generation_info
        assert info is not None
        usage, stats = info["usage"], info["llma"]
    else:
        message = llm.invoke(PROMPT)
        usage, stats = message.usage_metadata, message.response_metadata["llma"]
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] == 40
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert stats["forward_passes"] > 0


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream", "batch"])
async def test_row_5_errors_reach_the_caller(llm: Any, passes: Counter, way: str) -> None:
    passes.fail_at = 3
    with pytest.raises(ArithmeticError, match="the model broke"):
        await asyncio.wait_for(_ask(llm, way), timeout=10)
    assert _text(llm.invoke(PROMPT))


async def _ask(llm: Any, way: str) -> None:
    if way == "astream":
        await _astream(llm, PROMPT)
    elif way == "ainvoke":
        await llm.ainvoke(PROMPT)
    elif way == "stream":
        _stream(llm, PROMPT)
    elif way == "batch":
        llm.batch([PROMPT, "hello"])
    else:
        llm.invoke(PROMPT)


def test_row_6_a_closed_stream_stops_the_model(llm: Any, passes: Counter) -> None:
    stream = llm.stream(PROMPT, max_tokens=2000, draft=False)
    next(stream)
    next(stream)
    stream.close()
    at_close = passes.passes
    assert passes.settled() <= at_close + 1


async def test_row_6_a_closed_async_stream_stops_the_model(llm: Any, passes: Counter) -> None:
    stream = llm.astream(PROMPT, max_tokens=2000, draft=False)
    await anext(stream)
    await stream.aclose()
    at_close = passes.passes
    assert await asyncio.to_thread(passes.settled) <= at_close + 1


async def test_row_6_a_cancelled_task_stops_the_model(llm: Any, passes: Counter) -> None:
    task = asyncio.create_task(llm.ainvoke(PROMPT, max_tokens=3000, draft=False))
    await asyncio.to_thread(passes.entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    at_cancel = passes.passes
    assert await asyncio.to_thread(passes.settled) <= at_cancel + 1


def test_row_7_no_answer_is_too_slow(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing between the model and the consumer waits with a time limit."""
    limits: list[object] = []
    wait = threading.Condition.wait

    def watched(self: threading.Condition, timeout: float | None = None) -> bool:
        if not isinstance(threading.current_thread(), TMonitor):  # it looks after progress bars
            limits.append(timeout)
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", watched)
    llm.invoke(PROMPT)
    _stream(llm, PROMPT)
    assert set(limits) <= {None}


async def test_row_8_every_way_gives_the_same_text(llm: Any) -> None:
    whole = _text(llm.invoke(PROMPT))
    assert len(whole) > 20
    assert _text(await llm.ainvoke(PROMPT)) == whole
    assert _stream(llm, PROMPT) == whole
    assert await _astream(llm, PROMPT) == whole
    assert [_text(each) for each in llm.batch([PROMPT, "hello", PROMPT])][::2] == [whole] * 2
    assert _text(llm.invoke(PROMPT, references=[whole, "other words"])) == whole
    assert _text(llm.invoke(PROMPT, draft=False)) == whole


def test_references_save_forward_passes(llm: Any, passes: Counter) -> None:
    whole = _text(llm.invoke(PROMPT, draft=False))
    plain = passes.passes
    assert _text(llm.invoke(PROMPT, references=[whole])) == whole
    assert passes.passes - plain < 0.75 * plain


def test_turns_that_a_template_drops_are_drafted_from(tiny: Path) -> None:
    """As templates do that leave out what a model thought, or all but the last question."""
    template = "{{ bos_token }}{{ messages[-1]['content'] }}"
    chat = ChatLLMA(
        model=tiny, max_tokens=40, temperature=0, dtype="float32", chat_template=template
    )
    counter = Counter(chat.decoder.model)
    first = chat.invoke(PROMPT)
    alone = counter.passes
    again = chat.invoke([HumanMessage(PROMPT), first, HumanMessage(PROMPT)])
    counter.remove()
    assert again.content == first.content
    assert counter.passes - alone < 0.75 * alone
    assert "citations" not in again.response_metadata


def test_the_answer_is_what_transformers_generates(tiny: Path) -> None:
    chat = ChatLLMA(model=tiny, max_tokens=30, temperature=0, dtype="float32")
    decoder = chat.decoder
    encoded = decoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = encoded["input_ids"].shape[1]
    assert encoded["input_ids"][0].tolist().count(decoder.tokenizer.bos_token_id) == 1
    output = decoder.model.generate(**encoded, max_new_tokens=30, do_sample=False)[0, length:]
    message = chat.invoke(PROMPT)
    assert message.usage_metadata is not None
    assert message.usage_metadata["input_tokens"] == length
    assert message.content == decoder.tokenizer.decode(output, skip_special_tokens=True)


def test_a_completion_begins_once(tiny: Path) -> None:
    """A text that a chat template wrote begins with the token that the tokenizer adds again."""
    decoder = Decoder.from_pretrained(tiny, dtype="float32")
    tokenizer = decoder.tokenizer
    assert tokenizer("hello")["input_ids"][0] == tokenizer.bos_token_id
    llm = LLMA.from_decoder(decoder, max_tokens=4, temperature=0)
    written = llm.generate(["hello", f"{tokenizer.bos_token}hello"])
    usage = [one[0].generation_info["usage"]["input_tokens"] for one in written.generations]
    assert usage == [len(tokenizer("hello")["input_ids"])] * 2
    assert written.generations[0][0].text == written.generations[1][0].text


class Stop(BaseModel):
    place: Literal["Vessa", "Orr"]


class Route(BaseModel):
    start: Stop
    end: Stop


@pytest.mark.parametrize("seed", range(4))
def test_an_agent_calls_or_answers_with_nested_models(tiny: Path, seed: int) -> None:
    """Random weights sample one or the other; a schema that does not resolve would be an error."""
    pytest.importorskip("llguidance", reason="structured answers are an optional extra")
    chat = ChatLLMA(model=tiny, max_tokens=100, dtype="float32", temperature=1, seed=seed)
    nested = {"name": "sail", "description": "Sail.", "parameters": Route.model_json_schema()}
    answer = {"name": "Route", "schema": Route.model_json_schema()}
    message = chat.bind_tools([{"type": "function", "function": nested}]).invoke(
        "Where to?", response_format={"type": "json_schema", "json_schema": answer}
    )
    given = message.tool_calls[0]["args"] if message.tool_calls else json.loads(message.content)
    Route.model_validate(given)


def test_equal_arguments_load_once(tiny: Path) -> None:
    first, second = ChatLLMA(model=tiny, dtype=torch.float32), LLMA(model=tiny, dtype="float32")
    assert first.decoder is second.decoder
    assert ChatLLMA(model=tiny, dtype="bfloat16").decoder is not first.decoder


def test_a_loaded_pipeline_is_taken_over(tiny: Path) -> None:
    huggingface = pytest.importorskip(
        "langchain_huggingface", reason="only those who come from there have it"
    )
    pipe = huggingface.HuggingFacePipeline.from_model_id(
        str(tiny), "text-generation", pipeline_kwargs={"max_new_tokens": 7, "do_sample": False}
    )
    old = huggingface.ChatHuggingFace(llm=pipe)
    for kind, loaded in ((LLMA, pipe), (ChatLLMA, old)):
        taken = kind.from_huggingface(loaded)
        assert taken.decoder.model is pipe.pipeline.model
        assert taken.max_tokens == 7
        assert (taken.temperature, taken.options) == (0, {})
        assert taken.decoder is kind.from_huggingface(loaded).decoder, "a model has one owner"
    assert ChatLLMA.from_huggingface(pipe.pipeline).decoder.model is pipe.pipeline.model
    told = huggingface.ChatHuggingFace(llm=pipe, temperature=0.5, max_tokens=3, stop_sequences="x")
    chat = ChatLLMA.from_huggingface(told, temperature=0)
    assert (chat.temperature, chat.max_tokens, chat.stop) == (0, 3, ["x"])
    pipe.pipeline_kwargs = {"do_sample": True, "temperature": 0.7}
    chat = ChatLLMA.from_huggingface(pipe, temperature=0)
    assert chat._generation_options(None, {}) == {"max_new_tokens": 512, "do_sample": False}
    pipe.pipeline_kwargs = {"max_new_tokens": 7, "do_sample": False}
    old_text = pipe.invoke(PROMPT, skip_prompt=True)
    assert LLMA.from_huggingface(pipe).invoke(PROMPT) == old_text


def test_what_holds_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold a local model"):
        ChatLLMA.from_huggingface(object())


def test_bad_input_is_told_in_one_sentence(tiny: Path, tmp_path: Path) -> None:
    chat = ChatLLMA(model=tiny, dtype="float32")
    long = "word " * 5000
    text = LLMA(model=tiny, dtype="float32")
    calls: list[Callable[[], Any]] = [
        lambda: chat.invoke(long),
        lambda: list(chat.stream(long)),
        lambda: asyncio.run(chat.ainvoke(long)),
        lambda: asyncio.run(_astream(chat, long)),
        lambda: text.invoke(long),
        lambda: asyncio.run(text.ainvoke(long)),
        lambda: list(text.stream(long)),
    ]
    for call in calls:
        with pytest.raises(ContextOverflowError, match="shorten the prompt") as raised:
            call()
        assert isinstance(raised.value, CoreContextOverflowError), "agents look for core's"
    with pytest.raises(OSError, match="no model folder"):
        ChatLLMA(model=tmp_path / "nothing").invoke("hello")
    with pytest.raises(TypeError, match="no_such_option"):
        chat.invoke("hello", no_such_option=1)


def test_decoders_of_objects_are_kept_by_copies(tiny: Path) -> None:
    decoder = Decoder.from_pretrained(tiny, dtype="float32")
    chat = ChatLLMA.from_decoder(decoder, temperature=0, max_tokens=5)
    assert chat.model == str(tiny)
    assert chat.model_copy(update={"max_tokens": 3}).invoke("hello").usage_metadata is not None
