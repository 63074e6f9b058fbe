"""Measure how often references change a sequence in bfloat16, prompt lookup beside it.

    python docs/measure_bf16.py MODEL_FOLDER [--prompts 40] [--tokens 150] > docs/data/bf16.json

Each case is one prompt. "ours": the decoder with references against the same decoder without;
the references are the plain answer, half of it, and another prompt's answer. "prompt_lookup":
transformers' `prompt_lookup_num_tokens=10` against transformers' greedy decoding, with the same
text in front of the prompt, since prompt lookup copies from nowhere else.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llma_rag import Decoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(folder: str, prompts: int, tokens: int) -> dict[str, Any]:
    """Return the counts for both dtypes."""
    torch.set_num_threads(1)
    return {
        "model": folder.rstrip("/").split("/")[-1],
        "device": "cpu",
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "prompts": prompts,
        "tokens": tokens,
        "results": {
            name: _measure(folder, dtype, prompts, tokens) for name, dtype in DTYPES.items()
        },
    }


def _measure(folder: str, dtype: torch.dtype, prompts: int, tokens: int) -> dict[str, int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    decoder = Decoder(model, tokenizer)
    counts = dict.fromkeys(("ours_changed", "prompt_lookup_changed", "plain_unlike_generate"), 0)
    counts |= {"ours_accepted_tokens": 0, "ours_forward_passes": 0, "generated_tokens": 0}
    previous = ""
    for prompt in _prompts(tokenizer, prompts):
        plain = decoder.generate(prompt, draft=False, max_new_tokens=tokens, do_sample=False)
        half = plain.text[: len(plain.text) // 2]
        copied = decoder.generate(
            prompt,
            references=[plain.text, half, previous],
            max_new_tokens=tokens,
            do_sample=False,
        )
        previous = plain.text
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        longer = tokenizer(f"{plain.text}\n{prompt}", return_tensors="pt").input_ids
        greedy, lookup = (
            _generate(model, longer, tokens),
            _generate(model, longer, tokens, lookup=10),
        )
        counts["ours_changed"] += copied.token_ids != plain.token_ids
        counts["prompt_lookup_changed"] += greedy != lookup
        counts["plain_unlike_generate"] += _generate(model, ids, tokens) != list(plain.token_ids)
        counts["ours_accepted_tokens"] += copied.stats.accepted_tokens
        counts["ours_forward_passes"] += copied.stats.forward_passes
        counts["generated_tokens"] += copied.stats.generated_tokens
    return counts


def _generate(
    model: PreTrainedModel, ids: torch.Tensor, tokens: int, lookup: int | None = None
) -> list[int]:
    output: Any = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        prompt_lookup_num_tokens=lookup,
    )
    return [int(one) for one in output[0, ids.shape[1] :]]


def _prompts(tokenizer: Any, count: int) -> Iterator[str]:
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
    json.dump(measure(given.model, given.prompts, given.tokens), sys.stdout, indent=2)
    sys.stdout.write("\n")
