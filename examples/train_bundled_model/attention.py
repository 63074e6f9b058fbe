"""Attention for training on CPU: plain matrix products in bf16.

torch's fused CPU kernel takes three times as long backward. A batch here fits in memory, so the
scores are written out, a quarter of the queries at a time and without the keys after them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

NAME = "train_bundled_model"
PARTS = 4
SENTENCE_LAYER, SENTENCE_HEADS = 1, (0, 2, 4)
WORD_LAYER, WORD_HEADS = 2, slice(0, 4, 2)
QUESTION_LAYER, QUESTION_HEADS = 3, slice(0, 8, 2)
ANSWER_LAYER, ANSWER_HEADS = 4, slice(0, 8, 4)
COPY_LAYER, COPY_HEADS = 5, (0, 2, 4, 6)
KINDS = ("passage", "word", "question", "answer", "copy")
LEAST_WEIGHT = 1e-4


class Guide:
    """Where some heads should look, and how far they are from it.

    A passage's tokens look at the first tokens of their own sentence (`passage`), a question's
    tokens at the same token in the passages (`word`) and then at the sentence that answers it
    (`question`); where an answer begins, at the tokens of the question that found it (`answer`);
    an answer's tokens at the token of the passage that comes next (`copy`).

    Args:
        starts: Index of the first token of each token's sentence, -1 outside of sentences, shape
            (batch, length).
        spans: First and one past the last token of the answering sentence on a question's tokens,
            0 elsewhere, shape (batch, length, 2).
        places: Where the same token stands in the passages, shape (batch, length, length).
        evidence: The question's tokens that found the answer, on the tokens before the answer's
            first ones, shape (batch, length, length).
        copied: Where the token after each token of an answer stands in its sentence, -1 elsewhere,
            shape (batch, length).
    """

    def __init__(
        self,
        starts: torch.Tensor,
        spans: torch.Tensor,
        places: torch.Tensor,
        evidence: torch.Tensor,
        copied: torch.Tensor,
    ) -> None:
        self._starts = starts
        self._places = places
        self._evidence = evidence
        self._copied = copied
        self._spans = spans
        self._parts: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
        self._adders = {
            SENTENCE_LAYER: self._add_passage,
            WORD_LAYER: self._add_word,
            QUESTION_LAYER: self._add_question,
            ANSWER_LAYER: self._add_answer,
            COPY_LAYER: self._add_copy,
        }

    def add(self, layer: int, weights: torch.Tensor, first: int) -> None:
        """Take in the weights of a layer's queries from `first` on.

        Args:
            layer: Index of the layer.
            weights: Shape (batch, heads, queries, keys).
            first: Index of the first query.
        """
        if layer in self._adders:
            self._adders[layer](weights, slice(first, first + weights.shape[2]))

    def losses(self) -> dict[str, torch.Tensor]:
        """For each kind, minus the logarithm of the weight that should be one, as a mean."""
        return {name: torch.cat(parts).mean() for name, parts in self._parts.items()}

    def _add_passage(self, weights: torch.Tensor, here: slice) -> None:
        starts = self._starts[:, here]
        queries = torch.arange(here.start, here.stop)
        for slot, head in enumerate(SENTENCE_HEADS):
            seen = (starts >= 0) & (starts + slot < queries)
            places = (starts + slot).clamp(0, weights.shape[-1] - 1).unsqueeze(-1)
            self._keep("passage", weights[:, head].gather(-1, places)[..., 0][seen])

    def _add_word(self, weights: torch.Tensor, here: slice) -> None:
        self._add_mass("word", weights[:, WORD_HEADS], self._places[:, here])

    def _add_answer(self, weights: torch.Tensor, here: slice) -> None:
        self._add_mass("answer", weights[:, ANSWER_HEADS], self._evidence[:, here])

    def _add_copy(self, weights: torch.Tensor, here: slice) -> None:
        copied = self._copied[:, here]
        for head in COPY_HEADS:
            places = copied.clamp(min=0).unsqueeze(-1)
            self._keep("copy", weights[:, head].gather(-1, places)[..., 0][copied >= 0])

    def _add_mass(self, name: str, weights: torch.Tensor, wanted: torch.Tensor) -> None:
        wanted = wanted[..., : weights.shape[-1]]
        mass = (weights * wanted.unsqueeze(1)).sum(-1)
        self._keep(name, mass.transpose(1, 2)[wanted.any(-1)])

    def _add_question(self, weights: torch.Tensor, here: slice) -> None:
        spans = self._spans[:, here].unsqueeze(2)
        keys = torch.arange(weights.shape[-1])
        inside = (keys >= spans[..., 0]) & (keys < spans[..., 1])
        mass = (weights[:, QUESTION_HEADS] * inside.unsqueeze(1)).sum(-1)
        self._keep("question", mass.transpose(1, 2)[spans[:, :, 0, 1] > 0])

    def _keep(self, name: str, weights: torch.Tensor) -> None:
        self._parts[name].append(-weights.float().clamp(min=LEAST_WEIGHT).log().flatten())


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    guide: Guide | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with an additive mask that hides at least every later token.

    Args:
        module: The attention layer; its group size tells how many heads share keys.
        query: Shape (batch, heads, length, size).
        key: Shape (batch, key heads, length, size).
        value: Shape (batch, key heads, length, size).
        attention_mask: Zero or a large negative number, shape (batch, 1, length, length).
        scaling: Factor of the scores.
        guide: Collects what the guided heads' weights should have been.
        **_: What other implementations use.

    Returns:
        The attended values, shape (batch, length, heads, size), and no weights.
    """
    group = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group, dim=1).transpose(-1, -2)
    value = value.repeat_interleave(group, dim=1)
    query, length = query * scaling, query.shape[2]
    parts = []
    for part in range(PARTS):
        start, stop = part * length // PARTS, (part + 1) * length // PARTS
        scores = query[:, :, start:stop] @ key[..., :stop]
        weights = (scores + attention_mask[:, :, start:stop, :stop]).softmax(-1)
        if guide is not None:
            guide.add(int(module.layer_idx), weights, start)
        parts.append(weights @ value[:, :, :stop])
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, causal_attention)
