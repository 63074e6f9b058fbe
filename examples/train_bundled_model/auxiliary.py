"""Auxiliary predictions that training asks of inner layers; they are dropped afterwards.

An answer starts where its sentence starts, but the words that a question matches stand later in it.
Two predictions teach the way between them: a token of a passage names the first tokens of its own
sentence, and a token of a question names the first tokens of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

SLOTS = 3
PASSAGE_LAYER, WORD_LAYER, QUESTION_LAYER = 2, 3, 4
PASSAGE_SAMPLE, QUESTION_SAMPLE = 0.06, 0.2


@dataclass(slots=True)
class AuxiliaryLoss:
    """One prediction's loss and how often its first token is right."""

    loss: torch.Tensor
    right: float


class SentenceHead(nn.Module):
    """Predicts the first tokens of a sentence from one hidden state."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_size, SLOTS * hidden_size, bias=False)

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, embedding: torch.Tensor
    ) -> AuxiliaryLoss:
        """Compare with the targets.

        Args:
            hidden: Hidden states, shape (tokens, hidden size).
            targets: Token ids or -100, shape (tokens, SLOTS).
            embedding: The embedding matrix, shape (vocabulary, hidden size).
        """
        size = hidden.shape[-1]
        slots = self.project(F.rms_norm(hidden, (size,))).unflatten(-1, (SLOTS, size))
        known = targets != -100
        logits = slots[known] @ embedding.T
        first = torch.arange(SLOTS).expand_as(targets)[known] == 0
        right = (logits[first].argmax(-1) == targets[known][first]).float().mean().item()
        return AuxiliaryLoss(F.cross_entropy(logits.float(), targets[known]), right)


def sentence_targets(ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The first tokens of each token's sentence, so far as they stand before it.

    Args:
        ids: Token ids, shape (batch, length).
        starts: Index of the first token of each token's sentence, -1 outside of sentences, shape
            (batch, length).

    Returns:
        Token ids or -100, shape (batch, length, SLOTS).
    """
    places = starts.unsqueeze(-1) + torch.arange(SLOTS)
    here = torch.arange(ids.shape[1])[None, :, None]
    seen = (starts.unsqueeze(-1) >= 0) & (places < here)
    rows = torch.arange(ids.shape[0])[:, None, None]
    return torch.where(seen, ids[rows, places.clamp(0, ids.shape[1] - 1)], -100)
