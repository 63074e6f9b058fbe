"""Batches: padded examples whose turns share a head and do not see one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from examples.train_bundled_model.examples import Example

FIRST_TOKENS, LATER_WEIGHT = 6, 0.5


@dataclass(slots=True)
class Batch:
    """Tensors of a batch.

    Attributes:
        ids: Token ids, shape (batch, length).
        positions: Position of each token within its own prompt, shape (batch, length).
        mask: Which tokens a token sees, shape (batch, 1, length, length).
        targets: The token after each token within its own prompt, -100 where there is none.
        turns: 0 on prompts, and on answers the number of the turn, counted from 1; it belongs to
            the targets, shape (batch, length).
        weights: How much each target counts: in full where an answer begins, less where it only
            goes on, nothing on prompts; shape (batch, length).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    turns: torch.Tensor
    weights: torch.Tensor


def make_batch(examples: Sequence[Example]) -> Batch:
    """Lay out examples side by side, padded at the end."""
    length = max(len(example) for example in examples)
    ids = torch.ones(len(examples), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    targets = torch.full_like(ids, -100)
    turns = torch.zeros_like(ids)
    segments = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        _fill(example, ids[row], positions[row], targets[row], turns[row], segments[row])
    shared = segments[:, None, :] == 0
    same = segments[:, :, None] == segments[:, None, :]
    mask = ((shared | same) & torch.ones(length, length, dtype=torch.bool).tril()).unsqueeze(1)
    return Batch(ids, positions, mask, targets, turns, _weights(turns))


def _weights(turns: torch.Tensor) -> torch.Tensor:
    """Weight 1 on the first tokens of each answer, less on the others."""
    weights = torch.where(turns > 0, LATER_WEIGHT, 0.0)
    earlier = torch.nn.functional.pad(turns, (FIRST_TOKENS, 0))[:, : turns.shape[1]]
    weights[(turns > 0) & (earlier != turns)] = 1.0
    return weights


def _fill(
    example: Example,
    ids: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    turns: torch.Tensor,
    segments: torch.Tensor,
) -> None:
    """Write one example into its row of each tensor."""
    start = len(example.head)
    head = torch.tensor(example.head, dtype=torch.long)
    ids[:start] = head
    positions[:start] = torch.arange(start)
    targets[: max(0, start - 1)] = head[1:]
    for number, (tail, answer) in enumerate(example.turns, start=1):
        turn = torch.tensor(tail + answer)
        stop = start + len(turn)
        ids[start:stop] = turn
        positions[start:stop] = torch.arange(len(turn)) + len(example.head)
        segments[start:stop] = number
        targets[start : stop - 1] = turn[1:]
        turns[start + len(tail) - 1 : stop - 1] = number
        start = stop
