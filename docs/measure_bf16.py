"""Measure how often drafts change a sequence in bfloat16, ours and transformers', like for like.

    python docs/measure_bf16.py MODEL_FOLDER [--prompts 40] [--tokens 150]

Writes `docs/results/bf16.json`; then run `make docs`. Each way decodes every prompt with drafts and
without, and is compared with itself. Two pairs have the same drafts: "its own answer" (a reference
that holds it, against a copy of the model as the assistant) and "a text in the prompt". Drafts are
at most 10 tokens long. How often a near tie falls otherwise depends on how many tokens are chosen
in wide passes, so tokens per forward pass stand beside each rate.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from results import write
from transformers import AutoModelForCausalLM, AutoTokenizer

from llma_rag import Decoder

WIDTH = 10
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """A prompt, its plain answer, and the prompt behind that answer."""

    prompt: list[int]
    answer: str
    longer: list[int]


class Arms:
    """The ways to decode; each takes a case and whether to draft, and returns tokens and passes."""

    def __init__(self, folder: str, dtype: torch.dtype, tokens: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokens = tokens
        self.assistant = copy.deepcopy(self.model)
        self.assistant.generation_config.update(
            num_assistant_tokens=WIDTH,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        self.passes = 0
        self.model.register_forward_pre_hook(self._count)
        self.free = Decoder(self.model, self.tokenizer, max_draft_tokens=WIDTH)
        self.fixed = Decoder(self.model, self.tokenizer, exactness="bitwise")
        assert self.fixed.exactness == "bitwise"

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def cases(self, count: int) -> Iterator[Case]:
        """Yield the cases."""
        for prompt in _prompts(count):
            ids = self.tokenizer(prompt)["input_ids"]
            options: Any = {"max_new_tokens": self.tokens, "do_sample": False}
            answer = self.free.generate(ids, draft=False, **options).text
            yield Case(ids, answer, self.tokenizer(f"{answer}\n{prompt}")["input_ids"])

    def ours(self, decoder: Decoder, ids: list[int], references: list[str], draft: bool) -> Any:
        """Decode with us."""
        result = decoder.generate(
            ids, references=references, draft=draft, max_new_tokens=self.tokens, do_sample=False
        )
        return list(result.token_ids), result.stats.forward_passes

    def theirs(self, ids: list[int], draft: bool, **drafting: Any) -> Any:
        """Decode with `generate`."""
        self.passes, tensor = 0, torch.tensor([ids])
        output = self.model.generate(
            tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=self.tokens,
            do_sample=False, **(drafting if draft else {}),
        )  # fmt: skip
        return output[0, len(ids) :].tolist(), self.passes

    def ways(self) -> dict[str, Callable[[Case, bool], Any]]:
        """Return all ways by name."""
        return {
            "its own answer: ours": lambda case, draft: self.ours(
                self.free, case.prompt, [case.answer], draft
            ),
            "its own answer: transformers, a copy of the model assists": lambda case, draft: (
                self.theirs(case.prompt, draft, assistant_model=self.assistant)
            ),
            'its own answer: ours, `exactness="bitwise"`': lambda case, draft: self.ours(
                self.fixed, case.prompt, [case.answer], draft
            ),
            "a text in the prompt: ours": lambda case, draft: self.ours(
                self.free, case.longer, [], draft
            ),
            "a text in the prompt: transformers, prompt lookup": lambda case, draft: self.theirs(
                case.longer, draft, prompt_lookup_num_tokens=WIDTH
            ),
        }


def measure(folder: str, prompts: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each dtype and way."""
    torch.set_num_threads(1)
    for name, dtype in DTYPES.items():
        arms = Arms(folder, dtype, tokens)
        cases = list(arms.cases(prompts))
        for way, decode in arms.ways().items():
            yield {"dtype": name, "way": way, "sequences": prompts, **_counts(decode, cases)}


def _counts(decode: Callable[[Case, bool], Any], cases: list[Case]) -> dict[str, int]:
    counts = dict.fromkeys(("changed", "tokens_before_a_change", "tokens", "forward_passes"), 0)
    for case in cases:
        plain, _ = decode(case, False)
        drafted, passes = decode(case, True)
        pairs = enumerate(zip(plain, drafted, strict=False))
        same = next((place for place, (one, other) in pairs if one != other), len(plain))
        counts["changed"] += drafted != plain
        counts["tokens_before_a_change"] += same
        counts["tokens"] += len(drafted)
        counts["forward_passes"] += passes
    return counts


def _prompts(count: int) -> Iterator[str]:
    starts = [
        "Once upon a time",
        "One day",
        "The little dog",
        "Tom and his mom",
        "There was a girl",
    ]
    middles = [
        " who",
        " in the park",
        " saw a",
        " had a red",
        " was sad",
        " wanted to",
        " ran",
        ",",
    ]
    for number in range(count):
        yield starts[number % len(starts)] + middles[number // len(starts) % len(middles)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=150)
    given = parser.parse_args()
    write("bf16", list(measure(given.model, given.prompts, given.tokens)))
