"""Drive a StepRunner directly, with any drafts, and record what it computes."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from llma_rag.engine.step import Pass, StepRunner
from llma_rag.verification import accepted
from tests.models import VOCAB

Propose = Callable[[int, int], tuple[list[int], list[int]]]
"""From the number of tokens written and the most to draft to drafted tokens and their parents."""


@dataclass
class Decoded:
    """What a decoding came to: the logits are those each committed token was chosen from."""

    tokens: list[int] = field(default_factory=list)
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    passes: int = 0
    widest: int = 0


def decode(
    runner: StepRunner,
    prompt: list[int],
    count: int,
    propose: Propose | None = None,
    run: Callable[[Pass], torch.Tensor] | None = None,
) -> Decoded:
    """Decode `count` tokens greedily; `run` takes the place of the runner's own."""
    row = runner.open_row(len(prompt) + count)
    found, rows = Decoded(), []
    step = Pass(row, prompt)
    while True:
        found.passes += 1
        found.widest = max(found.widest, len(step.drafted) + len(step.committed) + len(row.owed))
        logits = (run or runner.logits)(step)
        nodes: list[int] = []
        choices = logits.argmax(-1).tolist()
        for choice in accepted(step.drafted, step.parents, lambda node, c=choices: c[node + 1]):
            rows.append(logits[(nodes[-1] if nodes else -1) + 1])
            found.tokens.append(choice.token)
            if choice.node is not None:
                nodes.append(choice.node)
            if len(found.tokens) == count:
                found.logits = torch.stack(rows)
                return found
        runner.keep(step, nodes)
        most = min(runner.draft_limit(row), count - len(found.tokens) - 1)
        drafted, parents = propose(len(found.tokens), most) if propose and most > 0 else ([], [])
        step = Pass(row, found.tokens[-1:], drafted, parents)


def random_chain(source: random.Random, answer: list[int]) -> Propose:
    """Drafts of 0 to 20 tokens of the answer, every second one with a wrong token inside."""

    def propose(written: int, most: int) -> tuple[list[int], list[int]]:
        drafted = answer[written : written + min(most, source.randrange(20))]
        if drafted and source.random() < 0.5:
            drafted[source.randrange(len(drafted))] = source.randrange(VOCAB)
        return drafted, list(range(-1, len(drafted) - 1))

    return propose


def random_tree(source: random.Random, answer: list[int]) -> Propose:
    """Trees of any form: wrong branches before, behind and below the answer's own tokens."""

    def propose(written: int, most: int) -> tuple[list[int], list[int]]:
        chain = answer[written : written + source.randrange(12)]
        tokens: list[int] = []
        parents: list[int] = []
        last, depth = -1, 0
        for _ in range(source.randrange(most + 1)):
            if depth < len(chain) and source.random() < 0.6:
                node, token = last, chain[depth]
                last, depth = len(tokens), depth + 1
            else:
                node, token = source.randrange(-1, len(tokens)), source.randrange(VOCAB)
            if (node, token) in zip(parents, tokens, strict=True):
                if last == len(tokens):
                    last = list(zip(parents, tokens, strict=True)).index((node, token))
                continue
            tokens.append(token)
            parents.append(node)
        return tokens, parents

    return propose
