"""Train the bundled model, resumable at any time.

Run: python -m examples.train_bundled_model.train --corpus ../shared/corpus --work .work/bundled

The work folder holds tokenizer.json (from prepare), the newest state (state.pt) and the log. Run
the same command again to go on where it stopped. With `--init FOLDER` training starts from a model
that already copies and skips the curriculum. `--dtype float32` is quicker on processors without
products of 16-bit numbers.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from examples.train_bundled_model.batches import Batch, make_batch
from examples.train_bundled_model.documents import Document, is_held_out, read_corpus
from examples.train_bundled_model.evaluate import EvaluationSet, evaluate, training_sets
from examples.train_bundled_model.examples import (
    Example,
    ExampleMaker,
    Limits,
    WordChanger,
    repeat_example,
)
from examples.train_bundled_model.trainer import Progress, Trainer

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
CHECKED = 60
CHANGED, CHANGED_WORDS = 0.5, 0.6
CUT, LATE_CUT, LATE = 0.45, 0.2, 0.8
SIZES = (
    Limits((2, 3, 4, 5), 250, 12, 560, cut=CUT, same_title=0.3),
    Limits((1, 2, 3), 500, 12, 640, cut=CUT, same_title=0.4),
    Limits((1, 2, 3, 4), 1000, 14, 900, cut=CUT, same_title=0.4),
    Limits((2, 3, 4), 1500, 16, 1200, cut=CUT, same_title=0.5),
)
FIRST_MIX, LAST_MIX = (6.0, 2.0, 0.3, 0.0), (1.0, 2.0, 3.0, 3.0)
FORMING = Limits((1,), 450, 6, 224)
GROWING = Limits((1, 2, 3), 800, 8, 512)


class BatchMaker:
    """Draws the batches of each stage: all lengths of the mix, or the curriculum before it."""

    def __init__(
        self,
        maker: ExampleMaker,
        changer: WordChanger,
        rng: random.Random,
        size: int,
        *,
        warm: bool,
    ) -> None:
        self._maker = maker
        self._changer = changer
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
                continue
            example = self._maker.draw(limits)
            changed = self._rng.random() < CHANGED
            examples.append(self._changer.change(example, CHANGED_WORDS) if changed else example)
        return make_batch(examples)

    def _stage(self, share: float) -> tuple[Limits, float]:
        """The limits of the next batch, and the share of repeats of random tokens in it."""
        if not self._warm and share < 0.25:
            return FORMING, 0.3 * (1 - share / 0.25)
        if not self._warm and share < 0.45:
            return GROWING, 0.03
        late = 1.0 if self._warm else share
        mix = [a + (b - a) * late for a, b in zip(FIRST_MIX, LAST_MIX, strict=True)]
        limits = self._rng.choices(SIZES, mix)[0]
        return replace(limits, cut=LATE_CUT) if share > LATE else limits, 0.06


def share_done(progress: Progress, arguments: argparse.Namespace) -> float:
    """How much of the training is done, by tokens or by minutes, whichever is further."""
    by_tokens = progress.tokens / (arguments.tokens * 1e6)
    by_time = progress.seconds / (arguments.minutes * 60) if arguments.minutes else 0.0
    return max(by_tokens, by_time)


def _report(trainer: Trainer, sets: list[EvaluationSet], work: Path) -> None:
    trainer.model.eval()
    scores = evaluate(trainer.model, sets, first=True)
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
                    "step %d tokens %.2fM minutes %.1f tokens/s %.0f %s",
                    progress.steps,
                    progress.tokens / 1e6,
                    progress.seconds / 60,
                    rate,
                    {name: round(value, 3) for name, value in progress.shown.items()},
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
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
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
    sets = training_sets(documents, tokenizer, CHECKED)
    seen = [d for d in documents if not is_held_out(d) and d.source != "clapnq"]
    trainer = Trainer(_model(args.init), args.peak, getattr(torch, args.dtype))
    if (args.work / "state.pt").exists():
        trainer.load(args.work / "state.pt")
    rng = random.Random(args.seed + trainer.progress.steps)
    maker, changer = ExampleMaker(seen, tokenizer, rng), WordChanger(tokenizer, rng)
    batches = BatchMaker(maker, changer, rng, args.batch, warm=args.init is not None)
    run(trainer, batches, sets, args)


if __name__ == "__main__":
    main()
