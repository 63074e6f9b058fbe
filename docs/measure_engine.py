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
from llma_rag.bench.command import arms_for, packed, run_facts
from llma_rag.bench.replay import tokenised
from llma_rag.bench.shapes import SHAPES, random_model
from llma_rag.bench.timing import interleave, rows_of
from llma_rag.bench.traces import TraceTokens, load_tokenizer
from llma_rag.bench.workloads import misleading, without_overlap
from llma_rag.decoder import Decoder

LOSERS_SHARE = 0.3
"""Share of the time for the rows on which references cannot help."""


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
    facts |= _device_facts(bench)
    ours = ["plain", "llma"]
    works = {
        "no-overlap": (ours, without_overlap(traces), end - seconds * (1 - LOSERS_SHARE / 2)),
        "misleading": (ours, misleading(traces), end - seconds * (1 - LOSERS_SHARE)),
        "recorded": (given.arms or arms_for(given.device), traces, end),
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


def _device_facts(bench: Bench) -> dict[str, Any]:
    """Return bytes that a pass reads, the device's own rate, and what was captured."""
    runner, device = bench.decoder.runner, bench.model.device
    embeddings = bench.model.get_input_embeddings().weight
    tied = embeddings is bench.model.get_output_embeddings().weight
    read = sum(one.numel() * one.element_size() for one in bench.model.parameters())
    facts: dict[str, Any] = {"weight_gb": (read - (0 if tied else embeddings.nbytes)) / 1e9}
    if device.type != "cuda":
        return facts
    block = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        block.clone()
    torch.cuda.synchronize()
    facts["copy_gb_per_s"] = 2 * 10 * block.nbytes / (time.perf_counter() - begin) / 1e9
    steps = runner.captured
    facts["kernel_error"] = kernel_error(device)
    return facts | ({} if steps is None else {"capture_s": steps.seconds / max(steps.captures, 1)})


def kernel_error(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the largest difference of the Triton kernel's outcome to attention in float64."""
    from llma_rag.engine.kernels import verify

    source = torch.Generator().manual_seed(0)
    width, start, heads, kv_heads, dim = 16, 700, 8, 2, 64
    query = torch.randn((1, heads, width, dim), generator=source).to(device, dtype)
    keys, values = (
        torch.randn((1, kv_heads, 1024, dim), generator=source).to(device, dtype) for _ in "kv"
    )
    number = {"device": device, "dtype": torch.int32}
    sees = torch.tensor([[(2 << row) - 1 for row in range(width)]], device=device)
    starts, slots = torch.full((1,), start, **number), torch.zeros(1, **number)
    got = verify(query, keys, values, starts, slots, sees, dim**-0.5)
    group, end = heads // kv_heads, start + width
    k, v = (one[:, :, :end].double().repeat_interleave(group, 1) for one in (keys, values))
    scores = query.double() @ k.transpose(-1, -2) * dim**-0.5
    seen = torch.ones((width, end), dtype=torch.bool, device=device).tril(start)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return float((got.double() - (weights @ v).transpose(1, 2)).abs().max())


if __name__ == "__main__":
    main()
