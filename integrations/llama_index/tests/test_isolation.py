import asyncio
import gc
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode

from integrations.llama_index.tests import leaks
from integrations.llama_index.tests.leaks import engine, question
from integrations.llama_index.tests.matrix import in_fresh_context
from integrations.llama_index.tests.probes import FailingLLM, ProbeLLM, adrain, corpus, drain
from integrations.llama_index.tests.scripted import ScriptedDecoder
from llama_index.llms.llma import LLMA, ambient, citations_of, handler, references, spans
from llama_index.llms.llma.capture import find_references
from llama_index.llms.llma.captured import (
    MAX_CAPTURED,
    MAX_CHARACTERS,
    MAX_NODES,
    snapshot,
    stands_in,
)
from llama_index.llms.llma.spans import SpanTree, tree
from llama_index.llms.llma.streams import active_stream

counts_of = cache(leaks.run_program)


@pytest.mark.parametrize("program", leaks.PROGRAMS, ids=lambda program: program.__name__)
def test_no_call_sees_another_users_node(program):
    counts = counts_of(program)
    assert all(count.calls for count in counts)
    assert [(count.leaks, count.misses) for count in counts] == [(0, 0)] * len(counts)
    assert len(tree) == 0


def test_nineteen_leak_tests():
    """The documentation speaks of nineteen."""
    assert sum(len(counts_of(program)) for program in leaks.PROGRAMS) == 19


def test_a_failing_model_leaves_no_span_open():
    llm = FailingLLM()
    for _ in range(20):
        with pytest.raises(RuntimeError, match="The model failed"):
            engine(llm, leaks.TAGS[0]).query(question(leaks.TAGS[0]))
    assert len(tree) == 0


async def cancelled_after(steps, coroutine):
    task = asyncio.create_task(coroutine)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return task


@pytest.mark.parametrize("steps", range(6))
async def test_cancelled_queries_leave_no_span_open(steps):
    llm, tag = ProbeLLM(), leaks.TAGS[0]
    await cancelled_after(steps, engine(llm, tag).aquery(question(tag)))
    response = await engine(llm, tag, streaming=True).aquery(question(tag))
    await cancelled_after(steps, adrain(response))
    assert len(tree) == 0
    assert active_stream.get() is None


def test_an_abandoned_stream_leaves_no_span_open():
    llm, tag = ProbeLLM(), leaks.TAGS[0]
    response = engine(llm, tag, streaming=True).query(question(tag))
    next(response.response_gen)
    del response
    gc.collect()
    assert len(tree) == 0
    assert active_stream.get() is None


async def test_running_a_workflow_leaves_no_span_active():
    before = active_span_id.get()
    await leaks.Serving(ProbeLLM(), gathered=True).run()
    assert len(tree) == 0
    assert active_span_id.get() == before or tree.get(active_span_id.get()) is None


def test_memory_does_not_grow_with_queries():
    """A leak of one node per query would be at least 120 x 1 KiB; caches of the core may fill."""
    llm = ProbeLLM()

    def burst(queries):
        for i in range(queries):
            tag = leaks.user(i)
            engine(llm, tag).query(question(tag))
            llm.calls.clear()
        gc.collect()

    burst(20)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        burst(120)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 64 * 1024


def scored(nodes):
    return [NodeWithScore(node=node, score=1.0) for node in nodes]


def test_the_number_of_references_of_a_call_is_bounded():
    with references(scored(corpus(size=10, length=1)) * 20):
        assert len(find_references("", automatic=False).nodes) == 10
    with references([f"text {i}" for i in range(1000)]):
        assert len(find_references("", automatic=False).nodes) == MAX_NODES
    with references(["x" * (MAX_CHARACTERS // 2 - 1), "y" * (MAX_CHARACTERS // 2), "z z"]):
        assert len(find_references("", automatic=False).nodes) == 2


def test_of_too_many_nodes_those_in_the_prompt_come_first():
    nodes = [TextNode(text=f"The {i}th passage.", id_=str(i)) for i in range(5 * MAX_NODES)]
    prompt = " ".join(node.text for node in nodes[200:203])
    with references(scored(nodes)):
        found = find_references(prompt, automatic=False).nodes
    expected = [*range(200, 203), *range(MAX_NODES - 3)]
    assert [int(node.id) for node in found] == expected
    few = scored(nodes[:3])
    with references(few):
        found = find_references(nodes[2].text, automatic=False).nodes
    assert [int(node.id) for node in found] == [0, 1, 2]


def test_of_too_many_characters_those_in_the_prompt_come_first():
    with references(["in the prompt"]), references(["x" * MAX_CHARACTERS]):
        found = find_references("It stands in the prompt.", automatic=False).nodes
    assert [node.text for node in found] == ["in the prompt"]


@pytest.mark.parametrize("mode", ["refine", "accumulate"])
def test_every_call_over_many_nodes_has_its_own(mode):
    nodes = [TextNode(text=f"The {i}th passage of all.", id_=str(i)) for i in range(150)]
    llm = LLMA(decoder=ScriptedDecoder())
    RetrieverQueryEngine.from_args(
        StaticRetriever(scored(nodes)), llm=llm, response_mode=mode
    ).query("q")
    assert len(llm.decoder.calls) == len(nodes)
    for node, call in zip(nodes, llm.decoder.calls, strict=True):
        assert node.id_ in {reference.id for reference in call.references}
        assert len(call.references) == MAX_NODES


def test_nodes_of_a_capture_are_bounded():
    assert len(snapshot(["text"] * (2 * MAX_CAPTURED)).nodes) == MAX_CAPTURED
    assert len(snapshot(["x" * (MAX_CHARACTERS // 2)] * 3).nodes) == 2


def test_open_spans_are_bounded(monkeypatch):
    monkeypatch.setattr(spans, "MAX_SPANS", 3)
    small = SpanTree()
    for i in range(5):
        small.open(str(i), None)
    assert [small.get(str(i)) is not None for i in range(5)] == [False, False, True, True, True]


def test_captures_of_a_span_are_bounded():
    small = SpanTree()
    span = small.open("a", None)
    for i in range(spans.MAX_CAPTURES + 5):
        small.capture(span, i)
    assert small.visible(span) == tuple(range(spans.MAX_CAPTURES + 4, 4, -1))


def test_siblings_that_run_at_once_do_not_see_each_other():
    """Kills the mutant that compares an arrival with the present instead of the entry."""
    small = SpanTree()
    root = small.open("root", None)
    first = small.open("first", root)
    second = small.open("second", root)
    small.capture(first, "first's")
    small.hand_up(first)
    third = small.open("third", root)
    assert small.visible(second) == ()
    assert small.visible(third) == ("first's",)


class Unreadable(TextNode):
    def get_content(self, *args, **kwargs):
        raise OSError("The store is gone.")


def test_what_a_handler_meets_never_reaches_the_caller():
    """A node whose text cannot be read, arguments and results of an unknown shape."""
    llm, tag = ProbeLLM(), leaks.TAGS[0]
    nodes = scored(corpus(tag, 2))
    broken = NodeWithScore(node=Unreadable(text="unreadable"), score=1.0)
    with references([broken, None, 7, b"bytes", "", "  ", *nodes]):
        assert len(find_references("x").nodes) == 2
    argument = SimpleNamespace(arguments=None)
    handler._handler.span_enter(
        "X.synthesize-" + "0" * 36, argument, engine(llm, tag)._response_synthesizer
    )
    handler._handler.span_exit("X.synthesize-" + "0" * 36, argument, object(), result=object())
    assert len(tree) == 0


def test_one_handler_is_installed_however_many_llms_are_made():
    ProbeLLM()
    ProbeLLM()
    installed = [h for h in get_dispatcher().span_handlers if h is handler._handler]
    assert len(installed) == 1


def test_the_ambient_context_gives_only_what_stands_in_the_prompt():
    def program():
        tag = leaks.TAGS[0]
        nodes = leaks.INDEXES[tag].as_retriever(similarity_top_k=2).retrieve(question(tag))
        inside = nodes[0].node.get_content()
        return [node.id for node in find_references(inside).nodes], nodes[0].node.node_id

    seen, expected = in_fresh_context(program)
    assert seen == [expected]


def test_of_equal_texts_in_the_ambient_context_the_newest_counts():
    def program():
        text = "the same text in two tenants"
        for tag in "AB":
            node = TextNode(text=text, id_=f"{tag}-secret")
            ambient.remember((snapshot([node]),))
        return [node.id for node in find_references(text).nodes]

    assert in_fresh_context(program) == ["B-secret"]


def own_retriever(user, *texts):
    nodes = [TextNode(text=text, id_=f"{user}-{i}") for i, text in enumerate(texts)]
    return StaticRetriever(scored(nodes))


class StaticRetriever(BaseRetriever):
    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle):
        return self.nodes


TERMS = "All deliveries are subject to the standard terms of two thousand twenty-three, always."


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
def test_an_engine_leaves_nothing_behind_in_its_thread(mode, streaming):
    """The next user of the thread writes the same text, but owns no node of it."""
    llm = LLMA(decoder=ScriptedDecoder())
    asked = RetrieverQueryEngine.from_args(
        own_retriever("A", TERMS), llm=llm, response_mode=mode, streaming=streaming
    )
    chat = ContextChatEngine.from_defaults(
        retriever=own_retriever("A", TERMS), llm=llm, memory=ChatMemoryBuffer.from_defaults()
    )
    other = SimpleChatEngine.from_defaults(llm=llm, memory=ChatMemoryBuffer.from_defaults())
    with ThreadPoolExecutor(1) as pool:
        for ask in (asked.query, chat.chat, lambda q: drain(chat.stream_chat(q))):
            pool.submit(ask, "q").result()
            bare = pool.submit(llm.complete, f"My file: {TERMS}").result()
            assert (bare.raw["llma"]["reach"], bare.raw["llma"]["citations"]) == ("none", [])
            assert citations_of(pool.submit(other.chat, f"My file: {TERMS}").result()) == []


def test_what_a_bare_retrieval_found_makes_way_for_the_next_once_a_model_was_called():
    """A pooled thread serves one user after the other in bare statements."""
    llm = LLMA(decoder=ScriptedDecoder())

    def serve(user, *texts):
        nodes = own_retriever(user, *texts).retrieve("q")
        llm.complete(" ".join(node.text for node in nodes))
        llm.complete(f"{nodes[0].text} {TERMS}")
        return [[reference.id for reference in call.references] for call in llm.decoder.calls[-2:]]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(serve, "A", TERMS, "more of A").result() == [["A-0", "A-1"], ["A-0"]]
        assert pool.submit(serve, "B", "other", "more of B").result() == [["B-0", "B-1"], ["B-0"]]


def test_bare_retrievals_before_a_call_join():
    llm = LLMA(decoder=ScriptedDecoder())

    def program():
        for user in "AB":
            own_retriever(user, f"{user} text").retrieve("q")
        llm.complete("A text, B text")

    in_fresh_context(program)
    assert {reference.id for reference in llm.decoder.calls[0].references} == {"A-0", "B-0"}


def test_calls_side_by_side_all_see_what_was_retrieved_before_them():
    """Also where one of them retrieves more after another has called the model."""
    llm = LLMA(decoder=ScriptedDecoder())

    async def more(user, before, done):
        await before.wait()
        own_retriever(user, f"{user} text").retrieve("q")
        await llm.acomplete(f"the text, {user} text")
        done.set()

    async def program():
        own_retriever("all", "the text").retrieve("q")
        first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()
        first.set()
        await asyncio.gather(more("A", first, second), more("B", second, third))

    in_fresh_context(program)
    found = [{reference.id for reference in call.references} for call in llm.decoder.calls]
    assert found == [{"A-0", "all-0"}, {"B-0", "all-0"}]


def test_a_common_letterhead_does_not_bring_another_users_node():
    """One pooled thread serves both; the second prompt holds a part of the first user's node."""

    def program():
        head = "A letterhead that is longer than every probe of a text would be. " * 3
        for tag in "AB":
            ambient.remember((snapshot([TextNode(text=f"{head} {tag}'s secret", id_=tag)]),))
        return [node.id for node in find_references(f"{head} B's secret, a question").nodes]

    assert in_fresh_context(program) == ["B"]


def test_the_ambient_context_is_bounded():
    def program():
        for _ in range(20):
            ambient.remember((("a",), ("b",), ("c",)))
        return len(ambient._ambient.get().captures)

    assert in_fresh_context(program) == ambient.MAX_AMBIENT


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("", "anything", False),
        (" short ", "a short text", True),
        ("short", "a text", False),
        ("a" * 100 + "b" * 100, "x" + "a" * 100 + "b" * 100, True),
        ("a" * 100 + "b" * 100, "a" * 100 + "b" * 99, False),
    ],
)
def test_stands_in(text, prompt, expected):
    assert stands_in(text, prompt) is expected


def test_a_stream_closed_in_another_thread_closes_its_source():
    llm, tag = ProbeLLM(), leaks.TAGS[0]
    response = engine(llm, tag, streaming=True).query(question(tag))
    next(response.response_gen)
    thread = threading.Thread(target=response.response_gen.close)
    thread.start()
    thread.join()
    assert drain(response) == ""
