"""Time a model with and without us; the command line calls `bench_command`."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llma_rag.bench.arms import ARMS, Bench
from llma_rag.bench.bandwidth import share, traffic
from llma_rag.bench.peers import HAS_SUFFIX_DECODING
from llma_rag.bench.plots import check_plot, new_figure, save_png
from llma_rag.bench.replay import tokenised
from llma_rag.bench.shapes import random_model
from llma_rag.bench.timing import ArmRow, interleave, rows_of
from llma_rag.bench.traces import TraceTokens, family_folder, load_tokenizer
from llma_rag.decoder import Decoder
from llma_rag.engine.calibration import calibrate, measure
from llma_rag.engine.cpu.prepack import prepacked
from llma_rag.engine.load import default_device, load
from llma_rag.engine.twin import can_twin, twin

_HEADS = ("arm", "TPOT ms", "TTFT ms", "tok/fwd", "bandwidth", "identical")

DIFFERENT = 3
"""Exit status of `--verify` where an answer of ours differs from plain decoding."""


def bench_command(
    *,
    traces: Sequence[Path],
    model: str | None = None,
    shape: str | None = None,
    tokenizer: Path | None = None,
    device: str | None = None,
    dtype: str = "bfloat16",
    arms: Sequence[str] | None = None,
    prompts: int = 8,
    tokens: int = 128,
    repeats: int = 5,
    verify: bool = False,
    json_file: Path | None = None,
    plot: Path | None = None,
    console: Console | None = None,
) -> int:
    """Time arms against each other on recorded answers and print the outcome.

    Args:
        traces: JSON Lines files of recorded answers.
        model: Folder or hub name of a model; or `shape`, for random weights.
        shape: Name out of `llma_rag.bench.shapes.SHAPES`.
        tokenizer: Folder with a `tokenizer.json`; None takes the traces' or the model's own.
        device: torch device; None takes CUDA where there is one.
        dtype: Name of a torch dtype.
        arms: Names out of `ARMS`; None takes all that are sensible here.
        prompts: First answers of each file.
        tokens: Most tokens of an answer.
        repeats: Times that each arm decodes each prompt.
        verify: Let the model choose its tokens, and compare them with those of the arm "plain",
            which is added; needs real weights to mean much.
        json_file: Where a JSON list with one row per arm is written.
        plot: Where a PNG is written.
        console: Where to print.

    Returns:
        Exit status: 3 if `verify` found an answer of ours that differs, else 0.

    Raises:
        ModuleNotFoundError: If `plot` is given and matplotlib is not installed.
        OSError: If a file or the model cannot be read.
        ValueError: If an option is out of range.
    """
    if (model is None) == (shape is None):
        raise ValueError("Give either `--model` or `--shape`, one of them.")
    check_plot(plot)
    device = device or default_device()
    names = list(arms or arms_for(device))
    if verify and "plain" not in names:
        names.append("plain")
    unknown = sorted(set(names) - set(ARMS))
    if unknown:
        raise ValueError(f"`--arms` must be among {', '.join(ARMS)}, got {unknown[0]!r}.")
    loaded = tokenised(traces, tokenizer=tokenizer, rows=prompts)
    if not loaded:
        raise ValueError("`--traces` must hold at least one answer that is not empty.")
    own, words = _model(model, shape, dtype, device)
    if words is None:
        folder = tokenizer or family_folder(traces[0], loaded[0].trace.family)
        kind: Any = PreTrainedTokenizerFast
        words = kind(tokenizer_object=load_tokenizer(folder))
    # Recorded answers are not what this model holds likely: forced runs have nothing to recycle.
    decoder = Decoder(packed(own), words, recycling=verify)
    bench = Bench(own, decoder, tokens, forced=not verify)
    try:
        rows = _timed(bench, names, loaded, repeats)
        named = model or f"shape {shape}"
        run = run_facts(named, bench, loaded, dtype, repeats)
    finally:
        decoder.close()
    _print(rows, run, console or Console())
    if json_file is not None:
        content = [{**asdict(row), "bandwidth": share(row, run), "run": run} for row in rows]
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if plot is not None:
        _plot(rows, plot)
    ours = [row.identical for row in rows if not row.arm.startswith("hf-")]
    return DIFFERENT if verify and any(same is not None and same < 1 for same in ours) else 0


def arms_for(device: str) -> list[str]:
    """Return the arms that make sense on a device, with the packages that are there."""
    left_out = set() if HAS_SUFFIX_DECODING else {"suffix"}
    if device != "cuda":
        left_out.add("hf-static-compiled")
    return [arm for arm in ARMS if arm not in left_out]


def _model(
    name: str | None, shape: str | None, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"`--dtype` must name a torch dtype such as bfloat16, got {dtype!r}.")
    if name is not None:
        return load(name, {"dtype": kind, "device": device, "prepack": False})
    assert shape is not None
    return random_model(shape, kind, device), None


def packed(model: PreTrainedModel) -> PreTrainedModel:
    """Return our arms' model: on a CPU a twin with prepacked layers, a second copy of them."""
    if model.device.type == "cpu" and can_twin(model):
        return twin(model, exchange=prepacked(model).get)
    return model


def _timed(
    bench: Bench, arms: Sequence[str], traces: Sequence[TraceTokens], repeats: int
) -> list[ArmRow]:
    with tqdm(total=len(arms) * (len(traces) * repeats + 1), unit="answer") as bar:

        def progress() -> None:
            bar.update()

        return rows_of(interleave(bench.run, arms, traces, repeats, progress))


def run_facts(
    model: str, bench: Bench, traces: Sequence[TraceTokens], dtype: str, repeats: int
) -> dict[str, Any]:
    """Return what a run's figures depend on, and what wider passes cost there."""
    decoder = bench.decoder
    device = decoder.model.device
    on_gpu = device.type == "cuda"
    runner = decoder.runner
    return {
        "model": model,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "exactness": decoder.exactness,
        "torch": torch.__version__,
        "prompts": len(traces),
        "prompt_tokens": sorted(len(trace.prompt) for trace in traces),
        "tokens": bench.tokens,
        "repeats": repeats,
        "forced": bench.forced,
        "date": datetime.now(UTC).date().isoformat(),
        "relative_time_of_widths": (calibrate(runner).times or measure(runner).times),
        **traffic(bench.model, decoder.model),
    }


def _print(rows: Sequence[ArmRow], run: dict[str, Any], console: Console) -> None:
    console.print({name: value for name, value in run.items() if name != "prompt_tokens"})
    names = [row.arm for row in rows]
    table = Table(title="Times; a ratio (after the first token) above 1: the row is quicker")
    for name in (*_HEADS, *names):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in rows:
        ratios = [_ratio(row.ratio[name]) if name in row.ratio else "" for name in names]
        same = "" if row.identical is None else f"{row.identical:.0%}"
        numbers = (row.ms_per_token, row.ttft_ms)
        table.add_row(
            row.arm, *(f"{one:.1f}" for one in numbers), f"{row.tokens_per_forward:.2f}",
            f"{share(row, run):.0%}", same, *ratios,
        )  # fmt: skip
    console.print(table)


def _ratio(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _plot(rows: Sequence[ArmRow], file: Path) -> None:
    figure = new_figure(6, 3)
    axes = figure.subplots()
    axes.barh([row.arm for row in rows], [row.ms_per_token for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per token after the first")
    save_png(figure, file)
