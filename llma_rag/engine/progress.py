"""Show that a model is being prepared, where somebody watches and it takes long."""

from typing import Any

from transformers.utils import logging

DELAY = 1.0
"""Seconds of work before a bar is shown."""


def progress(what: str, unit: str, total: int | None = None) -> Any:
    """Return a tqdm bar on standard error; none where that is no terminal.

    `transformers.utils.logging.disable_progress_bar()` switches it off with those of transformers.
    """
    return logging.tqdm(desc=what, unit=unit, total=total, delay=DELAY, leave=False, disable=None)
