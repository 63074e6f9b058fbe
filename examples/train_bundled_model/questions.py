"""Made questions: the content words of a sentence in the shapes in which people ask."""

from __future__ import annotations

import random
import re
from functools import lru_cache

from examples.train_bundled_model.documents import Unit

WORD = re.compile(r"[A-Za-z][A-Za-z0-9_'\-]*[A-Za-z0-9]|\d[\d,.]*\d|\d")
STOP_WORDS = (
    "the a an of to in and or for on with by from at as is are was were be been being it "
    "its that this these those which who whom whose what when where why how has have had "
    "do does did not no but if than then so such can could will would shall should may "
    "might must also into over under about after before between during through while "
    "their his her our your they he she we us i you there here other more most some any "
    "all each only own same too very just both per one many much mean happen say tell "
    "know does get let lets use used using"
)
STOP = frozenset(STOP_WORDS.split(" "))
ENDINGS = re.compile(r"(?:'s|ingly|edly|ings|ing|ied|ies|ed|es|ly|s|e|y)$")
VERB = (
    r"is|are|was|were|can|must|may|will|should|has|have|had|does|uses?|makes?|returns?|allows?|"
    r"provides?|supports?|contains?|includes?|means?|needs?|requires?|became|began|won|led|made"
)
CLAUSE = re.compile(rf"^(?:[Tt]he |[Aa] |[Aa]n )?((?:\S+ ){{1,5}}?)({VERB}) (.+)$")
PLAIN = (
    "What does the text say about {}?",
    "Tell me about {}.",
    "What is known about {}?",
    "{}?",
    "{}",
    "Explain {}.",
    "Which statement mentions {}?",
    "What about {}?",
    "How does {} work?",
    "What is {}?",
    "What are {}?",
    "How is {} handled?",
    "What happens with {}?",
    "Where is {}?",
    "When is {} used?",
    "Who is {}?",
    "Why {}?",
    "Which {}?",
    "How can I {}?",
    "How do I use {}?",
    "What do I need for {}?",
)
OPENINGS = ("What", "How", "Which", "When", "Where", "Why", "Who")
AUXILIARIES = ("does", "is", "are", "can", "did", "was", "do", "should", "will", "must")
STRAY = ("project", "system", "user", "example", "number", "people", "main", "kind", "way", "name")


def stem(word: str) -> str:
    """A crude stem, so that 'accepts' and 'accepted' are the same word."""
    low = word.lower()
    return ENDINGS.sub("", low) if len(low) > 3 else low


@lru_cache(maxsize=200_000)
def content_words(text: str) -> tuple[str, ...]:
    """The words of a text that carry meaning, in order."""
    return tuple(w for w in WORD.findall(text) if w.lower() not in STOP and len(w) > 1)


@lru_cache(maxsize=200_000)
def stems(text: str) -> frozenset[str]:
    """The stems of the content words of a text."""
    return frozenset(stem(word) for word in content_words(text))


def overlap(question: str, text: str) -> int:
    """How many content words of a question a text has."""
    return len(stems(question) & stems(text))


def is_clear(question: str, target: Unit, units: list[Unit]) -> bool:
    """Whether the target sentence shares clearly the most words with the question."""
    best = overlap(question, target.text)
    if best == 0:
        return False
    others = (overlap(question, unit.text) for unit in units if unit.text != target.text)
    return max(others, default=0) < best


def _inflect(word: str, rng: random.Random) -> str:
    """Another form of a word, now and then."""
    if rng.random() > 0.1 or len(word) < 5 or not (word.isalpha() and word.islower()):
        return word
    base = ENDINGS.sub("", word)
    return base + rng.choice(("", "s", "ing", "ed", "e")) if len(base) > 2 else word


def _keywords(sentence: str, rng: random.Random) -> str | None:
    """One to six content words in a plain frame."""
    words = content_words(sentence)
    if len(words) < 2:
        return None
    count = min(len(words), rng.choice((1, 2, 2, 3, 3, 4)))
    start = rng.randrange(len(words) - count + 1)
    together = rng.random() < 0.5
    picked = list(words[start : start + count]) if together else rng.sample(words, count)
    if rng.random() < 0.03:
        picked.insert(rng.randrange(len(picked) + 1), rng.choice(STRAY))
    joined = " ".join(picked)
    if len(picked) > 1 and rng.random() < 0.3:
        joined = ", ".join(picked[:-1]) + " and " + picked[-1]
    if rng.random() < 0.3:
        return f"{rng.choice(OPENINGS)} {rng.choice(AUXILIARIES)} {joined}?"
    return rng.choice(PLAIN).format(joined)


def _fragment(sentence: str, rng: random.Random) -> str | None:
    """A run of words of the sentence, function words kept, behind a question word."""
    words = sentence.rstrip(".!?").split()
    if len(words) < 5:
        return None
    count = rng.randint(3, min(9, len(words)))
    start = rng.randrange(len(words) - count + 1)
    run = " ".join(words[start : start + count]).strip(".,;:()*_\"'")
    opening = rng.choice(OPENINGS)
    auxiliary = f" {rng.choice(AUXILIARIES)}" if rng.random() < 0.5 else ""
    return f"{opening}{auxiliary} {run}?"


def _clause(sentence: str, rng: random.Random) -> str | None:
    """Ask for the subject or for the rest of a sentence 'subject verb rest'."""
    match = CLAUSE.match(sentence)
    if not match:
        return None
    subject, verb, rest = match.group(1).strip(), match.group(2), match.group(3).rstrip(".!?")
    tail = " ".join(rest.split()[: rng.randint(2, 8)]).strip(".,;:()*_\"'")
    article = rng.choice(("", "the ", "a "))
    if rng.random() < 0.4:
        return f"{rng.choice(('What', 'Who', 'Which one'))} {verb} {tail}?"
    if verb in {"is", "are", "was", "were", "can", "must", "may", "will", "should"}:
        opening = rng.choice(("What", "What", "How", "When", "Why", "Where"))
        rest_shown = f" {tail}" if rng.random() < 0.5 else ""
        return f"{opening} {verb} {article}{subject}{rest_shown}?"
    base = re.sub(r"(?<=[^s])s$", "", verb)
    shapes = (
        f"What does {article}{subject} {base}?",
        f"Why does {article}{subject} {base} {tail}?",
    )
    return rng.choice(shapes)


def _special(sentence: str, rng: random.Random) -> str | None:
    """Ask for a number, a time, a reason or a manner that the sentence gives."""
    words = sentence.rstrip(".!?").split()
    for index, word in enumerate(words[:-1]):
        after = " ".join(words[index + 1 : index + rng.randint(3, 8)]).strip(".,;:()*_\"'")
        before = " ".join(words[max(0, index - rng.randint(3, 8)) : index]).strip(".,;:()*_\"'")
        if word.lower() == "because" and before:
            return f"Why {rng.choice(AUXILIARIES)} {before}?"
        if re.fullmatch(r"(1[5-9]|20)\d\d", word.strip(",.")) and before:
            return f"{rng.choice(('When', 'In what year'))} {rng.choice(AUXILIARIES)} {before}?"
        if re.fullmatch(r"\d[\d,.]*", word) and after:
            return f"How many {after}{rng.choice(('', ' are there'))}?"
        if word.lower() == "by" and words[index + 1].endswith("ing") and before:
            return f"How {rng.choice(AUXILIARIES)} {before}?"
    return None


def _rough(question: str, rng: random.Random) -> str:
    """Vary case, word forms and the question mark."""
    words = question.split()
    question = " ".join(_inflect(word, rng) for word in words)
    chance = rng.random()
    if chance < 0.15:
        question = question.lower()
    elif chance < 0.45:
        question = question[0] + question[1:].replace(" The ", " the ").replace(" A ", " a ")
    return question.rstrip("?.") if rng.random() < 0.06 else question


def make_question(sentence: str, rng: random.Random) -> str | None:
    """Make one question that the sentence answers, or None where no shape fits."""
    sentence = " ".join(sentence.replace("**", "").split())
    if sentence.split(" ")[0].lower() in STOP:
        sentence = sentence[0].lower() + sentence[1:]
    shapes = (_keywords, _fragment, _clause, _special)
    shape = rng.choices(shapes, (5, 3, 3, 1))[0]
    question = shape(sentence, rng) or _keywords(sentence, rng)
    if question is None:
        return None
    if rng.random() < 0.5:
        question = question.replace("`", "")
    return _rough(question, rng)
