"""Whatever becomes of a request, who waits for it hears of it, and the next request is served."""

import asyncio
import threading
import weakref
from concurrent.futures import as_completed, wait

import pytest

from llma_rag import Decoder, worker
from tests.counting import CountingModel, wait_until
from tests.models import character_tokenizer, tiny_decoder, tiny_model

PROMPT = [0, 50, 60, 70, 80, 50, 60, 70]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingModel:
    return CountingModel(monkeypatch)


def test_a_cancelled_future_wakes_up_who_waits_for_it_with_others(counting: CountingModel):
    counting.gate = threading.Semaphore(0)
    waits = counting.decoder.submit(PROMPT, max_new_tokens=2)
    cancelled = counting.decoder.submit(PROMPT, max_new_tokens=300)
    other = threading.Timer(0.05, lambda: [cancelled.cancel() for _ in range(2)])
    other.start()
    assert next(as_completed([waits, cancelled], timeout=20)) is cancelled
    assert wait([cancelled], timeout=20).done == {cancelled}
    other.join()
    counting.gate.release(100)
    assert waits.result(20).stats.generated_tokens == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ZeroDivisionError()])
def test_the_worker_outlives_the_callback_of_a_future(counting: CountingModel, error, caplog):
    counting.gate = threading.Semaphore(0)

    def fail(_):
        raise error

    first = counting.decoder.submit(PROMPT, max_new_tokens=2)
    first.add_done_callback(fail)
    failing = counting.decoder.submit(PROMPT, max_new_tokens=2, seed="x")
    failing.add_done_callback(fail)
    second = counting.decoder.submit(PROMPT, max_new_tokens=2)
    counting.gate.release(100)
    assert first.result(20).token_ids == second.result(20).token_ids
    with pytest.raises(ValueError, match="`seed`"):
        failing.result(20)
    assert "callback" in caplog.text


def test_a_thread_that_died_is_replaced(monkeypatch: pytest.MonkeyPatch):
    """As where memory ran out between two requests; what it had got fails."""
    decoder = tiny_decoder("llama-gqa")
    before = decoder.generate(PROMPT, max_new_tokens=2)
    with monkeypatch.context() as context:
        context.setattr("llma_rag.worker._admit", lambda *_: 1 / 0)
        context.setattr(threading, "excepthook", lambda _: None)
        thread = decoder._worker._thread
        future = decoder.submit(PROMPT, max_new_tokens=2)
        with pytest.raises(RuntimeError, match="thread has ended"):
            future.result(20)
        thread.join(20)
        assert not thread.is_alive()
    assert decoder.generate(PROMPT, max_new_tokens=2).token_ids == before.token_ids


def test_a_stream_has_one_reader_at_a_time(counting: CountingModel):
    counting.gate = threading.Semaphore(0)
    stream = counting.decoder.stream(PROMPT, max_new_tokens=3)
    first: list[str] = []
    reader = threading.Thread(target=lambda: first.extend(chunk.text for chunk in stream))
    reader.start()
    wait_until(stream._reading.locked)
    with pytest.raises(RuntimeError, match="one reader at a time"):
        next(stream)
    counting.gate.release(100)
    reader.join(20)
    assert "".join(first) == stream.result.text
    assert list(stream) == []


async def test_an_asynchronous_stream_has_one_reader_at_a_time(counting: CountingModel):
    counting.gate = threading.Semaphore(0)
    stream = counting.decoder.astream(PROMPT, max_new_tokens=3)
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader at a time"):
        await anext(stream)
    counting.gate.release(100)
    text = (await first).text + "".join([chunk.text async for chunk in stream])
    assert text == stream.result.text


def test_an_asynchronous_stream_is_read_where_it_was_made():
    async def make():
        return tiny_decoder("llama-gqa").astream(PROMPT, max_new_tokens=3)

    async def read(stream):
        with pytest.raises(RuntimeError, match="in which `astream` was called"):
            await anext(stream)
        await stream.aclose()

    asyncio.run(asyncio.wait_for(read(asyncio.run(make())), 20))


def test_what_is_asked_when_python_ends_is_refused(
    counting: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    """`_leave` is called at exit, before functions that were registered before it."""

    class Leaving(threading.Event):
        def set(self) -> None:
            super().set()
            counting.gate.release(1000)

    counting.gate = threading.Semaphore(0)
    monkeypatch.setattr(worker, "_leaving", Leaving())
    monkeypatch.setattr(worker, "_serving", weakref.WeakKeyDictionary())
    futures = [counting.decoder.submit(PROMPT, max_new_tokens=300) for _ in range(12)]
    wait_until(lambda: counting.forwards)
    worker._leave()
    assert {str(future.exception(20)) for future in futures} == {worker.ENDED}
    for ask in (counting.decoder.generate, counting.decoder.submit, counting.decoder.stream):
        with pytest.raises(RuntimeError, match="before Python ends"):
            ask(PROMPT, max_new_tokens=2)


def test_a_request_that_comes_while_python_ends_is_not_left_waiting(
    monkeypatch: pytest.MonkeyPatch,
):
    class Leaving(threading.Event):
        """Is set by another thread between the first look and the second one."""

        looks = 0

        def is_set(self) -> bool:
            self.looks += 1
            return self.looks > 1

    decoder = Decoder(tiny_model("llama-gqa"), character_tokenizer())
    decoder.generate(PROMPT, max_new_tokens=1)
    monkeypatch.setattr(worker, "_serving", weakref.WeakKeyDictionary())
    monkeypatch.setattr(worker.Worker, "_is_serving", True)
    decoder._worker._queue = type(decoder._worker._queue)()  # nobody reads it any more
    monkeypatch.setattr(worker, "_leaving", Leaving())
    future = decoder.submit(PROMPT, max_new_tokens=1)
    assert str(future.exception(20)) == worker.ENDED
