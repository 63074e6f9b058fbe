"""Markdown tables and what stands below them: machine, versions, commit, date."""

from typing import Any


def interval(ratio: dict[str, Any] | None) -> str:
    """Return a ratio with its interval, or alone where one prompt gave it."""
    if not ratio:
        return ""
    if ratio["low"] == ratio["high"]:
        return f"{ratio['median']:.2f}"
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    rules = ["---"] * len(heads)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rules, *lines))


def with_interval(row: dict[str, Any]) -> str:
    """Return tokens per forward with the bootstrap interval."""
    low, high = row["interval"]
    return f"{row['tokens_per_forward']:.2f} ({low:.2f}-{high:.2f})"


def section(measured: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the rows of a section that was measured on its own, and what it was measured on."""
    found = dict(measured[name])
    return found, origin(found.pop("environment"))


def origin(measured: dict[str, Any]) -> str:
    """Return the line below a table: machine, versions, commit and date."""
    versions = ", ".join(f"{name} {value}" for name, value in measured["versions"].items())
    return (
        f"\n{measured['machine']}; {versions}; commit {measured['commit']}, {measured['date']}.\n"
    )
