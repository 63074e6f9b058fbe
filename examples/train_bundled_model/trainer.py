"""One training step, and the state that is saved between runs."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM

from examples.train_bundled_model import attention
from examples.train_bundled_model.auxiliary import (
    PASSAGE_LAYER,
    PASSAGE_SAMPLE,
    QUESTION_LAYER,
    QUESTION_SAMPLE,
    WORD_LAYER,
    AuxiliaryLoss,
    SentenceHead,
    sentence_targets,
)
from examples.train_bundled_model.batches import Batch

WARM_UP = 60
HEAD_RATE = 2e-3
PROMPT_SAMPLE, PROMPT_WEIGHT, AUXILIARY_WEIGHT = 0.02, 0.1, 0.5


@dataclass(slots=True)
class Progress:
    """How far training has come: steps, tokens seen and seconds spent, over all runs.

    Attributes:
        shown: Running means of what is logged: the loss of answer tokens, and how often the first
            token is right in the answer (`first`), for a question's tokens (`asked`) and for a
            passage's (`sentence`).
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    shown: dict[str, float] = field(default_factory=dict)

    def show(self, name: str, value: float) -> None:
        """Take a value into a running mean."""
        if not math.isnan(value):
            self.shown[name] = 0.97 * self.shown.get(name, value) + 0.03 * value


def learning_rate(share: float, steps: int, peak: float) -> float:
    """Linear warm-up, a plateau for the first third, then a cosine to nearly nothing."""
    cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, share - 0.3) / 0.7))
    return peak * min(1.0, (steps + 1) / WARM_UP) * max(0.001, cosine)


class _Trained(nn.Module):
    """The language model and the heads that only training needs."""

    def __init__(self, language_model: LlamaForCausalLM) -> None:
        super().__init__()
        size = language_model.config.hidden_size
        self.language_model = language_model
        self.sentence_head = SentenceHead(size)
        self.question_head = SentenceHead(size)


class Trainer:
    """The model in fp32 with its optimizer, and a working copy that computes gradients.

    Args:
        model: What is trained, in fp32.
        peak: The highest learning rate.
        dtype: Of the working copy. bf16 is quicker only on processors that compute with it.
    """

    def __init__(self, model: LlamaForCausalLM, peak: float, dtype: torch.dtype) -> None:
        self._trained = _Trained(model)
        self._working = copy.deepcopy(self._trained).to(dtype)
        self._working.language_model.set_attn_implementation(attention.NAME)
        self.peak = peak
        self.progress = Progress()
        parameters = list(model.parameters())
        heads = [*self._trained.sentence_head.parameters()]
        heads += self._trained.question_head.parameters()
        groups = [
            {"params": [one for one in parameters if one.ndim > 1], "weight_decay": 0.1},
            {"params": [one for one in parameters if one.ndim == 1], "weight_decay": 0.0},
            {"params": heads, "weight_decay": 0.1},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)

    @property
    def model(self) -> LlamaForCausalLM:
        """The model in fp32, without the heads."""
        return self._trained.language_model

    def step(self, batch: Batch, share: float) -> None:
        """One forward and backward pass and one update."""
        started = time.monotonic()
        rate = learning_rate(share, self.progress.steps, 1.0)
        for group, peak in zip(
            self._optimizer.param_groups, (self.peak, self.peak, HEAD_RATE), strict=True
        ):
            group["lr"] = rate * peak
        self._loss(batch).backward()
        for master, parameter in self._pairs():
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._trained.parameters(), 1.0)
        self._optimizer.step()
        self._refresh()
        self.progress.steps += 1
        self.progress.tokens += int((batch.targets != -100).sum())
        self.progress.seconds += time.monotonic() - started

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self._trained.parameters(), self._working.parameters(), strict=True)

    @torch.no_grad()
    def _refresh(self) -> None:
        """Copy the weights into the working copy."""
        for master, parameter in self._pairs():
            parameter.copy_(master)

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The loss of the answers, of a few tokens of the prompts and of the two heads."""
        guide = attention.Guide(
            batch.starts, batch.spans, batch.places, batch.evidence, batch.copied
        )
        outputs = self._working.language_model.model(
            input_ids=batch.ids,
            attention_mask=(~batch.mask).to(self._working.language_model.dtype) * -1e4,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
            guide=guide,
        )
        loss = self._answer_loss(outputs.last_hidden_state, batch)
        for name, looking in guide.losses().items():
            self.progress.show(name, looking.item())
            loss = loss + AUXILIARY_WEIGHT * torch.nan_to_num(looking)
        heads = self._head_losses(outputs.hidden_states, batch)
        for name, part in heads.items():
            self.progress.show(name, part.right)
            loss = loss + AUXILIARY_WEIGHT * torch.nan_to_num(part.loss)
        return loss

    def _answer_loss(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        answers = batch.turns > 0
        sampled = (torch.rand(batch.ids.shape) < PROMPT_SAMPLE) & (batch.targets != -100)
        chosen = answers | sampled
        logits = self._working.language_model.lm_head(hidden[chosen])
        targets, is_answer = batch.targets[chosen], answers[chosen]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        weights = torch.where(is_answer, batch.weights[chosen], PROMPT_WEIGHT)
        turns = batch.turns[chosen]
        begins = is_answer & (turns != F.pad(turns, (1, 0))[:-1])
        right = (logits.argmax(-1) == targets).float()
        self.progress.show("first", right[begins].mean().item())
        self.progress.show("loss", losses.detach()[is_answer].mean().item())
        return (losses * weights).sum() / weights.sum()

    def _head_losses(
        self, layers: tuple[torch.Tensor, ...], batch: Batch
    ) -> dict[str, AuxiliaryLoss]:
        embedding = self._working.language_model.lm_head.weight
        chance = torch.rand(batch.ids.shape)
        asked = (batch.asked[..., 0] != -100) & (chance < QUESTION_SAMPLE)
        inside = (batch.starts >= 0) & (chance < PASSAGE_SAMPLE)
        matched = batch.matched() & (batch.asked[..., 0] != -100)
        openings = sentence_targets(batch.ids, batch.starts)
        return {
            "matched": self._working.question_head(
                layers[WORD_LAYER][matched], batch.asked[matched], embedding
            ),
            "asked": self._working.question_head(
                layers[QUESTION_LAYER][asked], batch.asked[asked], embedding
            ),
            "sentence": self._working.sentence_head(
                layers[PASSAGE_LAYER][inside], openings[inside], embedding
            ),
        }

    def save(self, path: Path) -> None:
        """Write model, optimizer and progress, never leaving half a file."""
        part = path.with_suffix(".part")
        state = {
            "model": self._trained.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progress": self.progress,
        }
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=False)
        self._trained.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress = state["progress"]
        self._refresh()
