"""Ask many questions about the demo's documents, through both frameworks as the demo does.

Run: python -m examples.train_bundled_model.evaluate_demo [MODEL_FOLDER]

The demo asks eight questions that the bundled model answers rightly; `demo_questions.txt` holds all
from which they were chosen, one per line: the document, the question, and how the sentence that
answers it begins. An answer is right if it is that sentence, copied from that document.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from llma_rag.demo import DOCUMENTS, MODEL
from llma_rag.demo.questions import Question
from llma_rag.demo.running import Demo

logger = logging.getLogger(__name__)
QUESTIONS = Path(__file__).with_name("demo_questions.txt")
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def questions() -> Iterator[Question]:
    """Yield the questions with the sentences that answer them."""
    for line in QUESTIONS.read_text().splitlines():
        name, asked, beginning = line.split("|")
        text = (DOCUMENTS / f"{name}.md").read_text()
        start = text.index(beginning)
        end = SENTENCE_END.search(text, start)
        assert end is not None, f"no sentence of {name} begins with {beginning!r}"
        yield Question(asked, f"{name}.md", text[start : end.end()])


def main() -> None:
    """Ask, print each wrong answer, and count the right ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=MODEL)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    pool = {question.text: question for question in questions()}
    right: defaultdict[str, set[str]] = defaultdict(set)
    for row in tqdm(Demo(arguments.model).rows([*pool.values()]), total=2 * len(pool)):
        wanted, found = pool[row.question], right[row.framework]
        if row.answer == wanted.sentence and row.sources == (wanted.document,):
            found.add(row.question)
        else:
            logger.info("%s: %s\n    %s", row.framework, row.question, row.answer)
    for framework, found in [*right.items(), ("both", set.intersection(*right.values()))]:
        logger.info("%s: %d of %d right", framework, len(found), len(pool))


if __name__ == "__main__":
    main()
