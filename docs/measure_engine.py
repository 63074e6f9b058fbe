"""Time the engine for the documents, on a CPU or a GPU; writes `docs/results/engine-DEVICE.json`.

Recorded answers are forced in every arm, so that all write the same text. `recorded` rows use the
answers as they are; `no-overlap` and `misleading` rows show what references cost where they do not
help. Run it on a machine that does nothing else, then `make docs`.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure import write
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from llma_rag.bench.arms import ARMS, Bench
from llma_rag.bench.command import packed, run_facts
from llma_rag.bench.replay import tokenised
from llma_rag.bench.shapes import SHAPES, random_model
from llma_rag.bench.timing import interleave, rows_of
from llma_rag.bench.traces import TraceTokens, load_tokenizer
from llma_rag.bench.workloads import misleading, without_overlap
from llma_rag.decoder import Decoder

LOSERS_SHARE = 0.3
"""Share of the time for the rows on which references cannot help."""

ARM_CHOICE = {
    "cpu": ["hf-greedy", "hf-prompt-lookup", "plain", "llma"],
    "cuda": [one for one in ARMS if one != "suffix"],
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="recorded answers")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of their tokenizer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", nargs="+", default=["0.5b"], choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("--minutes", type=float, default=18, help="of all timing together")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="at most, as time permits")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if not given.traces.exists():
        sys.exit("There are no recorded answers at `--traces`.")
    torch.set_num_threads(given.threads)
    traces = tokenised([given.traces], tokenizer=given.tokenizer, rows=given.prompts)
    runs = [(shape, dtype) for dtype in given.dtypes for shape in given.shapes]
    rows: list[dict[str, Any]] = []
    for number, (shape, dtype) in enumerate(runs):
        share = given.minutes * 60 / len(runs)
        rows += _measured(given, shape, dtype, traces, share)
        gc.collect()
        sys.stderr.write(f"{number + 1} of {len(runs)} done\n")
        write(f"engine-{given.device}", rows)


def _measured(
    given: argparse.Namespace, shape: str, dtype: str, traces: Sequence[TraceTokens], seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one shape and dtype, which together take about `seconds`."""
    end = time.monotonic() + seconds
    own = random_model(shape, getattr(torch, dtype), given.device)
    kind: Any = PreTrainedTokenizerFast
    words = kind(tokenizer_object=load_tokenizer(given.tokenizer))
    decoder = Decoder(packed(own), words)
    bench = Bench(own, decoder, given.tokens)
    facts = run_facts(f"shape {shape}", decoder, traces, dtype, given.tokens, given.repeats, True)
    ours = ["plain", "llma"]
    works = {
        "no-overlap": (ours, without_overlap(traces), end - seconds * (1 - LOSERS_SHARE / 2)),
        "misleading": (ours, misleading(traces), end - seconds * (1 - LOSERS_SHARE)),
        "recorded": (given.arms or ARM_CHOICE[given.device], traces, end),
    }
    for name, (arms, work, until) in works.items():
        with tqdm(desc=f"{shape} {dtype} {name}", unit="answer") as bar:
            found = interleave(
                bench.run, arms, work, given.repeats,
                lambda bar=bar: bar.update() and None,
                lambda until=until: time.monotonic() > until,
            )  # fmt: skip
        for row in rows_of(found):
            repeats = [len(runs) for runs in found[row.arm]]
            yield {"shape": shape, "dtype": dtype, "work": name, **asdict(row),
                   "answers": sum(repeats), "run": facts}  # fmt: skip
    decoder.close()


if __name__ == "__main__":
    main()
