"""Held-out quality: the share of questions whose whole greedy answer is the right sentence.

Run: python -m examples.train_bundled_model.evaluate --corpus ../shared/corpus MODEL_FOLDER

Greedy decoding gives the right answer exactly when every token of the answer, its end token
included, has the highest logit after the right tokens before it. One forward pass therefore tells
what generation would do; `--generate N` generates N answers per set and compares.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaForCausalLM

from examples.train_bundled_model.batches import make_batch
from examples.train_bundled_model.documents import SOFTWARE, Document, is_held_out, read_corpus
from examples.train_bundled_model.examples import Example, ExampleMaker, Limits
from examples.train_bundled_model.prompts import FORMATS, PromptFormat

logger = logging.getLogger(__name__)
ONE_TO_FOUR = (1, 2, 3, 4)


@dataclass(slots=True)
class EvaluationSet:
    """Examples of one question each, under a name."""

    name: str
    examples: list[Example]


class Right(NamedTuple):
    """Whether an answer begins with the right token, and whether all of it is right."""

    first: bool
    exact: bool


def _draw(
    name: str,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    count: int,
    *,
    passage: int = 360,
    same_title: float = 0.0,
    formats: Sequence[PromptFormat] = FORMATS,
) -> EvaluationSet:
    """Questions over one to four passages of about so many characters each."""
    shares = {document.source: 1.0 for document in documents}
    rng = random.Random(name)
    maker = ExampleMaker(documents, tokenizer, rng, formats, shares)
    sizes = [Limits((n,), n * passage, 1, 1600, same_title=same_title) for n in ONE_TO_FOUR]
    return EvaluationSet(name, [maker.draw(rng.choice(sizes)) for _ in range(count)])


def _without_questions(documents: Sequence[Document]) -> list[Document]:
    return [replace(document, questions=[]) for document in documents]


def held_out_sets(
    documents: Sequence[Document], tokenizer: Tokenizer, count: int, *, details: bool = True
) -> list[EvaluationSet]:
    """Made and human questions about held-out titles; with details also per size and format."""
    held = [document for document in documents if is_held_out(document)]
    texts = [d for d in held if d.source not in {"squad", "clapnq"}]
    software = [d for d in texts if d.source in SOFTWARE]
    made = _without_questions(texts)
    squad = [d for d in held if d.source == "squad"]
    clapnq = [d for d in documents if d.source == "clapnq"]
    sets = [_draw("made", made, tokenizer, count), _draw("squad", squad, tokenizer, count)]
    if not details:
        return sets
    software_only = _without_questions(software)
    sets.append(_draw("made, software", software_only, tokenizer, count))
    sets.append(_draw("clapnq", clapnq, tokenizer, count))
    for name, documents_asked in (("made", made), ("squad", squad)):
        draw = partial(_draw, documents=documents_asked, tokenizer=tokenizer)
        sets.append(draw(f"{name}, same title", count=count, same_title=1.0))
        sets.append(draw(f"{name}, long", count=count, passage=600, same_title=1.0))
        sets.extend(
            draw(f"{name}, {prompt.name}", count=max(1, count // 2), formats=[prompt])
            for prompt in FORMATS
        )
    return sets


def training_sets(
    documents: Sequence[Document], tokenizer: Tokenizer, count: int
) -> list[EvaluationSet]:
    """What training reports: the main sets, and made questions over passages of one sentence."""
    held = [d for d in documents if is_held_out(d) and d.source not in {"squad", "clapnq"}]
    short = _draw("made, one sentence each", held, tokenizer, count, passage=60)
    return [short, *held_out_sets(documents, tokenizer, count, details=False)]


@torch.inference_mode()
def answers_right(
    model: LlamaForCausalLM, examples: Sequence[Example], size: int = 8
) -> list[list[Right]]:
    """For each example and each of its turns, how far the greedy answer is right."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]))
    results: list[list[Right]] = [[] for _ in examples]
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = make_batch([examples[index] for index in rows])
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions
        ).logits
        wrong = (logits.argmax(-1) != batch.targets) & (batch.turns > 0)
        begins = batch.turns != torch.nn.functional.pad(batch.turns, (1, 0))[:, :-1]
        for row, index in enumerate(rows):
            failed = set(batch.turns[row][wrong[row]].tolist())
            missed = set(batch.turns[row][wrong[row] & begins[row]].tolist())
            numbers = range(1, len(examples[index].turns) + 1)
            results[index] = [Right(n not in missed, n not in failed) for n in numbers]
    return results


@torch.inference_mode()
def generated_answers(model: LlamaForCausalLM, examples: Sequence[Example]) -> list[bool]:
    """For each example, whether real greedy generation gives its first answer."""
    results = []
    for example in examples:
        tail, answer = example.turns[0]
        prompt = torch.tensor([example.head + tail])
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(answer) + 8,
            do_sample=False,
        )
        results.append(output[0, prompt.shape[1] :].tolist() == answer)
    return results


def evaluate(
    model: LlamaForCausalLM, sets: Sequence[EvaluationSet], *, first: bool = False
) -> dict[str, float]:
    """The share of exact answers per set, with `first` also that of right first tokens."""
    model.eval()
    scores = {}
    for item in tqdm(sets):
        found = [right for row in answers_right(model, item.examples) for right in row]
        scores[item.name] = round(sum(right.exact for right in found) / len(found), 3)
        if first:
            share = sum(right.first for right in found) / len(found)
            scores[f"{item.name}, first token"] = round(share, 3)
    return scores


def _table(scores: dict[str, float], count: dict[str, int]) -> str:
    rows = [f"| {name} | {count[name]} | {score:.1%} |" for name, score in scores.items()]
    return "\n".join(["| set | questions | exact |", "|---|---:|---:|", *rows])


def _check_generation(model: LlamaForCausalLM, sets: Sequence[EvaluationSet], number: int) -> None:
    agree: dict[str, int] = defaultdict(int)
    for item in tqdm(sets):
        some = item.examples[:number]
        forced = [row[0].exact for row in answers_right(model, some)]
        agree[item.name] = sum(
            a == b for a, b in zip(forced, generated_answers(model, some), strict=True)
        )
    logger.info("generation agrees with the forced pass on (of %d): %s", number, dict(agree))


def main() -> None:
    """Evaluate a saved model and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder with config, weights and tokenizer.json")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--count", type=int, default=400, help="questions per set")
    parser.add_argument("--generate", type=int, default=0, help="answers per set to generate too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--brief", action="store_true", help="only the main sets")
    parser.add_argument("--only", default="", help="only the sets with this in their name")
    parser.add_argument("--json", type=Path, help="write the shares here too")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    model = LlamaForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    documents = list(read_corpus(arguments.corpus))
    sets = held_out_sets(documents, tokenizer, arguments.count, details=not arguments.brief)
    sets = [item for item in sets if arguments.only in item.name]
    scores = evaluate(model, sets)
    logger.info(_table(scores, {item.name: len(item.examples) for item in sets}))
    if arguments.json:
        arguments.json.write_text(json.dumps(scores, indent=2) + "\n")
    if arguments.generate:
        _check_generation(model, sets[:3], arguments.generate)


if __name__ == "__main__":
    main()
