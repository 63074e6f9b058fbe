"""Decode recorded answers again without a model: the recorded token is the model's choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from llma_rag.bench.traces import TraceTokens
from llma_rag.drafting import Draft, Drafter
from llma_rag.recycling import Recycler
from llma_rag.tree import ROOT

MakeDrafter = Callable[[TraceTokens], Drafter]


@dataclass(frozen=True, slots=True)
class ForcedRun:
    """What one forced answer took.

    Attributes:
        set: Data set of the row.
        group: Question or document of the row.
        tokens: Tokens of the answer.
        forwards: Forward passes, the prefill counted as one.
        drafted: Drafted tokens, right and wrong.
        accepted: Drafted tokens that the answer confirmed.
        step_seconds: Time of each call of the drafter.
        build_seconds: Time to make the drafter.
    """

    set: str
    group: str
    tokens: int
    forwards: int
    drafted: int
    accepted: int
    step_seconds: tuple[float, ...]
    build_seconds: float


def force(trace: TraceTokens, make_drafter: MakeDrafter, budget: int) -> ForcedRun:
    """Decode the recorded answer with drafts of at most `budget` nodes.

    The prefill yields the first token; every further pass yields the accepted tokens and one more.
    """
    begin = perf_counter()
    drafter = make_drafter(trace)
    build_seconds = perf_counter() - begin
    answer = trace.answer
    context = [*trace.prompt, *answer[:1]]
    done, forwards, drafted, accepted = 1, 1, 0, 0
    step_seconds: list[float] = []
    while done < len(answer):
        begin = perf_counter()
        draft = drafter.draft(context, budget)
        step_seconds.append(perf_counter() - begin)
        right = count_accepted(draft, answer[done:])
        forwards += 1
        drafted += len(draft)
        accepted += right
        context.extend(answer[done : done + right + 1])
        done += right + 1
    return ForcedRun(
        set=trace.trace.set,
        group=trace.trace.group,
        tokens=len(answer),
        forwards=forwards,
        drafted=drafted,
        accepted=accepted,
        step_seconds=tuple(step_seconds),
        build_seconds=build_seconds,
    )


class Recycling:
    """Feeds a recycler what a recorded answer tells of the logits: the best successor.

    A model would give several successors, and those of wrong nodes too.
    """

    def __init__(self, drafter: Drafter, recycler: Recycler, seen: int) -> None:
        self._drafter = drafter
        self._recycler = recycler
        self._seen = seen

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Draft after the new tokens of `context` were observed."""
        new = np.array(context[max(0, self._seen - 1) :])
        self._seen = len(context)
        self._recycler.observe(new[:-1], new[1:, None])
        return self._drafter.draft(context, budget)


def count_accepted(draft: Draft, future: Sequence[int]) -> int:
    """Return how many tokens of `future` a path of the draft foretold.

    >>> count_accepted(Draft(tokens=(5, 6, 7), parents=(-1, -1, 1)), [6, 7, 8])
    2
    """
    children = {
        (parent, token): node
        for node, (parent, token) in enumerate(zip(draft.parents, draft.tokens, strict=True))
    }
    node = ROOT
    for right, token in enumerate(future):
        following = children.get((node, token))
        if following is None:
            return right
        node = following
    return len(future)
