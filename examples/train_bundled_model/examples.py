"""Examples: a prompt's head with several questions about it, each with the answering sentence."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from examples.train_bundled_model.documents import Document, Unit
from examples.train_bundled_model.prompts import BOS, END, FORMATS, PromptFormat
from examples.train_bundled_model.questions import is_clear, make_question

SHARES = {
    "squad": 0.36,
    "redis_docs": 0.07,
    "rust_book": 0.07,
    "haystack_docs": 0.07,
    "fastapi_docs": 0.08,
    "owasp_cheatsheets": 0.07,
    "wikipedia_intros": 0.14,
    "wikitext2_valid_test": 0.10,
    "cia_factbook": 0.04,
}
CUT_TOKENS = (4, 8)
JOINERS = (("\n\n", 8.0), ("\n", 1.0), ("\n---\n", 0.5), ("\n- ", 0.3))


@dataclass(slots=True)
class Passage:
    """A slice of a document as a retriever would return it."""

    document: Document
    units: list[Unit]
    questions: list[tuple[str, Unit]]
    text: str


@dataclass(slots=True)
class Example:
    """Token ids of one head and of the turns that follow it.

    Attributes:
        head: The prompt up to the question; shared by all turns.
        turns: Pairs of the rest of the prompt and the answer with its end token. The turns do not
            see one another.
        format: Name of the prompt format.
        spans: First and one past the last token of each sentence in the head.
        answered: For each turn the span of the sentence that answers it, (-1, -1) where the head
            does not hold it.
    """

    head: list[int]
    turns: list[tuple[list[int], list[int]]]
    format: str
    spans: list[tuple[int, int]]
    answered: list[tuple[int, int]]

    def __len__(self) -> int:
        """Tokens of the head and of all turns."""
        return len(self.head) + sum(len(tail) + len(answer) for tail, answer in self.turns)


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an example may be.

    Attributes:
        passages: Numbers of passages to choose from.
        characters: Characters of context.
        turns: Most questions about one context.
        tokens: Most tokens of the whole example.
        cut: Share of the answers that end after a few tokens. Where an answer begins is what is
            hard to learn; copying the rest costs most of the tokens and teaches little.
        same_title: Share of the contexts whose passages come mostly from one title, as from a
            retriever; the others mix titles.
    """

    passages: tuple[int, ...]
    characters: int
    turns: int
    tokens: int
    cut: float = 0.0
    same_title: float = 0.5


def _weighted(rng: random.Random, pairs: Sequence[tuple[str, float]]) -> str:
    return rng.choices([value for value, _ in pairs], [weight for _, weight in pairs])[0]


class ExampleMaker:
    """Draws examples from documents; equal seeds give equal examples."""

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        rng: random.Random,
        formats: Sequence[PromptFormat] = FORMATS,
        shares: dict[str, float] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._formats = formats
        self._by_title: dict[str, dict[str, list[Document]]] = defaultdict(dict)
        for document in documents:
            self._by_title[document.source].setdefault(document.title, []).append(document)
        self._titles = {source: list(titles) for source, titles in self._by_title.items()}
        chosen = SHARES if shares is None else shares
        self._shares = [(source, chosen.get(source, 0.0)) for source in self._titles]

    def draw(self, limits: Limits) -> Example:
        """Draw examples until one fits the limits."""
        while True:
            example = self._try(limits)
            if example is not None and example.turns and len(example) <= limits.tokens:
                return example

    def _try(self, limits: Limits) -> Example | None:
        rng = self._rng
        passages = self._passages(limits)
        prompt = rng.choices(self._formats, [item.share for item in self._formats])[0]
        turns = self._turns(passages, limits.turns if prompt.head != BOS else 1)
        if not turns:
            return None
        context = self._render(passages)
        head = prompt.head.format(context=context) if "{context}" in prompt.head else prompt.head
        if not prompt.is_chat and rng.random() < 0.35:
            head = BOS + head
        encoded = []
        for question, sentence in turns:
            tail = prompt.tail.format(question=question, context=context)
            space = " " if f" {sentence}" in head + tail else ""
            answer = self._encode(f"{space}{sentence}{END}")
            if rng.random() < limits.cut:
                answer = answer[: rng.randint(*CUT_TOKENS)]
            encoded.append((self._encode(tail), answer))
        encoding = self._tokenizer.encode(head)
        units = [unit.text for passage in passages for unit in passage.units]
        spans = sentence_spans(head, units, encoding.offsets)
        by_text = dict(zip(units, spans, strict=True))
        answered = [by_text[sentence] for _, sentence in turns]
        return Example(encoding.ids, encoded, prompt.name, spans, answered)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def _passages(self, limits: Limits) -> list[Passage]:
        """A first passage and distractors, half of them under the same title."""
        rng = self._rng
        count = rng.choice(limits.passages)
        source = _weighted(rng, self._shares)
        title = rng.choice(self._titles[source])
        size = max(60, limits.characters // count)
        same_title = rng.random() < limits.same_title
        passages: list[Passage] = []
        for _ in range(count * 3):
            if len(passages) == count:
                break
            if passages and not (same_title and rng.random() < 0.8):
                title = rng.choice(self._titles[source])
            document = rng.choice(self._by_title[source][title])
            passage = self._slice(document, size)
            if not _overlaps(passage, passages):
                passages.append(passage)
        rng.shuffle(passages)
        return passages

    def _slice(self, document: Document, size: int) -> Passage:
        """A run of units of about the given size; sometimes its ends are cut inside a sentence."""
        rng = self._rng
        target = min(900, int(size * rng.uniform(0.5, 1.3)))
        start = rng.randrange(len(document.units)) if rng.random() < 0.8 else 0
        stop, total = start, 0
        while stop < len(document.units) and (stop == start or total < target):
            total += len(document.units[stop].text)
            stop += 1
        while start > 0 and total < target * 0.6:
            start -= 1
            total += len(document.units[start].text)
        units = [Unit(u.before, u.text, u.answer) for u in document.units[start:stop]]
        asked = [(q, units[i - start]) for q, i in document.questions if start <= i < stop]
        if rng.random() < 0.7:
            for unit in units:
                unit.text = " ".join(unit.text.split()) if unit.answer else unit.text
        self._cut_ends(document, units, start, stop)
        text = "".join(unit.before + unit.text for unit in units).lstrip("\n ")
        return Passage(document, units, asked, text)

    def _cut_ends(self, document: Document, units: list[Unit], start: int, stop: int) -> None:
        rng = self._rng
        chance = rng.random()
        if chance < 0.12 and start > 0:
            words = document.units[start - 1].text.split(" ")
            units.insert(0, Unit("", " ".join(words[rng.randrange(len(words)) :]), False))
        elif chance > 0.88 and stop < len(document.units):
            following = document.units[stop]
            words = following.text.split(" ")
            cut = " ".join(words[: rng.randrange(len(words)) + 1])
            units.append(Unit(following.before, cut, False))

    def _turns(self, passages: list[Passage], most: int) -> list[tuple[str, str]]:
        """Questions with the sentences that answer them, each sentence at most twice."""
        rng = self._rng
        units = [unit for passage in passages for unit in passage.units]
        asked = [item for passage in passages for item in passage.questions]
        rng.shuffle(asked)
        turns = [(question, unit.text) for question, unit in asked[:most] if rng.random() < 0.9]
        answers = [unit for unit in units if unit.answer]
        for _ in range(most * 2):
            if len(turns) >= most or not answers:
                break
            unit = rng.choice(answers)
            question = make_question(unit.text, rng)
            if question and is_clear(question, unit, units):
                turns.append((question, unit.text))
        return [turn for turn in turns if sum(u.text == turn[1] for u in units) == 1]

    def _render(self, passages: list[Passage]) -> str:
        """Join passages as a framework does; some get metadata lines or numbers."""
        rng = self._rng
        style = rng.random()
        texts = []
        for number, passage in enumerate(passages, start=1):
            name = passage.document.title.replace(" ", "_")
            if style < 0.25:
                texts.append(f"{self._metadata(name)}\n\n{passage.text}")
            elif style < 0.29:
                texts.append(f"Source: {{'source': '{name}'}}\nContent: {passage.text}")
            elif style < 0.36:
                texts.append(f"[{number}] {passage.text}")
            else:
                texts.append(passage.text)
        return _weighted(rng, JOINERS).join(texts)

    def _metadata(self, name: str) -> str:
        rng = self._rng
        name = name.rpartition("/")[2] if rng.random() < 0.5 else name
        if "." not in name:
            name += rng.choice((".md", ".txt"))
        folder = rng.choice(("", "docs/", "documents/", "data/", "/home/user/docs/"))
        lines = [f"{rng.choice(('file_path', 'file_path', 'source'))}: {folder}{name}"]
        if rng.random() < 0.4:
            title = name.rpartition(".")[0].replace("_", " ")
            lines.insert(rng.randrange(2), f"{rng.choice(('file_name', 'title'))}: {title}")
        return "\n".join(lines)


def _overlaps(passage: Passage, others: list[Passage]) -> bool:
    have = {unit.text for other in others for unit in other.units}
    return any(unit.text in have for unit in passage.units)


def sentence_spans(
    text: str, sentences: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """First and one past the last token of each sentence, (-1, -1) where the text lacks it.

    A token may begin with the space before its word: the first token is the one that holds the
    sentence's first character.

    >>> sentence_spans("A: b c. d", ["b c.", "d"], [(0, 2), (2, 4), (4, 6), (6, 7), (7, 9)])
    [(1, 4), (4, 5)]
    """
    begins = [begin for begin, _ in offsets]
    ends = [end for _, end in offsets]
    spans, end = [], 0
    for sentence in sentences:
        begin = text.find(sentence, end)
        if begin < 0:
            spans.append((-1, -1))
            continue
        end = begin + len(sentence)
        spans.append((bisect_right(ends, begin), bisect_left(begins, end)))
    return spans


class WordChanger:
    """Puts other words in the place of an example's words, the same one at every occurrence.

    Texts use rare tokens too seldom for a model to learn to copy every token that there is.

    Args:
        tokenizer: Its tokens of letters only are words; tokens that begin with a space replace one
            another, and so do the others.
        rng: Source of the choices.
    """

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self._rng = rng
        vocabulary = tokenizer.get_vocab()
        words = [token for token in vocabulary if token.removeprefix("\u0120").isalpha()]
        kinds = ([w for w in words if w[0] == "\u0120"], [w for w in words if w[0] != "\u0120"])
        self._kinds = [[vocabulary[word] for word in kind] for kind in kinds]
        self._kind = {number: kind for kind in self._kinds for number in kind}

    def change(self, example: Example, share: float) -> Example:
        """Return the example with that share of the words of its sentences changed."""
        rng = self._rng
        inside = {
            one for first, last in example.spans for one in example.head[max(0, first) : last]
        }
        changed = {
            word: rng.choice(self._kind[word])
            for word in sorted(inside)
            if word in self._kind and rng.random() < share
        }

        def mapped(ids: list[int]) -> list[int]:
            return [changed.get(one, one) for one in ids]

        turns = [(mapped(tail), mapped(answer)) for tail, answer in example.turns]
        return replace(example, head=mapped(example.head), turns=turns)


def repeat_example(rng: random.Random, vocabulary: int, limits: Limits) -> Example:
    """Segments of a random run of tokens to repeat: they form the heads that copy."""
    first = len(("bos", "end", "system", "user", "assistant"))
    size = rng.randrange(8, max(9, limits.tokens // 3))
    run = [rng.randrange(first, vocabulary) for _ in range(size)]
    turns: list[tuple[list[int], list[int]]] = []
    answered: list[tuple[int, int]] = []
    room = limits.tokens - size - 1
    while True:
        start = rng.randrange(max(1, size - 8))
        segment = run[start : start + rng.randrange(8, 40)]
        room -= len(segment)
        if room < 0:
            return Example([0, *run], turns, "repeat", [], answered)
        turns.append(([segment[0]], segment[1:] or [1]))
        answered.append((start + 2, start + 1 + len(segment)))
