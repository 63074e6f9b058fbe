import asyncio
import gc
import threading
import tracemalloc
from functools import cache
from types import SimpleNamespace

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore, TextNode

from integrations.llama_index.tests import leaks
from integrations.llama_index.tests.leaks import engine, question
from integrations.llama_index.tests.matrix import in_fresh_context
from integrations.llama_index.tests.probes import FailingLLM, ProbeLLM, adrain, corpus, drain
from llama_index.llms.llma import ambient, handler, references, spans
from llama_index.llms.llma.ambient import stands_in
from llama_index.llms.llma.capture import find_references
from llama_index.llms.llma.captured import MAX_CHARACTERS, MAX_NODES, snapshot
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
        return len(ambient._ambient.get())

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
