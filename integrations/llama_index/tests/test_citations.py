import gc
import threading
import weakref
from dataclasses import replace

import pytest
from llama_index.core.base.llms.types import CitationBlock, TextBlock
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode

from integrations.llama_index.tests.probes import adrain, drain, make_index
from integrations.llama_index.tests.scripted import FIRST, LAST, ScriptedDecoder
from llama_index.llms.llma import LLMA, Citation, citations, citations_of, results_of
from llama_index.llms.llma.answers import (
    MAX_ANSWERS,
    MAX_RESULTS,
    Answer,
    in_order,
    joined,
    numbers,
)
from llama_index.llms.llma.citations import attach
from llma_rag import CopiedSpan

MODES = ("compact", "refine", "tree_summarize", "simple_summarize", "accumulate")
INDEX = make_index(size=3, length=30)
QUESTION = "alpha topic"
MESSAGES = [ChatMessage(content=QUESTION)]


@pytest.fixture(params=[False, True], ids=["completion", "chat-model"])
def llm(request):
    return LLMA(decoder=ScriptedDecoder(), is_chat_model=request.param)


def engine(llm, **options):
    return INDEX.as_query_engine(llm=llm, similarity_top_k=3, **options)


def check(response, text):
    """Every citation names the same characters of the answer and of the node."""
    found = citations_of(response)
    assert found
    # Chat engines forget the sources of an AsyncStreamingResponse.
    sources = [node.node for node in response.source_nodes] or INDEX.docstore.docs.values()
    nodes = {node.node_id: node for node in sources}
    for citation in found:
        source = nodes[citation.node_id]
        assert text[citation.start : citation.end] == citation.text
        assert source.text[citation.node_start : citation.node_end] == citation.text
        assert (citation.node_start, citation.node_end) == (FIRST, LAST)
        assert citation.node is source or citation.node.text == source.text
        assert citation.title.startswith("doc")
        assert citation.number == 2
    assert len(results_of(response)) >= 1
    return found


@pytest.mark.parametrize("mode", MODES)
async def test_citations_of_a_response(llm, mode):
    response = engine(llm, response_mode=mode).query(QUESTION)
    check(response, str(response))
    response = await engine(llm, response_mode=mode).aquery(QUESTION)
    check(response, str(response))


@pytest.mark.parametrize("mode", MODES[:-1])
async def test_citations_of_a_streamed_response(llm, mode):
    response = engine(llm, response_mode=mode, streaming=True).query(QUESTION)
    assert citations_of(response) == []
    check(response, drain(response))
    response = await engine(llm, response_mode=mode, streaming=True).aquery(QUESTION)
    check(response, await adrain(response))


def test_citations_of_a_response_streamed_in_another_thread(llm):
    response = engine(llm, streaming=True).query(QUESTION)
    texts = []
    thread = threading.Thread(target=lambda: texts.append(drain(response)))
    thread.start()
    thread.join()
    check(response, texts[0])


async def test_citations_of_an_accumulated_response_made_inside_a_loop(llm):
    response = engine(llm, response_mode="accumulate", use_async=True).query(QUESTION)
    check(response, str(response))


def test_each_of_several_equal_answers_is_cited(llm):
    """`accumulate` joins one answer per node; here all of them read the same."""
    response = engine(llm, response_mode="accumulate").query(QUESTION)
    found = check(response, str(response))
    answers = len(results_of(response))
    assert answers > 1
    assert len({citation.start for citation in found}) == answers


@pytest.mark.parametrize("streaming", [False, True])
async def test_results_of_a_refined_response(llm, streaming):
    """One per call of the model, in their order: the first two are over before it is read."""
    for ask in (asked_here, asked_in_loop):
        llm.decoder.calls.clear()
        response = await ask(engine(llm, response_mode="refine", streaming=streaming))
        assert len(llm.decoder.calls) == 3
        asked = [result.stats.prompt_tokens for result in results_of(response)]
        assert asked == [len(call.prompt) for call in llm.decoder.calls]


async def asked_here(engine):
    response = engine.query(QUESTION)
    str(response)
    return response


async def asked_in_loop(engine):
    response = await engine.aquery(QUESTION)
    if hasattr(response, "async_response_gen"):
        await adrain(response)
    return response


async def test_a_streamed_response_hands_its_citations_on(llm):
    """Also where nobody keeps the streamed one."""
    asked = engine(llm, response_mode="refine", streaming=True)
    whole = asked.query(QUESTION).get_response()
    check(whole, str(whole))
    assert len(results_of(whole)) == 3
    whole = await (await asked.aquery(QUESTION)).get_response()
    check(whole, str(whole))
    assert len(results_of(whole)) == 3
    streamed = asked.query(QUESTION)
    text = str(streamed)
    assert citations_of(streamed.get_response()) == check(streamed, text)


def test_a_streamed_response_is_freed_at_once(llm):
    """A cycle would keep the model of a stream that nobody reads any more busy."""
    streamed = engine(llm, streaming=True).query(QUESTION)
    gone = weakref.ref(streamed)
    del streamed
    assert gone() is None


def test_citations_of_many_answers():
    """The newest results are kept, the citations of all."""
    size = 2 * MAX_RESULTS
    nodes = [TextNode(text=f"{i:03d} a passage that is copied", id_=str(i)) for i in range(size)]
    llm = LLMA(decoder=CopyingDecoder(), min_citation_chars=1)
    synthesizer = get_response_synthesizer(llm=llm, response_mode="accumulate")
    response = synthesizer.synthesize("q", [NodeWithScore(node=node) for node in nodes])
    found = citations_of(response)
    assert [citation.node_id for citation in found] == [node.node_id for node in nodes]
    assert all(str(response)[c.start : c.end] == c.text for c in found)
    texts = [result.text for result in results_of(response)]
    assert texts == [node.text for node in nodes[-MAX_RESULTS:]]


class CopyingDecoder(ScriptedDecoder):
    """Copies the last reference that stands in its prompt."""

    def generate(self, prompt, *, references=(), **options):
        asked = self.tokenizer.decode(prompt)
        index = max(i for i, one in enumerate(references) if one.text in asked)
        text = references[index].text
        span = CopiedSpan(0, len(text), references[index].id, index, 0, len(text))
        result = super().generate(prompt, references=references, **options)
        return replace(result, text=text, copied_spans=(span,))


def test_remembered_answers_are_bounded():
    result = ScriptedDecoder().generate([1])
    answers = ()
    for number in range(MAX_ANSWERS + 3):
        answers = joined(answers, [Answer("x", (), result, number)])
    assert [one.number for one in answers] == list(range(3, MAX_ANSWERS + 3))
    assert [one.result for one in answers].count(result) == MAX_RESULTS
    assert answers[-1].result is result
    assert in_order((*answers[5:], *answers[:9])) == answers


def chat_engine(cls, llm, **options):
    memory = ChatMemoryBuffer.from_defaults()
    if cls is CondenseQuestionChatEngine:
        asked = engine(llm, **options)
        return cls.from_defaults(query_engine=asked, llm=llm, memory=memory)
    retriever = INDEX.as_retriever(similarity_top_k=3)
    return cls.from_defaults(retriever=retriever, llm=llm, memory=memory)


CHAT_ENGINES = (ContextChatEngine, CondensePlusContextChatEngine, CondenseQuestionChatEngine)


@pytest.mark.parametrize("cls", CHAT_ENGINES)
async def test_citations_of_a_chat_response(llm, cls):
    response = chat_engine(cls, llm).chat(QUESTION)
    check(response, str(response))
    response = await chat_engine(cls, llm).achat(QUESTION)
    check(response, str(response))


@pytest.mark.parametrize("cls", CHAT_ENGINES)
async def test_citations_of_a_streamed_chat_response(llm, cls):
    response = chat_engine(cls, llm, streaming=True).stream_chat(QUESTION)
    check(response, drain(response).strip())
    response = await chat_engine(cls, llm, streaming=True).astream_chat(QUESTION)
    check(response, (await adrain(response)).strip())


async def test_results_of_a_streamed_chat_with_a_condensed_question(llm):
    chat = chat_engine(CondensePlusContextChatEngine, llm)
    chat.chat(QUESTION)
    for ask in (streamed_chat, streamed_chat_in_loop):
        llm.decoder.calls.clear()
        response = await ask(chat)
        asked = [result.stats.prompt_tokens for result in results_of(response)]
        assert asked == [len(call.prompt) for call in llm.decoder.calls]
        assert len(asked) == 2


async def streamed_chat(chat):
    response = chat.stream_chat(QUESTION)
    drain(response)
    return response


async def streamed_chat_in_loop(chat):
    response = await chat.astream_chat(QUESTION)
    await adrain(response)
    return response


def test_citations_of_a_citation_query_engine(llm):
    asked = CitationQueryEngine.from_args(
        INDEX, llm=llm, similarity_top_k=3, text_splitter=TokenTextSplitter()
    )
    response = asked.query(QUESTION)
    check(response, str(response))


def test_short_copies_are_no_citations(llm):
    """The scripted answer holds a copied span of three characters, too."""
    assert len(citations_of(engine(llm).query(QUESTION))) == 1
    all_of_them = LLMA(decoder=ScriptedDecoder(), min_citation_chars=1)
    answer = all_of_them.complete("x", references=["0123456789"]).raw
    assert [(c["start"], c["end"]) for c in answer["llma"]["citations"]] == [(8, 13), (14, 17)]


def test_citation_blocks_follow_one_text_block():
    llm = LLMA(decoder=ScriptedDecoder(), citations="blocks")
    node = TextNode(text="0123 a passage that is long enough to be copied", id_="n1")
    node.metadata["file_name"] = "f.pdf"
    message = llm.chat(MESSAGES, references=[node]).message
    text, cited = message.blocks
    where = cited.additional_location_info
    assert isinstance(text, TextBlock)
    assert isinstance(cited, CitationBlock)
    assert message.content == text.text
    assert text.text[where["start"] : where["end"]] == cited.cited_content.text
    assert node.text[where["source_start"] : where["source_end"]] == cited.cited_content.text
    assert (cited.source, cited.title, where["source_number"]) == ("n1", "f.pdf", 1)
    streamed = list(llm.stream_chat(MESSAGES, references=[node]))
    assert [len(chunk.message.blocks) for chunk in streamed] == [1, 1, 1, 2]


@pytest.mark.parametrize(("style", "expected"), [("off", 0), ("raw", 1), ("blocks", 1)])
def test_styles_of_citations(style, expected):
    llm = LLMA(decoder=ScriptedDecoder(), citations=style)
    assert len(citations_of(engine(llm).query(QUESTION))) == expected
    message = llm.chat(MESSAGES, references=["x" * 60]).message
    assert len(message.blocks) == (2 if style == "blocks" else 1)


def test_results_of_a_response(llm):
    response = engine(llm).query(QUESTION)
    (result,) = results_of(response)
    assert result.text == str(response)
    assert result.stats.forward_passes == 3


def test_nothing_is_known_of_other_objects():
    assert citations_of(object()) == []
    assert results_of(None) == []


def test_citations_go_with_their_response(llm):
    before = len(citations._kept)
    for _ in range(20):
        engine(llm).query(QUESTION)
    gc.collect()
    assert len(citations._kept) <= before + 2


class Held:
    response = ""


def answer(text, *places):
    cited = tuple(Citation(a, b, text[a:b], "n", a, b, "t", 1) for a, b in places)
    return Answer(text, cited, None, next(numbers))


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("abcdef", [answer("abcdef", (1, 3))], [(1, 3, "bc")]),
        ("abcdef", [answer("  abcdef\n", (3, 5))], [(1, 3, "bc")]),
        ("1: abc\n2: abc", [answer("abc", (0, 2))] * 2, [(3, 5, "ab"), (10, 12, "ab")]),
        ("1: abc\n2: abc", [answer("abc", (0, 2))], [(3, 5, "ab")]),
        ("something else", [answer("abc", (0, 2))], []),
        ("abc", [answer(" abc", (0, 2))], []),
        ("abc", [answer(" ", (0, 1))], []),
    ],
)
def test_citations_move_with_their_answer(text, answers, expected):
    """Also: an answer that is not in the text, and a copied blank that was stripped."""
    held = Held()
    attach(held, text, answers)
    assert [(c.start, c.end, c.text) for c in citations_of(held)] == expected


def test_a_response_without_its_text_yet_keeps_its_citations():
    """Up to 0.13 a chat's span may end before its reader has set the text."""
    held = Held()
    attach(held, "abc", [answer("abc", (0, 2))])
    attach(held, "", [answer("abc", (0, 2))])
    assert len(citations_of(held)) == 1
