"""Tune the options of a drafter, one option at a time."""

from collections.abc import Callable, Mapping

Measure = Callable[[str], Mapping[str, float]]
"""Gives S(c) by cost of a drafter, named with its options."""


class Search:
    """Coordinate search over options; every setting is measured once for all costs."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._measured: dict[str, Mapping[str, float]] = {}

    def best(
        self, family: str, options: Mapping[str, tuple[float, ...]], cost: str
    ) -> tuple[str, float]:
        """Return the best setting found for a cost, and its S(c).

        Begins with the first value of every option; goes through the options, all values of each,
        until no change of one of them is better.
        """
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


def _named(family: str, chosen: Mapping[str, float]) -> str:
    return f"{family}:" + ",".join(f"{name}={value}" for name, value in chosen.items())
