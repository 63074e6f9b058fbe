"""Train the tokenizer on the corpus and count what the corpus holds.

Run: python -m examples.train_bundled_model.prepare --corpus ../shared/corpus --work .work/bundled
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from examples.train_bundled_model.documents import Document, read_corpus
from examples.train_bundled_model.prompts import SPECIAL_TOKENS

logger = logging.getLogger(__name__)
VOCABULARY = 4096


def texts(documents: list[Document], longest: int = 4000) -> Iterator[str]:
    """Yield the opening of every document as the tokenizer's training text."""
    for document in documents:
        yield "".join(unit.before + unit.text for unit in document.units)[:longest]


def train_tokenizer(documents: list[Document]) -> Tokenizer:
    """Train a byte-level BPE whose first five entries are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts(documents), trainer)
    return tokenizer


def main() -> None:
    """Write the tokenizer into the work folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--work", type=Path, default=Path(".work/bundled"))
    parser.add_argument("--tokenizer", type=Path, help="keep this tokenizer.json, train none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.work.mkdir(parents=True, exist_ok=True)
    documents = list(read_corpus(arguments.corpus))
    if arguments.tokenizer:
        tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    else:
        tokenizer = train_tokenizer(documents)
    tokenizer.normalizer = normalizers.Strip(left=False, right=True)
    tokenizer.save(str(arguments.work / "tokenizer.json"))
    answers = sum(unit.answer for document in documents for unit in document.units)
    questions = sum(len(document.questions) for document in documents)
    logger.info("documents: %s", dict(Counter(document.source for document in documents)))
    logger.info("sentences: %d, questions: %d", answers, questions)


if __name__ == "__main__":
    main()
