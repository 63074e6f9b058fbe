"""Draw into PNG files, with matplotlib where it is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any


def check_plot(file: Path | None) -> None:
    """Refuse to plot where that cannot be done, before anything is measured.

    Raises:
        ModuleNotFoundError: If a file is named and matplotlib is not installed.
    """
    if file is not None and find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            '`--plot` needs matplotlib; install it with `pip install "llma-rag[plot]"`.'
        )


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, of inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_png(figure: Any, file: Path) -> None:
    """Write a figure."""
    figure.savefig(file, dpi=120, format="png")
