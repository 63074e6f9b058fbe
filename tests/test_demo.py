"""The demo as it ships: bundled documents, bundled model, both frameworks."""

import io

import pytest
from rich.console import Console

from llma_rag.demo import DOCUMENTS
from llma_rag.demo.chain import FaissStore, HashingEmbeddings
from llma_rag.demo.embedding import HashingEmbedding
from llma_rag.demo.passages import read_folder
from llma_rag.demo.questions import QUESTIONS
from llma_rag.demo.running import Demo, Row
from llma_rag.demo.show import row_line, summary
from llma_rag.demo.sources import SourcedSpan
from llma_rag.demo.terminal import AnswerView, Palette, coloured, legend

FRAMEWORKS = ("langchain", "llama-index")
ASKED = [(framework, question) for framework in FRAMEWORKS for question in QUESTIONS]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(Demo().rows())


def test_documents_are_at_least_twenty_pages():
    words = sum(len(file.read_text().split()) for file in DOCUMENTS.glob("*.md"))
    assert words >= 20 * 450


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_each_expected_answer_is_one_sentence_of_its_document(question):
    passages = [p.text for p in read_folder(DOCUMENTS) if question.sentence in p.text]
    assert len(passages) == 1
    assert question.sentence in (DOCUMENTS / question.document).read_text()


def test_the_questions_are_about_several_documents():
    assert len({question.document for question in QUESTIONS}) >= 6


def test_every_question_is_asked_through_both_frameworks(rows):
    asked = [(row.framework, row.question) for row in rows]
    assert asked == [(framework, question.text) for framework, question in ASKED]


def test_every_answer_is_identical_to_plain_decoding(rows):
    assert [row.question for row in rows if not row.identical] == []


@pytest.mark.parametrize("place", range(len(ASKED)))
def test_answers_are_the_right_sentence_of_the_right_document(rows, place):
    _, question = ASKED[place]
    assert rows[place].answer == question.sentence
    assert rows[place].sources == (question.document,)


def test_the_answers_take_at_most_half_the_forward_passes(rows):
    """Plain decoding takes one pass per token."""
    assert sum(row.forwards for row in rows) <= sum(row.tokens for row in rows) / 2


def test_the_line_below_an_answer_says_whether_it_is_identical(rows):
    assert row_line(rows[0]).endswith("identical: yes")
    assert f"{rows[0].tokens} tokens, {rows[0].forwards} forward passes" in row_line(rows[0])
    assert f"{len(rows)} answers, {len(rows)} identical" in summary(rows)


class TestTerminal:
    HOSTILE = "a [bold red]b[/] \x1b]0;title\x07 \x1b[2J \u202e <img onerror=1>"

    def printed(self, *, terminal: bool) -> str:
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=200, color_system="standard")
        view = AnswerView(console, Palette())
        view.show(self.HOSTILE, [SourcedSpan(0, 1, "x\x1b[1m[b].md")])
        view.finish()
        console.print(legend(["x\x1b[1m[b].md"], Palette()))
        return out.getvalue()

    @pytest.mark.parametrize("terminal", [True, False])
    def test_what_documents_hold_is_shown_and_not_obeyed(self, terminal):
        shown = self.printed(terminal=terminal)
        assert "[bold red]b[/]" in shown
        assert "<img onerror=1>" in shown
        assert "[b].md" in shown
        for acting in ("\x1b]0;title", "\x07", "\x1b[2J", "\u202e", "\x1b[1m"):
            assert acting not in shown

    def test_a_span_has_the_colour_of_its_document(self):
        palette = Palette()
        text = coloured("one two three", [SourcedSpan(4, 7, "b"), SourcedSpan(8, 13, "a")], palette)
        assert [(span.start, span.end, span.style) for span in text.spans] == [
            (4, 7, palette.colour("b")),
            (8, 13, palette.colour("a")),
        ]
        assert palette.colour("a") != palette.colour("b")


def test_the_store_returns_at_most_what_it_holds():
    store = FaissStore.from_texts(
        ["One ferry.", "Two bees."], HashingEmbeddings(HashingEmbedding())
    )
    assert [d.page_content for d in store.similarity_search("bees", k=9)] == [
        "Two bees.",
        "One ferry.",
    ]
