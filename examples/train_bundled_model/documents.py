"""Documents as runs of units: sentences, headings, list items and code, in reading order."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FENCED_CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
MARKUP_LINE = re.compile(r"^\s*(<|\||\{%|///|:::|import |!\[).*$", re.MULTILINE)
ANCHOR = re.compile(r" \{ #[\w-]+ \}|\{\{.*?\}\}|</?[a-z][^>]*>")
LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
HEADING = re.compile(r"^(#{1,6} |=+ )")
ITEM = re.compile(r"^(\s*(?:[-*+]|\d{1,2}[.)])\s+)", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"')*]{0,2})(\s+)(?=[A-Z\"0-9(`*\[<])")
ABBREVIATION = re.compile(
    r"(?:\b[A-Z]|\b[eE]\.g|\bi\.e|\b(?:Mr|Mrs|Ms|Dr|St|vs|No|Jr|Sr|c|ca|Gen|Col|al))\.$"
)
LONGEST_ANSWER, SHORTEST_ANSWER = 340, 24


@dataclass(slots=True)
class Unit:
    """A piece of a document.

    Attributes:
        before: The white space and list mark that precede the text.
        text: The text itself.
        answer: Whether the text is a sentence that can be an answer.
    """

    before: str
    text: str
    answer: bool


@dataclass(slots=True)
class Document:
    """A document, or one paragraph of a question set.

    Attributes:
        source: Name of the corpus file it comes from.
        title: What the documents are split by; several may share one title.
        units: The text in reading order.
        questions: Pairs of a question and the index of the unit that answers it.
    """

    source: str
    title: str
    units: list[Unit]
    questions: list[tuple[str, int]] = field(default_factory=list)


def is_held_out(document: Document) -> bool:
    """Whether a document belongs to the held-out part: a hash of its title decides."""
    share = 8 if document.source == "squad" else 25
    return zlib.crc32(document.title.encode()) % share == 0


def split_sentences(text: str) -> Iterator[tuple[str, str]]:
    """Yield each sentence with the white space before it."""
    start, before = 0, ""
    for match in SENTENCE_END.finditer(text):
        if ABBREVIATION.search(text[start : match.start()]):
            continue
        yield before, text[start : match.start(1)]
        start, before = match.end(), match.group(1)
    yield before, text[start:]


def is_answer(text: str) -> bool:
    """Whether a sentence is fit to be an answer: whole, of middling length, with words in it."""
    if not SHORTEST_ANSWER <= len(text) <= LONGEST_ANSWER:
        return False
    return text.count(" ") >= 3 and text.rstrip("\"')*`")[-1:] in {".", "!", "?"}


def _prose_units(text: str, before: str) -> Iterator[Unit]:
    for space, sentence in split_sentences(text):
        yield Unit(before or space, sentence, is_answer(sentence))
        before = ""


def _list_units(block: str, before: str) -> Iterator[Unit]:
    pieces = ITEM.split(block)
    if pieces[0].strip():
        yield from _prose_units(pieces[0].rstrip(), before)
        before = "\n"
    for mark, item in zip(pieces[1::2], pieces[2::2], strict=True):
        yield from _prose_units(item.rstrip(), before + mark.lstrip("\n"))
        before = "\n"


def markdown_units(text: str) -> list[Unit]:
    """Split Markdown into units; fenced code, tables and HTML are left out."""
    for pattern in (FRONT_MATTER, FENCED_CODE, MARKUP_LINE, ANCHOR):
        text = pattern.sub("", text)
    units: list[Unit] = []
    for raw in re.split(r"\n\s*\n", LINK.sub(r"\1", text)):
        block = raw.strip("\n")
        if not block.strip():
            continue
        if HEADING.match(block):
            heading, _, block = block.partition("\n")
            units.append(Unit("\n\n", heading.strip(), False))
        if block.startswith("    "):
            units.append(Unit("\n\n", block, False))
        elif block.strip():
            units.extend(_list_units(block.strip(), "\n\n"))
    return units


def prose_units(text: str) -> list[Unit]:
    """Split plain text into units; white space inside a paragraph becomes single spaces."""
    units: list[Unit] = []
    for raw in re.split(r"\n\s*\n|\n(?=[A-Z][\w ]+ / )", text):
        block = " ".join(raw.split())
        if block:
            units.extend(_prose_units(block, "\n\n"))
    return units


def clean_wikitext(text: str) -> str:
    """Undo the tokenisation of WikiText."""
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    text = re.sub(r" ([,.;:!?)%])", r"\1", text.replace("( ", "(").replace(" 's", "'s"))
    return re.sub(r"\n ?=[^\n]*= ?\n", "\n\n", text).replace(" \n ", "\n\n").replace("``", '"')


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _answers(row: dict[str, Any]) -> list[str]:
    value = row["answer"]
    return [text for text in (value if isinstance(value, list) else [value]) if text]


def _sentence_index(units: list[Unit], answer: str) -> int | None:
    """The one answerable unit that holds the answer, or None."""
    hits = [i for i, unit in enumerate(units) if answer in unit.text]
    return hits[0] if len(hits) == 1 and units[hits[0]].answer else None


def read_squad(path: Path) -> list[Document]:
    """Read SQuAD: one document per paragraph, questions with exactly one answering sentence."""
    documents: dict[str, Document] = {}
    seen: set[str] = set()
    for row in _rows(path):
        answers = _answers(row)
        question = " ".join(row["question"].split())
        if not answers or question in seen:
            continue
        seen.add(question)
        context = row["context"]
        if context not in documents:
            documents[context] = Document("squad", row["title"], prose_units(context))
        index = _sentence_index(documents[context].units, answers[0])
        if index is not None:
            documents[context].questions.append((question, index))
    return [document for document in documents.values() if document.questions]


def _closest_sentence(units: list[Unit], answer: str) -> int | None:
    """The unit with nearly all words of the answer, which has nearly all words of the unit."""
    want = set(re.findall(r"\w+", answer.lower()))
    scores = []
    for unit in units:
        have = set(re.findall(r"\w+", unit.text.lower()))
        scores.append(len(want & have) / max(1, len(want | have)))
    best = max(range(len(units)), key=scores.__getitem__)
    return best if scores[best] >= 0.6 and units[best].answer else None


def read_clapnq(path: Path) -> list[Document]:
    """Read CLAP NQ: questions whose answer is nearly one sentence of the passage."""
    documents = []
    for row in _rows(path):
        units = prose_units(clean_wikitext(row["context"].replace(" ''", '"').replace("`` ", '"')))
        answers = _answers(row)
        index = _closest_sentence(units, answers[0]) if answers else None
        if index is not None:
            question = row["question"].strip() + "?"
            documents.append(Document("clapnq", row["id"], units, [(question, index)]))
    return documents


SOFTWARE = ("redis_docs", "rust_book", "haystack_docs", "fastapi_docs", "owasp_cheatsheets")
PROSE = ("wikipedia_intros", "cia_factbook", "wikitext2_valid_test")


def read_corpus(folder: Path) -> Iterator[Document]:
    """Read every text and question set of the corpus folder."""
    for name in (*SOFTWARE, *PROSE):
        for row in _rows(folder / f"{name}.jsonl.gz"):
            text = row["text"].replace("\r", "")
            if name == "wikitext2_valid_test":
                text = clean_wikitext(text)
            units = markdown_units(text) if name in SOFTWARE else prose_units(text)
            if any(unit.answer for unit in units):
                yield Document(name, row["title"], units)
    yield from read_squad(folder / "squad_dev.jsonl.gz")
    yield from read_clapnq(folder / "clapnq_dev.jsonl.gz")
