"""Train the bundled model, resumable at any time.

Run: python -m examples.train_bundled_model.train --corpus ../shared/corpus --work .work/bundled

The work folder holds tokenizer.json (from prepare), the newest state (state.pt) and the log. Run
the same command again to go on where it stopped. With `--init FOLDER` training starts from a model
that already copies and skips the curriculum.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from examples.train_bundled_model import attention
from examples.train_bundled_model.batches import Batch, make_batch
from examples.train_bundled_model.documents import Document, is_held_out, read_corpus
from examples.train_bundled_model.evaluate import EvaluationSet, evaluate, held_out_sets
from examples.train_bundled_model.examples import Example, ExampleMaker, Limits, repeat_example

logger = logging.getLogger(__name__)
CONFIG = LlamaConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
)
WARM_UP = 60
CHECKED = 60
PROMPT_SAMPLE, PROMPT_WEIGHT = 0.03, 0.1
SIZES = (
    Limits((1, 1, 2), 300, 12, 520, cut=0.4, same_title=0.3),
    Limits((1, 2, 3), 650, 14, 720, cut=0.4, same_title=0.4),
    Limits((2, 3, 4), 1300, 18, 1100, cut=0.4, same_title=0.5),
    Limits((3, 4, 5), 2400, 24, 1500, cut=0.4, same_title=0.5),
)
FIRST_MIX, LAST_MIX = (6.0, 3.0, 0.5, 0.0), (2.0, 3.0, 3.0, 0.4)
FORMING = Limits((1,), 450, 6, 224)
GROWING = Limits((1, 2, 3), 800, 8, 512)


@dataclass(slots=True)
class Progress:
    """How far training has come: steps, tokens seen and seconds spent, over all runs."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0


def learning_rate(share: float, steps: int, peak: float) -> float:
    """Linear warm-up, a plateau for the first third, then a cosine to nearly nothing."""
    cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, share - 0.3) / 0.7))
    return peak * min(1.0, (steps + 1) / WARM_UP) * max(0.01, cosine)


class BatchMaker:
    """Draws the batches of each stage: all lengths of the mix, or the curriculum before it."""

    def __init__(self, maker: ExampleMaker, rng: random.Random, size: int, *, warm: bool) -> None:
        self._maker = maker
        self._rng = rng
        self._size = size
        self._warm = warm

    def draw(self, share: float) -> Batch:
        """Draw one batch of about `size` tokens; share is how much of the training is done."""
        limits, repeats = self._stage(share)
        examples: list[Example] = []
        while sum(len(example) for example in examples) < self._size - limits.tokens // 3:
            if self._rng.random() < repeats:
                examples.append(repeat_example(self._rng, CONFIG.vocab_size, limits))
            else:
                examples.append(self._maker.draw(limits))
        return make_batch(examples)

    def _stage(self, share: float) -> tuple[Limits, float]:
        """The limits of the next batch, and the share of repeats of random tokens in it."""
        if not self._warm and share < 0.25:
            return FORMING, 0.3 * (1 - share / 0.25)
        if not self._warm and share < 0.45:
            return GROWING, 0.03
        mix = [a + (b - a) * share for a, b in zip(FIRST_MIX, LAST_MIX, strict=True)]
        return self._rng.choices(SIZES, mix)[0], 0.06 * (1 - share)


def _split(model: LlamaForCausalLM) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The matrices of the layers, for Muon, and embedding and norms, for AdamW."""
    inside = set(model.model.layers.parameters())
    matrices = [one for one in model.parameters() if one in inside and one.ndim == 2]
    chosen = set(matrices)
    return matrices, [one for one in model.parameters() if one not in chosen]


class Trainer:
    """The model in fp32 with its optimizer, and a working copy in bf16 that computes gradients."""

    def __init__(self, model: LlamaForCausalLM, peak: float) -> None:
        self.model = model
        self._working = copy.deepcopy(model).to(torch.bfloat16)
        self._working.set_attn_implementation(attention.NAME)
        self.peak = peak
        self.progress = Progress()
        matrices, others = _split(model)
        self._optimizers = (
            torch.optim.Muon(matrices, lr=peak, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )

    def step(self, batch: Batch, share: float) -> None:
        """One forward and backward pass and one update."""
        started = time.monotonic()
        rate = learning_rate(share, self.progress.steps, self.peak)
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = rate
        loss, answer_loss = self._loss(batch)
        loss.backward()
        for master, parameter in self._pairs():
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self._refresh()
        self._count(batch, answer_loss, time.monotonic() - started)

    def _pairs(self) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        return zip(self.model.parameters(), self._working.parameters(), strict=True)

    @torch.no_grad()
    def _refresh(self) -> None:
        """Copy the weights into the working copy."""
        for master, parameter in self._pairs():
            parameter.copy_(master)

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, float]:
        """All answer tokens count in full; a sample of the prompt's tokens counts a little."""
        answers = batch.turns > 0
        sampled = (torch.rand(batch.ids.shape) < PROMPT_SAMPLE) & (batch.targets != -100)
        chosen = answers | sampled
        hidden = self._working.model(
            input_ids=batch.ids,
            attention_mask=(~batch.mask).to(torch.bfloat16) * -1e4,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        logits = self._working.lm_head(hidden[chosen])
        losses = F.cross_entropy(logits.float(), batch.targets[chosen], reduction="none")
        is_answer = answers[chosen]
        weights = torch.where(is_answer, batch.weights[chosen], PROMPT_WEIGHT)
        return (losses * weights).sum() / weights.sum(), losses.detach()[is_answer].mean().item()

    def _count(self, batch: Batch, loss: float, seconds: float) -> None:
        progress = self.progress
        progress.loss = loss if not progress.steps else 0.98 * progress.loss + 0.02 * loss
        progress.steps += 1
        progress.tokens += int((batch.targets != -100).sum())
        progress.seconds += seconds

    def save(self, path: Path) -> None:
        """Write model, optimizer and progress, never leaving half a file."""
        part = path.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": self.progress,
        }
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = state["progress"]
        self._refresh()


def share_done(progress: Progress, arguments: argparse.Namespace) -> float:
    """How much of the training is done, by tokens or by minutes, whichever is further."""
    by_tokens = progress.tokens / (arguments.tokens * 1e6)
    by_time = progress.seconds / (arguments.minutes * 60) if arguments.minutes else 0.0
    return max(by_tokens, by_time)


def _report(trainer: Trainer, sets: list[EvaluationSet], work: Path) -> None:
    trainer.model.eval()
    scores = evaluate(trainer.model, sets)
    trainer.model.train()
    logger.info("step %d exact %s", trainer.progress.steps, scores)
    trainer.save(work / "state.pt")
    trainer.model.save_pretrained(work / "checkpoint")


def run(
    trainer: Trainer, batches: BatchMaker, sets: list[EvaluationSet], args: argparse.Namespace
) -> None:
    """Train to the end, with regular log lines and checkpoints; a TERM signal saves and ends."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    progress = trainer.progress
    with tqdm(total=100, unit="%", mininterval=30) as bar:
        while (share := share_done(progress, args)) < 1 and not stopped:
            trainer.step(batches.draw(share), share)
            bar.update(100 * share - bar.n)
            if progress.steps % 50 == 0:
                rate = progress.tokens / progress.seconds
                logger.info(
                    "step %d tokens %.2fM minutes %.1f answer loss %.4f tokens/s %.0f",
                    progress.steps,
                    progress.tokens / 1e6,
                    progress.seconds / 60,
                    progress.loss,
                    rate,
                )
            if progress.steps % args.every == 0:
                _report(trainer, sets, args.work)
    if stopped:
        trainer.save(args.work / "state.pt")
    else:
        _report(trainer, sets, args.work)


def _model(init: Path | None) -> LlamaForCausalLM:
    if init is None:
        return LlamaForCausalLM(CONFIG)
    return LlamaForCausalLM.from_pretrained(init, dtype=torch.float32)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--work", type=Path, default=Path(".work/bundled"))
    parser.add_argument("--init", type=Path, help="start from this model, without curriculum")
    parser.add_argument("--tokens", type=float, default=40.0, help="millions of tokens to train on")
    parser.add_argument("--minutes", type=float, default=0.0, help="end after this time at most")
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--batch", type=int, default=3000, help="tokens per step")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, or go on training."""
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(args.work / "train.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    documents: list[Document] = list(read_corpus(args.corpus))
    sets = held_out_sets(documents, tokenizer, CHECKED, details=False)
    seen = [d for d in documents if not is_held_out(d) and d.source != "clapnq"]
    trainer = Trainer(_model(args.init), args.peak)
    if (args.work / "state.pt").exists():
        trainer.load(args.work / "state.pt")
    rng = random.Random(args.seed + trainer.progress.steps)
    batches = BatchMaker(
        ExampleMaker(seen, tokenizer, rng), rng, args.batch, warm=args.init is not None
    )
    run(trainer, batches, sets, args)


if __name__ == "__main__":
    main()
