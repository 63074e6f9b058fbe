"""Show replay rows to a person: a table in the terminal, a plot in a file."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from llma_rag.bench.plots import new_figure, save_png
from llma_rag.bench.summary import ALL_SETS, ReplayRow


def replay_table(rows: Sequence[ReplayRow]) -> Table:
    """Return the rows as a rich table, sets together, drafters below each other."""
    costs = list(rows[0].s) if rows else []
    table = Table(title="Recorded answers, decoded again (forced)", title_justify="left")
    for name in ("set", "drafter"):
        table.add_column(name, overflow="fold")
    for name in ("nodes", "rows", "tokens", "forwards", "tok/fwd", "95 %", "nodes/fwd", "accepted"):
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_column(f"S({cost})", justify="right")
    for name in ("us p50", "us p99", "build ms"):
        table.add_column(name, justify="right")
    for name in dict.fromkeys(row.set for row in rows):
        for row in (row for row in rows if row.set == name):
            table.add_row(*_cells(row, costs))
        table.add_section()
    return table


def _cells(row: ReplayRow, costs: Sequence[str]) -> list[str]:
    low, high = row.tokens_per_forward_interval
    speed = row.s_mean or row.s
    return [
        row.set,
        row.drafter,
        str(row.nodes),
        str(row.rows),
        str(row.tokens),
        str(row.forwards),
        f"{row.tokens_per_forward:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{row.nodes_per_forward:.1f}",
        f"{row.acceptance:.0%}",
        *(f"{speed[cost]:.2f}" for cost in costs),
        f"{row.step_us_p50:.0f}",
        f"{row.step_us_p99:.0f}",
        f"{row.build_ms:.2f}",
    ]


def plot_rows(rows: Sequence[ReplayRow], file: Path) -> None:
    """Draw tokens per forward against the node budget, one line per drafter, into a PNG."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    shown = ALL_SETS if any(row.set == ALL_SETS for row in rows) else rows[0].set
    for drafter in dict.fromkeys(row.drafter for row in rows):
        points = sorted(
            (row.nodes, row.tokens_per_forward)
            for row in rows
            if row.drafter == drafter and row.set == shown
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=drafter)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("most nodes of a draft")
    axes.set_ylabel("tokens per forward pass")
    axes.set_title(f"set: {shown}")
    axes.legend()
    save_png(figure, file)
