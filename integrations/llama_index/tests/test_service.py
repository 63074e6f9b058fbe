"""Behaviour as a service: a live event loop, cancellation, errors, many users on one model."""

import asyncio
import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode

from integrations.llama_index.tests.probes import HashEmbedding
from integrations.llama_index.tests.scripted import ScriptedDecoder
from llama_index.llms.llma import LLMA, citations_of, prompts, references, results_of
from llama_index.llms.llma.spans import tree


@pytest.fixture
def llm(model, tokenizer):
    return LLMA(model=model, tokenizer=tokenizer, context_window=2048, max_new_tokens=200)


@pytest.fixture
def forwards(llm, model):
    """The threads of the model's forward passes; those of a self-test at loading do not count."""
    counted = []
    model.register_forward_pre_hook(
        lambda *details: counted.append(threading.current_thread().name)
    )
    return counted


@pytest.fixture
def broken(llm, model):
    def fail(*details):
        raise RuntimeError("out of memory, say")

    model.register_forward_pre_hook(fail)


async def settled(forwards):
    """The number of passes once the worker has stopped; each takes a few milliseconds."""
    before = -1
    while before != len(forwards):
        before = len(forwards)
        await asyncio.sleep(0.05)
    return before


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_event_loop_goes_on(llm, model, streaming):
    """A pass of the model waits for the loop here; a loop that waited for the model would hang."""
    begun, done = threading.Event(), threading.Event()

    def wait(*details):
        begun.set()
        assert done.wait(20), "the event loop stood still"

    async def work():
        while not begun.is_set():
            await asyncio.sleep(0.001)
        done.set()

    model.register_forward_pre_hook(wait)
    working = asyncio.create_task(work())
    if streaming:
        async for _ in await llm.astream_complete("hello", max_new_tokens=5):
            pass
    else:
        await llm.acomplete("hello", max_new_tokens=5)
    await working


@pytest.mark.parametrize("endpoint", ["acomplete", "astream_complete", "achat", "astream_chat"])
async def test_prompts_are_tokenized_off_the_event_loop(endpoint, monkeypatch):
    llm = LLMA(decoder=ScriptedDecoder())
    encode, threads = prompts.encode, []

    def watched(*args, **kwargs):
        threads.append(threading.current_thread())
        return encode(*args, **kwargs)

    monkeypatch.setattr(prompts, "encode", watched)
    asked = "q" if "complete" in endpoint else [ChatMessage(content="q")]
    with references(["a text"]):
        answer = await getattr(llm, endpoint)(asked)
        if "stream" in endpoint:
            async for _ in answer:
                pass
    assert threads
    assert threading.current_thread() not in threads
    assert [reference.text for reference in llm.decoder.calls[0].references] == ["a text"]


@pytest.mark.parametrize("chunks", [1, 3])
async def test_closing_a_stream_stops_the_model(llm, forwards, chunks):
    stream = llm.stream_complete("hello")
    for _ in range(chunks):
        next(stream)
    stream.close()
    closed = len(forwards)
    assert await settled(forwards) <= closed + 1
    assert closed < 60


async def test_dropping_a_stream_stops_the_model(llm, forwards):
    """Nobody closes it: the reader only forgets it, as after a `break`."""
    stream = llm.stream_complete("hello")
    next(stream)
    del stream
    gc.collect()
    dropped = len(forwards)
    assert await settled(forwards) <= dropped + 1
    assert dropped < 60


async def test_leaving_an_asynchronous_stream_stops_the_model(llm, forwards):
    stream = await llm.astream_chat([ChatMessage(content="hello")])
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0)
    closed = len(forwards)
    assert await settled(forwards) <= closed + 1
    assert closed < 60


async def test_cancelling_a_task_stops_the_model(llm, forwards):
    task = asyncio.create_task(llm.acomplete("hello"))
    while len(forwards) < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled = len(forwards)
    assert await settled(forwards) <= cancelled + 1
    assert (await llm.acomplete("x", max_new_tokens=1)).raw["finish_reason"] == "length"


async def test_a_stream_that_nobody_reads_runs_nothing(llm, forwards):
    llm.stream_complete("hello")
    await llm.astream_complete("hello")
    assert await settled(forwards) == 0


def drained(llm):
    return list(llm.stream_complete("x"))


async def adrained(llm):
    return [chunk async for chunk in await llm.astream_complete("x")]


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("call", [lambda llm: llm.complete("x"), drained])
def test_an_error_of_the_model_reaches_the_caller(llm, call):
    with pytest.raises(RuntimeError, match="out of memory, say"):
        call(llm)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("call", [lambda llm: llm.acomplete("x"), adrained])
async def test_an_error_of_the_model_reaches_the_awaiting_caller(llm, call):
    with pytest.raises(RuntimeError, match="out of memory, say"):
        await asyncio.wait_for(call(llm), 5)


@pytest.mark.usefixtures("broken")
def test_an_error_of_the_model_leaves_no_span_open(llm):
    index = VectorStoreIndex([TextNode(text="a text")], embed_model=HashEmbedding())
    with pytest.raises(RuntimeError, match="out of memory, say"):
        index.as_query_engine(llm=llm).query("a")
    assert len(tree) == 0


def test_two_streams_open_on_one_thread(llm):
    first, second = llm.stream_complete("one"), llm.stream_complete("two")
    texts = ["", ""]
    for chunks in itertools.zip_longest(first, second):
        for i, chunk in enumerate(chunks):
            texts[i] += chunk.delta if chunk else ""
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert texts == [llm.complete("one").text, llm.complete("two").text]


def test_only_the_worker_runs_the_model(llm, forwards):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: llm.complete(f"{i}", max_new_tokens=3), range(8)))
    assert len(set(forwards)) == 1


class Watched:
    """Passes calls on to a decoder and notes prompt and references of each."""

    def __init__(self, decoder):
        self.decoder = decoder
        self.calls = []

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def generate(self, prompt, **arguments):
        self.calls.append((prompt, arguments["references"]))
        return self.decoder.generate(prompt, **arguments)

    async def agenerate(self, prompt, **arguments):
        self.calls.append((prompt, arguments["references"]))
        return await self.decoder.agenerate(prompt, **arguments)


@pytest.mark.slow
def test_many_users_never_meet(model, tokenizer):
    """1,000 queries from 16 threads and one loop; every user's node holds a canary of its own.

    A draft comes from the call's references, its prompt and its own answer only, so that it is
    enough that no call is given a foreign text.
    """
    users = 50
    watched = Watched(LLMA(model=model, tokenizer=tokenizer).decoder)
    llm = LLMA(decoder=watched, max_new_tokens=2, min_citation_chars=1)
    template = PromptTemplate("{context_str} {query_str}")
    engines = []
    for user in range(users):
        node = TextNode(text=f"canary{user:03d} sings", id_=f"n{user:03d}")
        index = VectorStoreIndex([node], embed_model=HashEmbedding())
        engines.append(index.as_query_engine(llm=llm, text_qa_template=template))

    def judge(i, response):
        own = f"n{i % users:03d}"
        assert {node.node_id for node in response.source_nodes} == {own}
        assert {citation.node_id for citation in citations_of(response)} <= {own}
        assert len(results_of(response)) == 1
        return 1

    def ask(i):
        return judge(i, engines[i % users].query(f"q{i}"))

    async def ask_in_loop():
        answers = await asyncio.gather(*(engines[i % users].aquery(f"q{i}") for i in range(200)))
        return sum(judge(i, answer) for i, answer in enumerate(answers))

    with ThreadPoolExecutor(17) as pool:
        in_loop = pool.submit(asyncio.run, ask_in_loop())
        in_threads = sum(pool.map(ask, range(800)))
        assert in_threads + in_loop.result() == 1000
    assert len(watched.calls) == 1000
    for prompt, given in watched.calls:
        (reference,) = given
        assert reference.text in tokenizer.decode(prompt)
    assert len(tree) == 0
