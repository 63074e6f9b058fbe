"""Copied spans: the answer's characters equal the reference's, always."""

import random

from llma_rag import Reference
from llma_rag.places import Place
from llma_rag.provenance import AnswerText, Provenance
from llma_rag.reference import accept_references


def traced(
    answer: str, texts: list[str], copies: list[Place | None], prompt: str = "",
    tokenised: list[str] | None = None,
):  # fmt: skip
    """Spans of an answer of one-character tokens."""
    usable = accept_references(texts)
    kept = usable.references
    provenance = Provenance(
        usable,
        [range(len(one.text)) for one in kept],
        lambda count: prompt[:count],
        lambda number: tokenised[number] if tokenised else kept[number].text,
    )
    for place in copies:
        provenance.commit(place)
    size = len(answer)
    return provenance.spans(AnswerText(answer, range(size), range(1, size + 1)))


def from_reference(segment: int, start: int, count: int) -> list[Place | None]:
    return [Place(segment, start + step) for step in range(count)]


def test_a_copied_run_is_extended_to_the_longest_equal_text():
    text = "The ferry leaves at noon from pier four."
    spans = traced(text[4:30], [text], [None] * 8 + from_reference(0, 12, 5) + [None] * 13)
    assert [(s.start, s.end, s.reference_start) for s in spans] == [(0, 26 - 1, 4)]
    assert spans[0].reference_end == 29


def test_neighbours_of_one_source_become_one_span():
    text = "abcdefghij klmnop"
    spans = traced(text, [text], [*from_reference(0, 0, 5), None, *from_reference(0, 6, 11)])
    assert [(s.start, s.end) for s in spans] == [(0, len(text))]


def test_the_index_is_that_of_the_callers_list_and_skipped_entries_count():
    spans = traced("bread", ["", "no", "bread"], from_reference(1, 0, 5))
    assert spans[0].reference_index == 2


def test_the_same_text_in_several_references_is_listed():
    spans = traced("bread", ["bread and salt", "more bread"], from_reference(0, 0, 5))
    assert (spans[0].reference_index, spans[0].also_in) == (0, (1,))


def test_a_place_in_the_prompt_is_named_by_the_reference_that_stands_there():
    prompt = "Context: the tower is tall. Question?"
    copies = from_reference(1, prompt.index("tower"), 5)
    spans = traced("tower", ["the tower is tall."], copies, prompt)
    assert [(s.reference_start, s.in_prompt) for s in spans] == [(4, True)]
    assert traced("Question", ["the tower is tall."], from_reference(1, 28, 8), prompt) == ()


def test_a_reference_that_the_tokenizer_normalises_stands_in_the_prompt() -> None:
    """Decomposed accents are one character each in the prompt's tokens."""
    text, seen = "Cafe\u0301 hours: nine to five.", "Caf\u00e9 hours: nine to five."
    prompt = f"Context: {seen} When?"
    copies = from_reference(1, prompt.index("hours"), 10)
    (span,) = traced("hours: nine", [text], copies, prompt, [seen])
    assert span.in_prompt
    assert text[span.reference_start : span.reference_end] == "hours: nine"


def test_a_copy_of_the_answer_itself_inherits_the_source():
    answer = "tower tower"
    copies = [*from_reference(0, 4, 5), None, *(Place(2, step) for step in range(5))]
    spans = traced(answer, ["the tower is tall."], copies)
    assert [(s.start, s.end, s.reference_start) for s in spans] == [(0, 6 - 1, 4), (6, 11, 4)]


def test_a_copy_of_an_earlier_answer_has_no_source():
    copies = [Place(3, step) for step in range(5)]
    assert traced("tower", ["the tower is tall."], copies) == ()


def test_wrong_places_never_make_a_wrong_span():
    source = random.Random(5)
    for _ in range(500):
        texts = ["".join(source.choices("ab c", k=20)) for _ in range(3)]
        answer = "".join(source.choices("ab c", k=15))
        copies = [
            source.choice([None, Place(source.randrange(3), source.randrange(20))]) for _ in answer
        ]
        end = 0
        for span in traced(answer, [Reference(text) for text in texts], copies):
            copied = texts[span.reference_index][span.reference_start : span.reference_end]
            assert answer[span.start : span.end] == copied == copied.strip()
            assert span.start >= end
            end = span.end
