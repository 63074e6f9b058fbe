"""Citations: exact in every way an answer is delivered, and only of what the prompt shows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda

from integrations.langchain.tests.matrix import CHAT_PROMPT, filled
from integrations.langchain.tests.probes import (
    ProbeDecoder,
    UserRetriever,
    chat,
    joined,
    text_model,
)
from langchain_llma.citations import citations_of
from llma_rag import CopiedSpan

SOURCE = "secret text number 0 about <u1> and nothing else at all"


def _chain(llm: Any, *, in_prompt: bool = True) -> Any:
    def ask(question: str) -> Any:
        documents = UserRetriever().invoke(question)
        return filled(documents if in_prompt else [], question)

    return RunnableLambda(ask) | llm


def _quoting(prompt: str) -> str:
    return f"  So: {SOURCE}, and that is all."


def _annotations(message: Any) -> list[dict[str, Any]]:
    texts = [block for block in message.content_blocks if block["type"] == "text"]
    assert len(texts) == 1
    return texts[0].get("annotations", [])


def _check(message: Any, text: str) -> None:
    (citation,) = _annotations(message)
    extras = citation["extras"]
    assert text[citation["start_index"] : citation["end_index"]] == SOURCE
    assert SOURCE[extras["start_char_index"] : extras["end_char_index"]] == SOURCE
    assert citation["cited_text"] == SOURCE
    assert citation["title"] == "u1.txt"
    assert extras["document_index"] == 0
    assert message.response_metadata["citations"][0]["cited_text"] == SOURCE


def _added(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


@pytest.fixture
def quoting() -> ProbeDecoder:
    return ProbeDecoder(_quoting)


@pytest.mark.parametrize("version", ["v0", "v1"])
async def test_every_way_of_delivery(quoting: ProbeDecoder, version: str) -> None:
    chain = _chain(chat(quoting, output_version=version))
    chunks = [chunk async for chunk in chain.astream("u1")]
    for message in (chain.invoke("u1"), _added(list(chain.stream("u1"))), _added(chunks)):
        if version == "v0":
            assert message.content == _quoting("")
        _check(message, _quoting(""))


def test_events_of_version_3(quoting: ProbeDecoder) -> None:
    pytest.importorskip("langchain_tests", reason="it judges the events")
    from langchain_tests.utils.stream_lifecycle import assert_valid_event_stream

    llm = chat(quoting)

    def ask(question: str) -> Any:
        stream = llm.stream_events(filled(UserRetriever().invoke(question)), version="v3")
        assert_valid_event_stream(list(stream))
        return stream.output

    _check(RunnableLambda(ask).invoke("u1"), _quoting(""))


def test_after_a_langgraph_checkpoint(quoting: ProbeDecoder) -> None:
    pytest.importorskip("langgraph", reason="langgraph is an optional companion")
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    serializer = JsonPlusSerializer()
    message = _chain(chat(quoting)).invoke("u1")
    _check(serializer.loads_typed(serializer.dumps_typed(message)), _quoting(""))


def test_parsers_see_plain_text(quoting: ProbeDecoder) -> None:
    assert (_chain(chat(quoting)) | StrOutputParser()).invoke("u1") == _quoting("")


def test_text_models_carry_citations_beside_the_text(quoting: ProbeDecoder) -> None:
    prompt = CHAT_PROMPT.format(context=joined(UserRetriever().invoke("u1")), question="q")
    result = text_model(quoting).generate([prompt])
    assert result.generations[0][0].generation_info is not None
    (citation,) = result.generations[0][0].generation_info["citations"]
    assert citation["cited_text"] == SOURCE


@pytest.mark.parametrize("after", ["", " Wait."])
def test_text_before_a_tool_call_is_cited(after: str) -> None:
    def answer(prompt: str) -> str:
        return f'{_quoting(prompt)} <tool_call>{{"name": "now"}}</tool_call>{after}'

    now = {"type": "function", "function": {"name": "now"}}
    message = _chain(chat(ProbeDecoder(answer)).bind_tools([now])).invoke("u1")
    assert message.tool_calls
    assert message.content.endswith(after)
    _check(message, message.content)


@pytest.mark.parametrize(
    ("scope", "in_prompt", "count"),
    [
        ("prompt", True, 1),
        ("prompt", False, 0),
        ("scope", False, 1),
        ("off", True, 0),
    ],
)
def test_what_is_cited(quoting: ProbeDecoder, scope: Any, in_prompt: bool, count: int) -> None:
    message = _chain(chat(quoting, citations=scope), in_prompt=in_prompt).invoke("u1")
    assert len(quoting.requests[0].references) == 2
    assert len(_annotations(message)) == count


def test_short_copies_are_not_cited(quoting: ProbeDecoder) -> None:
    words = len(SOURCE.split())
    assert _annotations(_chain(chat(quoting, min_citation_words=words)).invoke("u1"))
    assert not _annotations(_chain(chat(quoting, min_citation_words=words + 1)).invoke("u1"))


def test_web_addresses_become_urls() -> None:
    document = Document("one two three four", metadata={"source": "https://example.org/a"})
    span = CopiedSpan(0, 18, None, 0, 0, 18, in_prompt=True)
    (citation,) = citations_of(
        document.page_content, [span], [document], min_words=4, scope="prompt"
    )
    assert citation["url"] == "https://example.org/a"


def test_spans_shrink_to_whole_words() -> None:
    answer, source = "xone two three four five6", "one two three four five7"
    span = CopiedSpan(1, 24, None, 0, 0, 23, in_prompt=True)
    (citation,) = citations_of(answer, [span], [Document(source)], min_words=3, scope="prompt")
    assert citation["cited_text"] == "two three four"


@pytest.mark.parametrize(
    ("source", "length"),
    [
        ("渡轮于上午七点半从码头出发。", 12),
        ("フェリーは七時半に出発します。", 12),
        ("เรือออกเวลาเจ็ด", 12),
        ("渡轮 Vessa 七点 7:30", 11),
        ("internationalisation", None),
        ("https://example.org/a/long/address", None),
    ],
)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("你好", "吗"), ("So: ", ".")])
def test_scripts_without_spaces(source: str, length: int | None, before: str, after: str) -> None:
    """Runs of twelve characters are cited, also from the middle of a sentence."""
    cited = []
    for size in range(len(source) + 1):
        copied = source[:size].strip()
        span = CopiedSpan(
            len(before), len(before) + len(copied), None, 0, 0, len(copied), in_prompt=True
        )
        citations = citations_of(
            before + copied + after, [span], [Document(source)], min_words=4, scope="prompt"
        )
        assert [citation.get("cited_text") for citation in citations] in ([], [copied])
        cited += [len(copied)] if citations else []
    assert min(cited, default=None) == length


TEXT = st.text(alphabet="ab .,\n", min_size=1, max_size=40)


@given(TEXT, TEXT, TEXT, st.data())
def test_offsets_always_agree(before: str, copied: str, after: str, data: st.DataObject) -> None:
    answer, source = before + copied + after, after + copied + before
    start = data.draw(st.integers(0, len(copied)))
    end = data.draw(st.integers(start, len(copied)))
    span = CopiedSpan(
        len(before) + start,
        len(before) + end,
        None,
        0,
        len(after) + start,
        len(after) + end,
        in_prompt=True,
    )
    for citation in citations_of(answer, [span], [Document(source)], min_words=1, scope="prompt"):
        cited = answer[citation["start_index"] : citation["end_index"]]
        extras = citation["extras"]
        assert cited == source[extras["start_char_index"] : extras["end_char_index"]]
        assert cited == citation["cited_text"] == cited.strip()
        assert cited
