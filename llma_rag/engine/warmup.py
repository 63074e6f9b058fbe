"""Do at load what the first request would have to wait for."""

from llma_rag.engine.load import most_positions
from llma_rag.engine.progress import progress
from llma_rag.engine.step import Pass, StepRunner

CAPACITY = 4096
"""Tokens of the slab whose step is captured: room for most prompts with their answers."""


def capture(runner: StepRunner, capacity: int = CAPACITY) -> None:
    """Capture a step over a slab, which the first request takes; only where steps are captured.

    Requests that need more room, or run beside the first, capture a step of their own.
    """
    if runner.captured is None:
        return
    room = min(capacity, most_positions(runner.model.config))
    with progress("Capturing steps", "step", total=2) as bar:
        row = runner.open_row(room)
        for _ in range(2):  # the prompt, then the step behind it
            step = Pass(row, [0])
            runner.run(step)
            runner.keep(step, [])
            bar.update()
