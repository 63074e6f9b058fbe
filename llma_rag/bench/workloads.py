"""Make recorded answers into work on which copying cannot help, or is made to fail."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from llma_rag.bench.traces import TraceTokens

PROMPT_TOKENS = 64
"""Tokens of the prompts made here; what is measured comes after them."""


def without_overlap(traces: Sequence[TraceTokens]) -> list[TraceTokens]:
    """Return each answer behind the end of the next row's prompt, with the next row's passages.

    Raises:
        ValueError: If there are fewer than two rows.
    """
    if len(traces) < 2:
        raise ValueError(f"`traces` must hold at least two rows, got {len(traces)}.")
    return [
        _instead(one, other, other.trace.passages)
        for one, other in zip(traces, [*traces[1:], traces[0]], strict=True)
    ]


def misleading(
    traces: Sequence[TraceTokens], decode: Callable[[Sequence[int]], str]
) -> list[TraceTokens]:
    """Return the same with passages that begin like the answer and go on wrongly, again and again.

    Every token of the answer is followed there by words of the next row's passages.

    Args:
        traces: At least two rows.
        decode: Turns token ids into text.
    """
    return [
        _instead(one, one, (_mislead([decode([token]) for token in one.answer], one),))
        for one in without_overlap(traces)
    ]


def _instead(one: TraceTokens, other: TraceTokens, passages: tuple[str, ...]) -> TraceTokens:
    return replace(
        one, trace=replace(one.trace, passages=passages), prompt=other.prompt[-PROMPT_TOKENS:]
    )


def _mislead(pieces: Sequence[str], one: TraceTokens, length: int = 6) -> str:
    other = " ".join(one.trace.passages).split()
    parts: list[str] = []
    for number, piece in enumerate(pieces):
        start = number * length % max(len(other), 1)
        parts += [piece.strip(), *other[start : start + length]]
    return " ".join(filter(None, parts))
