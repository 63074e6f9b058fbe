"""Tune the options of a drafter: all settings of a small grid, one option at a time of others."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product

Measure = Callable[[str], Mapping[str, float]]
"""Gives S(c) by cost of a drafter, named with its options."""


SMALL = 64
"""Settings up to which all of a grid are tried."""


class Search:
    """Search over options; every setting is measured once for all costs."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._measured: dict[str, Mapping[str, float]] = {}

    def best(
        self, family: str, options: Mapping[str, tuple[float, ...]], cost: str
    ) -> tuple[str, float]:
        """Return the best setting found for a cost, and its S(c).

        In a grid of more than `SMALL` settings a coordinate search: it begins with the first value
        of every option and goes through the options, all values of each, until no change of one of
        them is better.
        """
        if math.prod(map(len, options.values())) <= SMALL:
            chosen = max(_settings(options), key=lambda one: self._value(family, one, cost))
            return _named(family, chosen), self._value(family, chosen, cost)
        chosen = {name: values[0] for name, values in options.items()}
        best = self._value(family, chosen, cost)
        better = True
        while better:
            better = False
            for name, values in options.items():
                for value in values:
                    found = self._value(family, {**chosen, name: value}, cost)
                    if found > best:
                        best, chosen, better = found, {**chosen, name: value}, True
        return _named(family, chosen), best

    def _value(self, family: str, chosen: Mapping[str, float], cost: str) -> float:
        name = _named(family, chosen)
        if name not in self._measured:
            self._measured[name] = self._measure(name)
        return self._measured[name][cost]


def _settings(options: Mapping[str, tuple[float, ...]]) -> Iterator[dict[str, float]]:
    for values in product(*options.values()):
        yield dict(zip(options, values, strict=True))


def _named(family: str, chosen: Mapping[str, float]) -> str:
    return f"{family}:" + ",".join(f"{name}={value}" for name, value in chosen.items())
