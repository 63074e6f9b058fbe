"""Count the forward passes that recycling saves, with the models' own choices.

    python docs/measure_recycling.py --stories MODEL_FOLDER

Writes `docs/results/recycling.json`. A small story model decodes 20 beginnings freely, without
references and with every other eight tokens of each answer as references, with chains of 20 and
trees of 32 nodes; the bundled model answers the demo's questions through LangChain. Every answer is
compared with the one that the same decoder writes without drafts.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from unittest.mock import patch

from results import write

from langchain_llma import ChatLLMA
from llma_rag import Decoder, GenerationResult, Reference
from llma_rag.costs import CostCurve
from llma_rag.demo import DOCUMENTS, MODEL
from llma_rag.demo.chain import build_chain
from llma_rag.demo.passages import read_folder
from llma_rag.demo.questions import QUESTIONS
from llma_rag.demo.recording import RecordingDecoder
from llma_rag.engine import calibration
from llma_rag.engine.calibration import Calibration

BEGINNINGS = (
    "Once upon a time",
    "The little dog",
    "Tom had a red ball",
    "One day, Lily",
    "The sun",
)
NAMES = ("Lily", "Tom", "Ben", "Mia")
TOKENS, PIECE = 180, 8
CHAIN, TREE = 20, 32
BRANCHES_COST = 1.0
"""Passes that a branch is said to cost where only chains are wanted."""

WAYS = {"recycling": (True, False), "copies": (False, True), "both": (True, True)}
"""For each way, whether it recycles and whether it has references."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All answers of one model in one way."""

    model: str
    way: str
    drafts: str
    answers: int
    identical: int
    tokens: int
    forwards: int
    drafted: int
    tokens_per_forward: float
    seconds: float


def stories(folder: Path) -> Iterator[Row]:
    """Yield a row for chains and trees in each way; passes are taken to cost the same."""
    prompts = [f"{beginning} {name}" for name in NAMES for beginning in BEGINNINGS]
    first = Decoder.from_pretrained(folder, dtype="float32")
    plain = [first.generate(one, draft=False, max_new_tokens=TOKENS) for one in prompts]
    for nodes, branching in ((CHAIN, BRANCHES_COST), (TREE, 0.0)):
        costs = CostCurve({1: 1.0, 64: 1.0}, branching)
        for way, (recycling, copying) in WAYS.items():
            with patch.object(Calibration, "curve", return_value=costs):
                decoder = Decoder(
                    first.model, first.tokenizer, max_draft_tokens=nodes, recycling=recycling
                )
                references = [pieces(decoder, one) if copying else [] for one in plain]
                found = [
                    decoder.generate(prompt, references=given, max_new_tokens=TOKENS)
                    for prompt, given in zip(prompts, references, strict=True)
                ]
            drafts = f"{'tree' if nodes == TREE else 'chain'} of {nodes}"
            yield _row("stories260K", way, drafts, found, plain)


def pieces(decoder: Decoder, answer: GenerationResult) -> list[Reference]:
    """Return every other piece of an answer."""
    starts = range(0, len(answer.token_ids), 2 * PIECE)
    runs = (answer.token_ids[start : start + PIECE] for start in starts)
    return [Reference(str(decoder.tokenizer.decode(list(run)))) for run in runs]


def bundled() -> Iterator[Row]:
    """Yield a row for the demo's questions with copies alone and with recycling beside them.

    The model is measured for it, which models of its size are not otherwise.
    """
    passages = read_folder(DOCUMENTS)
    for way in ("copies", "both"):
        with patch.object(calibration, "SMALLEST", 0):
            decoder = Decoder.from_pretrained(MODEL, dtype="float32", recycling=WAYS[way][0])
        recording = RecordingDecoder(decoder)
        llm = ChatLLMA.from_decoder(cast("Decoder", recording), max_tokens=128)
        ask = build_chain(llm, passages, k=3).stream
        found, plain = [], []
        for question in QUESTIONS:
            "".join(ask(question.text))
            request = recording.called.request
            found.append(recording.called.result)
            plain.append(decoder.generate(request.prompt, draft=False, **request.options))
        yield _row("bundled", way, "as measured, at most 20", found, plain)


def _row(
    model: str,
    way: str,
    drafts: str,
    found: Sequence[GenerationResult],
    plain: Sequence[GenerationResult],
) -> Row:
    pairs = zip(found, plain, strict=True)
    tokens = sum(one.stats.generated_tokens for one in found)
    forwards = sum(one.stats.forward_passes for one in found)
    return Row(
        model=model,
        way=way,
        drafts=drafts,
        answers=len(found),
        identical=sum(one.token_ids == other.token_ids for one, other in pairs),
        tokens=tokens,
        forwards=forwards,
        drafted=sum(one.stats.drafted_tokens for one in found),
        tokens_per_forward=round(tokens / forwards, 3),
        seconds=round(sum(one.stats.total_time for one in found), 3),
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=Path, required=True, help="folder of stories260K")
    arguments = parser.parse_args()
    rows = [*stories(arguments.stories), *bundled()]
    write("recycling", [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
