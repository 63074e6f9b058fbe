"""What model calls wrote, as spans, streams and responses keep it."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from llma_rag import GenerationResult

if TYPE_CHECKING:
    from llama_index.llms.llma.citations import Citation

MAX_ANSWERS = 1024
"""Most answers that one span, stream or response remembers; the oldest goes first."""

MAX_RESULTS = 32
"""Most of them whose whole results are kept; those hold every token."""


class Answer(NamedTuple):
    """What one model call wrote, and what of it was copied; the result while it is kept."""

    text: str
    citations: "tuple[Citation, ...]"
    result: GenerationResult | None
    number: int


numbers = itertools.count()
"""Of the answers of this process, in order."""


def joined(earlier: Iterable[Answer], later: Iterable[Answer]) -> tuple[Answer, ...]:
    """Return answers in order, as many as are remembered; the newest with their results."""
    answers = (*earlier, *later)[-MAX_ANSWERS:]
    light = (
        answer if answer.result is None else answer._replace(result=None)
        for answer in answers[:-MAX_RESULTS]
    )
    return (*light, *answers[-MAX_RESULTS:])


def in_order(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """Return answers by their numbers, each once."""
    distinct = {answer.number: answer for answer in answers}
    return joined((), sorted(distinct.values(), key=lambda answer: answer.number))
