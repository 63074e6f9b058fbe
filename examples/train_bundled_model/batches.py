"""Batches: padded examples whose turns share a head and do not see one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from examples.train_bundled_model.auxiliary import SLOTS
from examples.train_bundled_model.examples import Example

FIRST_TOKENS, LATER_WEIGHT = 6, 0.8
MOST_PLACES = 4


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
        starts: Index of the first token of each token's sentence in a passage, -1 elsewhere,
            shape (batch, length).
        spans: On the tokens of a question the first and one past the last token of the sentence
            that answers it, 0 elsewhere, shape (batch, length, 2).
        places: For each token of a question with at most `MOST_PLACES` equals in the passages
            where they stand, shape (batch, length, length).
        evidence: For the tokens before an answer's first tokens the question's tokens whose equals
            all stand in the answering sentence, shape (batch, length, length).
        copied: Where the token after each token of an answer stands in the answering sentence, -1
            elsewhere, shape (batch, length).
        asked: On the tokens of a question the first tokens of its answer, -100 elsewhere, shape
            (batch, length, SLOTS).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    turns: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    spans: torch.Tensor
    places: torch.Tensor
    evidence: torch.Tensor
    copied: torch.Tensor
    asked: torch.Tensor

    def matched(self) -> torch.Tensor:
        """Tokens of questions whose equals all stand in the answering sentence."""
        keys = torch.arange(self.ids.shape[1])
        inside = (keys >= self.spans[..., :1]) & (keys < self.spans[..., 1:])
        return self.places.any(-1) & ~(self.places & ~inside).any(-1)


def make_batch(examples: Sequence[Example]) -> Batch:
    """Lay out examples side by side, padded at the end."""
    rows, length = len(examples), max(len(example) for example in examples)
    ids = torch.ones(rows, length, dtype=torch.long)
    missing = torch.full_like(ids, -100)
    batch = Batch(
        ids=ids,
        positions=torch.zeros_like(ids),
        mask=torch.ones(length, length, dtype=torch.bool).tril().repeat(rows, 1, 1, 1),
        targets=missing,
        turns=torch.zeros_like(ids),
        weights=torch.zeros(rows, length),
        starts=torch.full_like(ids, -1),
        spans=torch.zeros(rows, length, 2, dtype=torch.long),
        places=torch.zeros(rows, length, length, dtype=torch.bool),
        evidence=torch.zeros(rows, length, length, dtype=torch.bool),
        copied=torch.full_like(ids, -1),
        asked=missing.unsqueeze(-1).repeat(1, 1, SLOTS),
    )
    for row, example in enumerate(examples):
        _fill(batch, row, example)
    batch.weights = _weights(batch.turns)
    batch.places = _places(batch)
    batch.evidence &= batch.matched().unsqueeze(1)
    return batch


def _places(batch: Batch) -> torch.Tensor:
    same = (batch.ids.unsqueeze(2) == batch.ids.unsqueeze(1)) & (batch.starts >= 0).unsqueeze(1)
    asked = (batch.spans[..., 1] > 0) & (same.sum(-1) <= MOST_PLACES)
    return same & asked.unsqueeze(2)


def _weights(turns: torch.Tensor) -> torch.Tensor:
    """Weight 1 on the first tokens of each answer, less on the others."""
    weights = torch.where(turns > 0, LATER_WEIGHT, 0.0)
    earlier = torch.nn.functional.pad(turns, (FIRST_TOKENS, 0))[:, : turns.shape[1]]
    weights[(turns > 0) & (earlier != turns)] = 1.0
    return weights


def _fill(batch: Batch, row: int, example: Example) -> None:
    """Write one example into its row of each tensor."""
    begin = start = len(example.head)
    head = torch.tensor(example.head, dtype=torch.long)
    batch.ids[row, :start] = head
    batch.positions[row, :start] = torch.arange(start)
    batch.targets[row, : max(0, start - 1)] = head[1:]
    for first, last in example.spans:
        if first >= 0:
            batch.starts[row, first:last] = first
    turns = zip(example.turns, example.answered, strict=True)
    for number, ((tail, answer), span) in enumerate(turns, start=1):
        turn = torch.tensor(tail + answer)
        stop, asked = start + len(turn), start + len(tail)
        batch.ids[row, start:stop] = turn
        batch.positions[row, start:stop] = torch.arange(len(turn)) + begin
        batch.mask[row, 0, start:stop, begin:start] = False
        batch.targets[row, start : stop - 1] = turn[1:]
        batch.turns[row, asked - 1 : stop - 1] = number
        batch.evidence[row, asked - 1 : asked + SLOTS - 1, start:asked] = True
        for place, (there, here) in enumerate(
            zip(example.head[slice(*span)], answer, strict=False)
        ):
            if there == here:
                batch.copied[row, asked - 1 + place] = span[0] + place
        if span[0] >= 0 and len(answer) >= SLOTS:
            batch.spans[row, start + 1 : asked] = torch.tensor(span)
            batch.asked[row, start + 1 : asked] = torch.tensor(answer[:SLOTS])
        start = stop
