"""Time the engine for the documents, on a CPU or a GPU; writes `docs/results/engine-DEVICE.json`.

Recorded answers are forced in every arm, so that all write the same text. `recorded` rows use the
answers as they are; `no-overlap` and `misleading` rows show what references cost where they do not
help, `first token` rows what they cost until the first token. Run it on a machine that does nothing
else, then `make docs`.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from results import write
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from llma_rag.bench.arms import ARMS, Bench
from llma_rag.bench.bandwidth import share
from llma_rag.bench.command import arms_for, packed, run_facts
from llma_rag.bench.replay import tokenised
from llma_rag.bench.shapes import SHAPES, random_model
from llma_rag.bench.timing import interleave, rows_of
from llma_rag.bench.traces import TraceTokens, load_tokenizer
from llma_rag.bench.workloads import misleading, without_overlap
from llma_rag.decoder import Decoder
from llma_rag.engine.bitwise import is_bitwise
from llma_rag.engine.step import Pass, StepRunner

SHARES = {"no-overlap": 0.12, "misleading": 0.12, "first token": 0.1, "recorded": 0.66}
"""Kinds of work in their order, and their shares of the time; what one leaves, the next has."""

CONTEXT, STEPS = 1024, 30
"""Tokens behind which steps alone are timed, and how many."""

SHORT = 64
"""Tokens of the answers on which references cannot help."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="recorded answers")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of their tokenizer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", nargs="+", default=["0.5b"], choices=list(SHAPES))
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float32"],
        help="`float32-full` has weights that bfloat16 does not hold",
    )  # fmt: skip
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("--minutes", type=float, default=18, help="of all timing together")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="at most, as time permits")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--commit", help="where there is no repository to ask")
    given = parser.parse_args()
    if not given.traces.exists():
        sys.exit("There are no recorded answers at `--traces`.")
    torch.set_num_threads(given.threads)
    traces = tokenised([given.traces], tokenizer=given.tokenizer, rows=given.prompts)
    runs = [(shape, dtype) for dtype in given.dtypes for shape in given.shapes]
    rows: list[dict[str, Any]] = []
    for number, (shape, dtype) in enumerate(runs):
        share = given.minutes * 60 / len(runs)
        for row in _measured(given, shape, dtype, traces, share):
            rows.append(row)
            write(f"engine-{given.device}", rows, commit=given.commit)
        gc.collect()
        sys.stderr.write(f"{number + 1} of {len(runs)} done\n")


def _measured(
    given: argparse.Namespace, shape: str, dtype: str, traces: Sequence[TraceTokens], seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one shape and dtype, which together take about `seconds`."""
    name, _, kind = dtype.partition("-")
    own = random_model(shape, getattr(torch, name), given.device, full=kind == "full")
    fast: Any = PreTrainedTokenizerFast
    words = fast(tokenizer_object=load_tokenizer(given.tokenizer))
    # Recorded answers are not what random weights hold likely: there is nothing to recycle.
    began = time.monotonic()
    decoder = Decoder(packed(own), words, recycling=False)
    loaded = time.monotonic() - began
    bench = Bench(own, decoder, given.tokens)
    facts = run_facts(f"shape {shape}", bench, traces, dtype, given.repeats)
    facts |= {"decoder_s": loaded, **_device_facts(bench)}
    ours = ["plain", "llma"]
    works: dict[str, tuple[Sequence[str], Sequence[TraceTokens], int]] = {
        "no-overlap": (ours, without_overlap(traces), SHORT),
        "misleading": (ours, misleading(traces, words.decode), SHORT),
        "first token": (ours, traces, 1),
        "recorded": (given.arms or arms_for(given.device), traces, given.tokens),
    }
    until = time.monotonic()
    for name, (arms, work, tokens) in works.items():
        until += SHARES[name] * seconds
        with tqdm(desc=f"{shape} {dtype} {name}", unit="answer") as bar:
            found = interleave(
                replace(bench, tokens=tokens).run, arms, work, given.repeats,
                lambda bar=bar: bar.update() and None,
                lambda until=until: time.monotonic() > until,
            )  # fmt: skip
        for row in rows_of(found):
            runs = found[row.arm]
            yield {"shape": shape, "dtype": dtype, "work": name, **asdict(row),
                   "bandwidth": share(row, facts), "prompts": len(runs),
                   "answers": sum(map(len, runs)), "run": facts}  # fmt: skip
    decoder.close()


def _device_facts(bench: Bench) -> dict[str, Any]:
    """Return what runs a step on a GPU, how long capturing takes, and how exact the kernels are."""
    if bench.model.device.type != "cuda":
        return {}
    facts: dict[str, Any] = {"kernel_error": kernel_error(bench.model.device)}
    runner = bench.decoder.runner
    steps = runner.captured
    if steps is None:
        return {**facts, "step": None}
    function = steps.function
    facts |= {
        "step": type(function).__name__,
        "width": runner.fixed and runner.fixed.width,
        "bitwise": is_bitwise(runner),
        "capture_s": steps.seconds / max(steps.captures, 1),
        "step_ms": step_seconds(runner) * 1e3,
    }
    return facts


@torch.inference_mode()
def step_seconds(runner: StepRunner) -> float:
    """Return the median time of a step of one token, its way from and to the host included."""
    row = runner.open_row(CONTEXT + 1)
    prompt, step, times = Pass(row, [0] * CONTEXT), Pass(row, [0]), []
    runner.run(prompt)
    runner.keep(prompt, [])
    for _ in range(STEPS):
        started = time.perf_counter()
        runner.run(step).likeliest()
        times.append(time.perf_counter() - started)
    row.release()
    return statistics.median(times)


def kernel_error(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the largest difference of the Triton kernel's outcome to attention in float64."""
    from llma_rag.engine.cuda.attention_kernel import verify

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
