"""One owner of the model: threads, event loops, closing, cancelling, errors."""

import asyncio
import copy
import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
import torch
import torch.nn.utils.prune

from llma_rag import ContextOverflowError, Decoder
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.result import GenerationRequest
from llma_rag.task import Counts
from tests.counting import CountingModel, wait_until
from tests.models import character_tokenizer, of_generate, tiny_decoder, tiny_model

PROMPT = [0, 50, 60, 70, 80, 50, 60, 70]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingModel:
    return CountingModel(monkeypatch)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_text_is_shown_before_the_next_pass_or_while_it_runs(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where passes run on while we do something else, all chunks but the first wait for that."""
    monkeypatch.setattr(StepRunner, "is_asynchronous", asynchronous)
    decoder = tiny_decoder("llama-gqa")
    whole = decoder.generate(PROMPT, max_new_tokens=12, draft=False)
    request = GenerationRequest(prompt=PROMPT, draft=False, options={"max_new_tokens": 12})
    events, text, result = "", "", None
    decoding = decoder.loop.decode(request)
    event = next(decoding)
    while result is None:
        passes = isinstance(event, Pass)
        events += "p" if passes else "c"
        text += "" if passes else event.text
        try:
            event = decoding.send(decoder.runner.run(event) if passes else None)
        except StopIteration as end:
            result = end.value
    assert events == ("pcpp" + "cp" * 9 + "cc" if asynchronous else "pc" * 12)
    assert text == result.text == whole.text
    assert result.token_ids == whole.token_ids


def test_times_count_from_the_request_not_from_its_first_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Counts] = []
    monkeypatch.setattr("llma_rag.loop.Counts", lambda: made.append(Counts()) or made[-1])
    decoder = tiny_decoder("llama-gqa")
    request = GenerationRequest(prompt=PROMPT, draft=False, options={"max_new_tokens": 1})
    decoding = decoder.loop.decode(request)
    made[0].started -= 1_000.0  # the worker was busy with others
    event = next(decoding)
    stats = None
    while stats is None:
        passes = isinstance(event, Pass)
        try:
            event = decoding.send(decoder.runner.run(event) if passes else None)
        except StopIteration as end:
            stats = end.value.stats
    assert stats.total_time >= stats.time_to_first_token >= 1_000.0


def test_text_that_waits_for_a_pass_is_shown_if_it_fails(
    counting: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRunner, "is_asynchronous", True)
    counting.forwards, counting.fail_at = 0, 5
    stream = counting.decoder.stream(PROMPT, draft=False, max_new_tokens=12)
    chunks = [next(stream) for _ in range(4)]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert sum(len(chunk.token_ids) for chunk in chunks) == 4


def test_text_does_not_wait_for_the_passes_of_other_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StepRunner, "is_asynchronous", True)
    decoder = tiny_decoder("llama-gqa")
    load = decoder.loop._load
    decoding = decoder.loop.decode(
        GenerationRequest(prompt=PROMPT, draft=False, options={"max_new_tokens": 12})
    )
    events = [next(decoding)]
    for active in (1, 1, 2, 2):
        load.active = active
        while not isinstance(events[-1], Pass):
            events.append(next(decoding))
        events.append(decoding.send(decoder.runner.run(events[-1])))
    kinds = "".join("p" if isinstance(event, Pass) else "c" for event in events)
    assert kinds == "pcpp" + "ccpc"  # the late chunk, then each before the next pass


def test_the_join_of_a_stream_is_the_answer():
    decoder = tiny_decoder("llama-gqa")
    whole = decoder.generate(PROMPT, max_new_tokens=40)
    with decoder.stream(PROMPT, max_new_tokens=40) as stream:
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text == stream.result.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    assert len(chunks) <= whole.stats.forward_passes


def test_a_result_before_the_end_is_refused():
    stream = tiny_decoder("llama-gqa").stream(PROMPT, max_new_tokens=5)
    with pytest.raises(RuntimeError, match="read to its end"):
        _ = stream.result
    stream.close()


@pytest.mark.parametrize("read", range(5))
def test_a_closed_stream_stops_within_one_forward(counting: CountingModel, read: int):
    counting.gate = threading.Semaphore(0)
    stream = counting.decoder.stream(PROMPT, draft=False, max_new_tokens=200)
    for _ in range(read):
        counting.gate.release()
        next(stream)
    stream.close()
    at_close = counting.forwards
    counting.gate.release(100)
    counting.gate = None
    after = counting.decoder.generate(PROMPT, max_new_tokens=3)
    assert counting.forwards - at_close - after.stats.forward_passes <= 1
    assert list(stream) == []


def test_a_dropped_stream_stops_too(counting: CountingModel):
    counting.gate = threading.Semaphore(2)
    stream = counting.decoder.stream(PROMPT, draft=False, max_new_tokens=200)
    next(stream)
    del stream
    counting.gate.release(1000)
    counting.decoder.generate(PROMPT, max_new_tokens=1)
    assert counting.forwards < 20


@pytest.mark.parametrize("step", [1, 2, 5])
def test_an_error_of_the_model_reaches_the_consumer_as_itself(counting: CountingModel, step: int):
    counting.fail_at = step
    with pytest.raises(ZeroDivisionError, match="failing layer"):
        counting.decoder.generate(PROMPT, draft=False, max_new_tokens=20)
    counting.forwards, counting.fail_at = 0, step
    with pytest.raises(ZeroDivisionError):
        list(counting.decoder.stream(PROMPT, draft=False, max_new_tokens=20))
    counting.fail_at = None
    expected = tiny_decoder("llama-gqa").generate(PROMPT, max_new_tokens=20)
    assert counting.decoder.generate(PROMPT, max_new_tokens=20).token_ids == expected.token_ids


@pytest.mark.parametrize("closed", [False, True])
def test_the_decoders_own_thread_is_refused_an_answer_it_would_wait_for(closed: bool):
    """As the callback of a future; it would never end, and nobody else would get an answer."""
    decoder, caught = tiny_decoder("llama-gqa"), []
    go = threading.Event()

    def awaited(prompt, **options):
        asyncio.run(asyncio.wait_for(decoder.agenerate(prompt, **options), 20))

    def iterated(prompt, **options):
        async def read():
            return [chunk async for chunk in decoder.astream(prompt, **options)]

        asyncio.run(asyncio.wait_for(read(), 20))

    def ask(future):
        assert go.wait(20)
        for call in (decoder.generate, decoder.stream, awaited, iterated):
            with pytest.raises(RuntimeError, match="use `submit`"):
                call(PROMPT, max_new_tokens=2)
        caught.append(decoder.submit(PROMPT, max_new_tokens=2))

    decoder.submit(PROMPT, max_new_tokens=2).add_done_callback(ask)
    if closed:
        decoder.close()
    go.set()
    wait_until(lambda: caught)
    assert caught[0].result(20).stats.generated_tokens == 2


def test_a_decoder_that_was_closed_has_one_thread_at_a_time(
    counting: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    """What it learned from drafts, and prompts that it keeps, are not made for two."""
    counting.gate, begun = threading.Semaphore(0), []
    loop = counting.decoder.loop
    task = loop._task
    monkeypatch.setattr(loop, "_task", lambda *given: begun.append(given) or task(*given))
    first = counting.decoder.submit(PROMPT, max_new_tokens=3, draft=False)
    wait_until(lambda: counting.forwards)
    counting.decoder.close()
    second = counting.decoder.submit(PROMPT, max_new_tokens=3, draft=False)
    time.sleep(0.2)
    assert len(begun) == 1
    counting.gate.release(100)
    assert first.result(20).token_ids == second.result(20).token_ids


def test_two_decoders_of_a_model_run_one_pass_at_a_time(counting: CountingModel):
    other, inside, most = Decoder(counting.model, character_tokenizer()), 0, 0
    forward = counting.model.forward

    def watched(*args, **kwargs):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1
        return forward(*args, **kwargs)

    watched.__signature__ = forward.__signature__
    counting.model.forward = watched
    futures = [
        one.submit(PROMPT, max_new_tokens=20, draft=False) for one in (counting.decoder, other) * 2
    ]
    assert len({future.result(20).token_ids for future in futures}) == 1
    assert most == 1


def test_what_ran_a_model_before_it_changed_is_released():
    model = copy.deepcopy(tiny_model("llama-gqa"))
    decoder = Decoder(model, character_tokenizer())
    decoder.generate(PROMPT, max_new_tokens=2)
    runner = weakref.ref(decoder.runner)
    model.model.norm = copy.deepcopy(model.model.norm)
    decoder.generate(PROMPT, max_new_tokens=2)
    assert decoder.runner is not runner()
    gc.collect()
    wait_until(lambda: runner() is None)


def test_a_buffer_that_was_added_later_is_there():
    """As pruning adds one to a linear layer, with a hook that reads it."""
    model = copy.deepcopy(tiny_model("llama-gqa"))
    decoder = Decoder(model, character_tokenizer())
    decoder.generate(PROMPT, max_new_tokens=2)
    torch.nn.utils.prune.random_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)
    expected = of_generate(model, PROMPT, max_new_tokens=10, do_sample=False)
    assert list(decoder.generate(PROMPT, max_new_tokens=10).token_ids) == expected


def test_errors_before_the_model_runs_arrive_the_same_way(counting: CountingModel):
    with pytest.raises(ContextOverflowError, match="512"):
        counting.decoder.generate([5] * 600)
    with pytest.raises(ValueError, match="at least one token"):
        counting.decoder.generate([])
    with pytest.raises(TypeError, match="nonsense"):
        list(counting.decoder.stream(PROMPT, nonsense=1))  # type: ignore[call-arg]
    assert counting.forwards == 0


def test_a_cancelled_future_stops_the_model(counting: CountingModel):
    counting.gate = threading.Semaphore(3)
    future = counting.decoder.submit(PROMPT, draft=False, max_new_tokens=300)
    wait_until(lambda: counting.forwards >= 3)
    assert future.cancel()
    counting.gate.release(1000)
    counting.decoder.generate(PROMPT, max_new_tokens=1)
    assert counting.forwards < 20
    with pytest.raises(CancelledError):
        future.result()


async def test_a_cancelled_task_stops_the_model(counting: CountingModel):
    counting.gate = threading.Semaphore(3)
    task = asyncio.create_task(counting.decoder.agenerate(PROMPT, draft=False, max_new_tokens=300))
    while counting.forwards < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    counting.gate.release(1000)
    await counting.decoder.agenerate(PROMPT, max_new_tokens=1)
    assert counting.forwards < 20


async def test_the_event_loop_streams_and_is_not_blocked():
    decoder = tiny_decoder("llama-gqa")
    whole = decoder.generate(PROMPT, draft=False, max_new_tokens=60)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    text = ""
    async with decoder.astream(PROMPT, draft=False, max_new_tokens=60) as stream:
        async for chunk in stream:
            text += chunk.text
    ticking.cancel()
    assert text == whole.text == stream.result.text
    assert ticks > whole.stats.forward_passes


async def test_closing_an_asynchronous_stream_ends_it_for_everyone():
    stream = tiny_decoder("llama-gqa").astream(PROMPT, max_new_tokens=200)
    await anext(stream)
    await stream.aclose()
    assert [chunk async for chunk in stream] == []


def test_many_threads_share_one_model():
    """Each request with its own reference: every answer equals its solo answer."""
    decoder = tiny_decoder("llama-gqa")
    prompts = [[0, 20 + number, 50, 60, 70] for number in range(24)]
    alone = [decoder.generate(prompt, draft=False, max_new_tokens=30) for prompt in prompts]

    def ask(number: int):
        texts = [alone[number].text, alone[(number + 1) % len(alone)].text]
        return decoder.generate(prompts[number], references=texts, max_new_tokens=30)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, range(len(prompts))))
    assert [one.token_ids for one in results] == [one.token_ids for one in alone]


def test_requests_take_turns():
    """A short request does not wait for the end of a long one."""
    decoder = tiny_decoder("llama-gqa")
    long = decoder.submit(PROMPT, draft=False, max_new_tokens=400, eos_token_id=-1)
    short = decoder.generate(PROMPT, draft=False, max_new_tokens=2)
    assert len(short.token_ids) == 2
    assert not long.done()
    long.cancel()


def test_running_out_of_memory_halves_the_draft(counting: CountingModel, monkeypatch):
    plain = counting.decoder.generate(PROMPT, draft=False, max_new_tokens=40)
    original, widths = counting.model.forward, []

    def forward(*args, input_ids, **kwargs):
        widths.append(input_ids.shape[1])
        if 4 < input_ids.shape[1] != len(PROMPT):
            raise torch.OutOfMemoryError("simulated")
        return original(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(counting.model, "forward", forward)
    result = counting.decoder.generate(PROMPT, references=[plain.text], max_new_tokens=40)
    assert result.token_ids == plain.token_ids
    assert max(widths[1:]) > 4
    assert result.stats.forward_passes < plain.stats.forward_passes


def test_a_model_in_training_mode_is_refused():
    model = tiny_model("llama-gqa")
    try:
        with pytest.raises(ValueError, match=r"model\.eval"):
            Decoder(model.train(), character_tokenizer())
    finally:
        model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("left", ["stream.close()", "pass"])
def test_a_program_may_end_while_an_answer_is_being_decoded(left):
    """A thread that was still inside the model used to abort the process with a core dump."""
    program = f"""
from llma_rag import Decoder
from llma_rag.demo import MODEL
stream = Decoder.from_pretrained(MODEL).stream("One", min_new_tokens=2000, max_new_tokens=2000)
next(stream)
{left}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
