"""Make reference texts that mislead: from a right answer, what looks like it and is not."""

import random
from collections.abc import Callable, Sequence


def _bait(length: int) -> Callable[[Sequence[int], random.Random], list[int]]:
    """Return a maker of texts in which n-grams of the answer go on with other tokens."""

    def make(answer: Sequence[int], chance: random.Random) -> list[int]:
        made: list[int] = []
        for place in range(len(answer) - length):
            made += answer[place : place + length]
            made += [chance.randrange(3, 32_000) for _ in range(8)]
        return made

    return make


def _shuffled(answer: Sequence[int], chance: random.Random) -> list[int]:
    return chance.sample(list(answer) * 5, 5 * len(answer))


def _repeated(answer: Sequence[int], chance: random.Random) -> list[int]:
    return [chance.choice(answer)] * 2_000


def _unrelated(answer: Sequence[int], chance: random.Random) -> list[int]:
    return [chance.randrange(3, 32_000) for _ in range(1_000)]


HOSTILE = (_bait(1), _bait(2), _bait(3), _bait(5), _shuffled, _repeated, _unrelated)
