"""What is harvested, how near it counts, and how capture is switched off."""

import copy
import importlib
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.callbacks.manager import AsyncCallbackManager
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import context as tracers_context
from pydantic import BaseModel

from integrations.langchain.tests.matrix import filled, rag
from integrations.langchain.tests.probes import (
    ProbeDecoder,
    UserRetriever,
    chat,
    of,
    text_model,
)
from langchain_llma import LLMA, no_capture
from langchain_llma.capture import HANDLER, CaptureHandler
from langchain_llma.harvesting import harvest
from langchain_llma.run_tree import MAX_DOCUMENTS, RunTree
from langchain_llma.scopes import captured_documents, parent_of

DOCUMENT = Document(page_content="a passage", id="1")


@dataclass
class DataState:
    docs: list[Document] = field(default_factory=list)


@dataclass(slots=True)
class SlottedState:
    docs: list[Document] = field(default_factory=list)


class PydanticState(BaseModel):
    docs: list[Document] = []


@pytest.mark.parametrize(
    "value",
    [
        DOCUMENT,
        [DOCUMENT],
        (DOCUMENT, 0.5),
        {"a": {"b": [DOCUMENT]}},
        DataState([DOCUMENT]),
        SlottedState([DOCUMENT]),
        PydanticState(docs=[DOCUMENT]),
        ToolMessage("text", tool_call_id="1", artifact=[DOCUMENT]),
        {"page_content": "a passage", "metadata": {}, "id": "1"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_documents_are_found_in(value: object) -> None:
    assert harvest(value) == [DOCUMENT]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "a passage",
        {"page_content": 3, "metadata": {}},
        {"page_content": "a passage"},
        [[[[[DOCUMENT]]]]],
        UserRetriever(metadata={"docs": [DOCUMENT]}),
        HumanMessage("text", additional_kwargs={"docs": [DOCUMENT]}),
        DataState,
    ],
    ids=str,
)
def test_no_document_is_found_in(value: object) -> None:
    assert harvest(value) == []


def test_harvesting_is_bounded() -> None:
    assert len(harvest([[Document(str(i)) for i in range(60)] for _ in range(60)])) == 64
    deep: Any = {}
    for _ in range(10_000):
        deep = {"a": deep, "b": [deep] * 3}
    assert harvest(deep) == []


def test_harvesting_survives_broken_fields() -> None:
    @dataclass
    class Broken:
        docs: list[Document] = field(default_factory=list)

        def __getattribute__(self, name: str) -> Any:
            if name == "docs":
                raise RuntimeError
            return super().__getattribute__(name)

    assert harvest(Broken()) == []


def test_the_nearest_common_ancestor_counts() -> None:
    tree, (root, left, right, leaf) = RunTree(), (uuid4() for _ in range(4))
    tree.open(root, None)
    tree.record(tree.open(left, root), [Document("left")], "chain")
    tree.record(tree.open(right, root), [Document("right")], "chain")
    tree.open(leaf, right)
    near = [(sighting.document.page_content, sighting.distance) for sighting in tree.near(leaf)]
    assert near == [("right", 1), ("left", 2)]


def _near(tree: RunTree, run_id: Any) -> list[str]:
    return [sighting.document.page_content for sighting in tree.near(run_id)]


def test_a_run_keeps_its_latest_documents_and_the_best_of_a_ranking() -> None:
    tree, root = RunTree(), uuid4()
    run = tree.open(root, None)
    for number in range(300):
        tree.record(run, [Document(str(number))], "chain")
    assert _near(tree, root) == [str(number) for number in range(299, 299 - MAX_DOCUMENTS, -1)]
    tree.record(run, [Document(str(number)) for number in range(1000, 1300)], "retriever")
    assert _near(tree, root) == [str(number) for number in range(1000, 1000 + MAX_DOCUMENTS)]


def test_a_call_gets_the_nearest_documents() -> None:
    """Each level keeps as many as one call gets."""
    tree, (root, leaf) = RunTree(), (uuid4() for _ in range(2))
    above, below = tree.open(root, None), tree.open(leaf, root)
    tree.record(below, [Document(f"near {number}") for number in range(200)], "chain")
    tree.record(above, [Document(f"far {number}") for number in range(200)], "chain")
    near = _near(tree, leaf)
    assert near[:200] == [f"near {number}" for number in range(200)]
    assert near[200:] == [f"far {number}" for number in range(MAX_DOCUMENTS - 200)]


def test_a_retrievers_word_outranks_others() -> None:
    tree, (root, left, right) = RunTree(), (uuid4() for _ in range(3))
    tree.open(root, None)
    shown = [Document("second"), Document("first")]
    below = tree.open(left, root)
    tree.record(below, shown, "chain")
    tree.record(below, shown[::-1], "retriever")
    tree.record(tree.open(right, root), shown, "chain")
    near = [(each.document.page_content, each.origin, each.distance) for each in tree.near(right)]
    assert near == [("second", "retriever", 0), ("first", "retriever", 0)]
    assert _near(tree, root) == ["first", "second"]


def test_a_run_that_ended_answers_nothing() -> None:
    tree, root = RunTree(), uuid4()
    tree.record(tree.open(root, None), [DOCUMENT], "chain")
    tree.close(root)
    assert tree.near(root) == []


def test_equal_documents_count_once_but_not_those_of_two_sources() -> None:
    root = uuid4()
    copies = [Document("text", metadata={"source": source}) for source in ("a", "a", "b")]
    HANDLER.tree.record(HANDLER.tree.open(root, None), copies, "chain")
    found = captured_documents("", root)
    HANDLER.tree.close(root)
    assert sorted(entry.document.metadata["source"] for entry in found) == ["a", "b"]


@pytest.mark.parametrize("off", ["context", "field", "environment"])
def test_capture_can_be_switched_off(
    off: str, decoder: ProbeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if off == "environment":
        monkeypatch.setenv("LLMA_RAG_CAPTURE", "0")
    fields = {"capture": False} if off == "field" else {}
    with no_capture() if off == "context" else nullcontext():
        rag(chat(decoder, **fields)).invoke("u1")
        list(rag(text_model(decoder, **fields)).stream("u1"))
        chat(decoder, **fields).invoke(filled(UserRetriever().invoke("u1")))
    assert [request.marks for request in decoder.requests] == [frozenset()] * 3
    if off == "context":
        rag(chat(decoder)).invoke("u1")
        assert decoder.requests[-1].marks == of("u1")[0]


def test_a_whole_ranking_is_captured(decoder: ProbeDecoder) -> None:
    """Also one that is longer than what is looked for in other values, the best first."""

    class Ranked(UserRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document(f"passage {n}.", metadata={"m": str(n)}) for n in range(300)]

    ranks = [str(number) for number in range(MAX_DOCUMENTS)]
    rag(chat(decoder), Ranked()).invoke("u1")
    chat(decoder).invoke(filled(Ranked().invoke("u1")))
    for request in decoder.requests:
        assert [reference.metadata["m"] for reference in request.references] == ranks
    assert harvest([Document(str(number)) for number in range(300)])[0].page_content == "0"


def test_of_a_conversation_the_latest_messages_are_searched() -> None:
    messages = [
        ToolMessage("text", tool_call_id="1", artifact=Document(str(number)))
        for number in range(300)
    ]
    assert harvest(messages)[-1].page_content == "299"


@pytest.mark.parametrize("seen_by", ["the model", "a runnable too"])
def test_documents_of_earlier_turns_come_after_new_ones(
    decoder: ProbeDecoder, seen_by: str
) -> None:
    """A tool may tell in its own words what it found, while an old artifact is still there."""
    llm = chat(decoder)
    old = ToolMessage("it ends", tool_call_id="1", artifact=[Document("old", metadata={"m": "o"})])

    def ask(messages: Any) -> Any:
        return llm.invoke(messages)

    def answer(question: str) -> Any:
        RunnableLambda(lambda text: UserRetriever().invoke(text) and "in other words").invoke("u1")
        messages = [HumanMessage("hi"), old, HumanMessage(question)]
        return RunnableLambda(ask).invoke(messages) if seen_by != "the model" else ask(messages)

    RunnableLambda(answer).invoke("more")
    marks = [reference.metadata["m"] for reference in decoder.requests[0].references]
    assert marks == ["u1#0", "u1#1", "o"]


def test_no_capture_inside_a_running_chain(decoder: ProbeDecoder) -> None:
    llm = chat(decoder)

    def answer(question: str) -> Any:
        prompt = filled(UserRetriever().invoke(question))
        with no_capture():
            return llm.invoke(prompt)

    RunnableLambda(answer).invoke("u1")
    assert decoder.requests[0].marks == frozenset()


def test_an_unannounced_conversation_is_found_by_the_ambient_config() -> None:
    def ask(question: str) -> int:
        UserRetriever().invoke(question)
        return len(captured_documents("", parent_of(None, [HumanMessage("never announced")])))

    assert RunnableLambda(ask).invoke("u1") == 2


def test_the_environment_keeps_the_handler_out() -> None:
    program = (
        "import langchain_llma; from langchain_core.callbacks.manager import CallbackManager;"
        "print(len(CallbackManager.configure().handlers))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    counts = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "LLMA_RAG_CAPTURE": value},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for value in ("0", "1")
    ]
    assert counts == ["0", "1"]


def test_the_handler_is_one_per_process() -> None:
    assert copy.copy(HANDLER) is HANDLER
    assert copy.deepcopy({"callbacks": [HANDLER]})["callbacks"][0] is HANDLER
    assert pickle.loads(pickle.dumps(HANDLER)) is HANDLER


def test_a_reload_registers_no_second_handler() -> None:
    from langchain_llma import capture

    hooks = len(tracers_context._configure_hooks)
    before = capture.HANDLER
    kept = dict(vars(capture))
    importlib.reload(capture)
    assert capture.HANDLER is before
    assert len(tracers_context._configure_hooks) == hooks
    vars(capture).update(kept)


class Listener(AsyncCallbackHandler):
    """A user's handler."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("start")

    async def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("token")

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("end")


async def test_the_users_own_handlers_hear_everything(decoder: ProbeDecoder) -> None:
    listener = Listener()
    await text_model(decoder).ainvoke("hello", {"callbacks": [listener]})
    assert listener.events == ["start", "end"]


async def test_core_still_drops_handlers_beside_an_inline_one(decoder: ProbeDecoder) -> None:
    """Langchain issue 39633: when this fails, `CaptureHandler.run_inline` can be a plain True."""
    inline = CaptureHandler(RunTree())
    inline.__class__ = type("Inline", (CaptureHandler,), {"run_inline": True})
    listener = Listener()
    manager = AsyncCallbackManager([inline, listener])
    await manager.on_llm_start({}, ["hello"])
    assert listener.events == []


def test_core_still_batches_with_the_first_run_manager_only(decoder: ProbeDecoder) -> None:
    """When this fails, `scopes.each_prompt_with_its_caller` is not needed any more."""
    seen = []

    class Watched(LLMA):
        def _generate(
            self, prompts: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
        ) -> Any:
            seen.append((len(prompts), type(run_manager).__name__))
            return super()._generate(prompts, stop, run_manager, **kwargs)

    Watched.from_decoder(decoder).batch(["one", "two"])
    assert seen == [(2, "CallbackManagerForLLMRun")]


async def test_core_still_streams_without_a_run_manager(decoder: ProbeDecoder) -> None:
    """When this fails, `scopes.parent_of` no longer needs what `on_chat_model_start` saw."""
    seen = []

    class Watched(type(chat(decoder))):  # type: ignore[misc]
        def _stream(self, *args: Any, run_manager: Any = None, **kwargs: Any) -> Any:
            seen.append(run_manager)
            return super()._stream(*args, run_manager=run_manager, **kwargs)

    list(Watched.from_decoder(decoder).stream("hello"))
    assert seen == [None]
