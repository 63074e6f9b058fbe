"""Find out whether steps of one shape give the same bits with drafts and without."""

import random
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from transformers import PreTrainedModel

from llma_rag.engine.cuda.captured import CapturedSteps
from llma_rag.engine.cuda.compiled_step import CompiledStep, can_capture
from llma_rag.engine.cuda.fused_step import FusedStep, can_fuse
from llma_rag.engine.fixed import FixedShape
from llma_rag.engine.load import most_positions
from llma_rag.engine.step import Pass, StepRunner

FAR = 1200
"""Tokens of the longer prompt behind which steps are compared with free ones."""

SPARE = 512
"""Tokens of room that one of the compared rows has more than the other."""


Exactness = Literal["bitwise", "argmax"]
"""What is promised of drafts: the same bits in one fixed shape, or the same choices."""


def with_exactness(runner: StepRunner, wanted: Exactness | None) -> StepRunner:
    """Return the runner that keeps a promise, or the given one where it cannot be kept.

    Args:
        runner: As the probe granted it.
        wanted: None is "bitwise" on CUDA, where the rows of a step are free, else "argmax".

    Raises:
        ValueError: If `wanted` is neither.
    """
    if wanted not in (None, "bitwise", "argmax"):
        raise ValueError(f'`exactness` must be "bitwise" or "argmax", got {wanted!r}.')
    on_gpu = runner.model.device.type == "cuda"
    if wanted == "argmax" or (wanted is None and not on_gpu):
        return runner
    granted = bitwise_runner(runner)
    if granted is None and wanted is not None:
        warnings.warn(
            f'`exactness="bitwise"` is not granted to {type(runner.model).__name__} here: its '
            'steps gave other bits with drafts than without. It decodes with "argmax".',
            stacklevel=3,
        )
    return granted or runner


@torch.inference_mode()
def is_bitwise(runner: StepRunner) -> bool:
    """Compare, bit by bit, single steps with drafts behind the same tokens.

    The drafts vary what must not matter: a token's row in the step, wrong tokens behind it, what
    earlier steps left in the slab, and the slab's capacity. They cross the end of a bucket.
    """
    fixed = runner.fixed
    if fixed is None or not runner.can_fix:
        return False
    room = most_positions(runner.model.config)
    count = 2 * fixed.width
    prompt = min(fixed.bucket, room - count) - fixed.width
    if prompt < 1:
        return False
    ids = _tokens(runner.model, prompt + count)
    alone = _logits(runner, ids, prompt, [1] * count, capacity=len(ids))
    return all(
        torch.equal(alone, _logits(runner, ids, prompt, sizes, capacity=len(ids) + spare))
        for sizes, spare in ((_sizes(count, fixed.width), 0), ([fixed.width, *[2] * count], SPARE))
    )


def fixed_width(model: PreTrainedModel) -> int:
    """Return the rows of all steps: many where they are nearly free, few where each one costs."""
    return 16 if model.device.type == "cuda" else 8


def _logits(
    runner: StepRunner, ids: list[int], prompt: int, sizes: list[int], capacity: int
) -> torch.Tensor:
    """Return the logits behind each token after the prompt, from steps of the given sizes."""
    row = runner.open_row(capacity)
    first = Pass(row, ids[:prompt])
    runner.run(first)
    runner.keep(first, [])
    found: list[torch.Tensor] = []
    for size in sizes:
        here = row.length
        right = min(size - 1, runner.draft_limit(row), len(ids) - here - 1)
        if right < 0:
            break
        wrong = max(0, min(runner.draft_limit(row), size) - right)
        drafted = [*ids[here + 1 : here + 1 + right], *[ids[0]] * wrong]
        step = Pass(row, ids[here : here + 1], drafted, range(-1, len(drafted) - 1))
        found.append(runner.logits(step)[: 1 + right])
        runner.keep(step, range(right))
    while row.length < len(ids):
        step = Pass(row, ids[row.length : row.length + 1])
        found.append(runner.logits(step))
        runner.keep(step, [])
    return torch.cat(found)


def _sizes(count: int, most: int) -> list[int]:
    source = random.Random(0)
    return [source.randint(1, most) for _ in range(count)]


def _tokens(model: PreTrainedModel, count: int) -> list[int]:
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    source = random.Random(1)
    return [source.randrange(vocabulary) for _ in range(count)]


def bitwise_runner(runner: StepRunner) -> StepRunner | None:
    """Return a runner of a fixed shape that the self-test grants; None if none is.

    On CUDA steps captured in graphs are tried first, then the same without.
    """
    width = fixed_width(runner.model)
    for captured in _ways(runner, width):
        fixed = StepRunner(runner.model, runner.verdict, FixedShape(width), captured)
        try:
            granted = is_bitwise(fixed) and (captured is None or agrees(runner, fixed))
        except Exception as error:
            if captured is None:
                raise
            warnings.warn(f"Steps are not captured: {error!r}", stacklevel=2)
            granted = False
        if granted:
            return fixed
    return None


def _ways(runner: StepRunner, width: int) -> Iterator[CapturedSteps | None]:
    """Yield ways to run steps, the quicker ones first."""
    model = runner.model
    if model.device.type == "cuda" and runner.verdict.fast and can_capture(model):
        if can_fuse(model):
            yield CapturedSteps(FusedStep(model, width), width)
        yield CapturedSteps(CompiledStep(model, width), width)
    yield None


@torch.inference_mode()
def agrees(runner: StepRunner, fixed: StepRunner) -> bool:
    """Return whether captured steps give the logits of free ones, as near as the dtype rounds.

    Behind few tokens, and behind so many that attention goes over several pieces and turns.
    """
    room = most_positions(runner.model.config)
    return all(_agree(runner, fixed, min(prompt, room - 16)) for prompt in (16, FAR))


def _agree(runner: StepRunner, fixed: StepRunner, prompt: int) -> bool:
    ids = _tokens(runner.model, prompt + 8)
    one, other = (_logits(each, ids, prompt, [1, 3], capacity=len(ids)) for each in (runner, fixed))
    scale, low = float(one.abs().max()), torch.finfo(one.dtype).bits < 32
    return float((one - other).float().abs().mean(-1).max()) <= scale * (0.05 if low else 1e-3)
