"""Replay recorded answers through drafters, without a model.

The command line calls `replay_command`; it prints the table or the JSON itself and raises
`OSError` or `ValueError`, whose message is the sentence to show, for input that cannot be used.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from llma_rag.bench.forced import ForcedRun, MakeDrafter, force
from llma_rag.bench.peers import PromptLookup, PublishedLLMA
from llma_rag.bench.report import plot_rows, replay_table
from llma_rag.bench.summary import ReplayRow, summarise
from llma_rag.bench.traces import (
    Trace,
    TraceTokens,
    family_folder,
    load_tokenizer,
    load_traces,
    tokenise,
)
from llma_rag.drafting import Drafter, ReferenceDrafter

DEFAULT_COSTS = (0.005, 0.02, 0.05, 0.15)
PLOTTED_NODES = (4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a drafter is told.

    Attributes:
        budget: Most nodes of a draft.
        cost: Cost of one more verified token, as share of a forward pass.
    """

    budget: int
    cost: float = 0.0


Make = Callable[[TraceTokens, Settings], Drafter]


def _ours(trace: TraceTokens, settings: Settings) -> Drafter:
    return ReferenceDrafter(
        trace.references,
        trace.prompt,
        max_draft_tokens=settings.budget,
        banned_tokens=trace.special_tokens,
    )


def _published(trace: TraceTokens, settings: Settings) -> Drafter:
    return PublishedLLMA(trace.references, draft_length=settings.budget)


def _prompt_lookup(trace: TraceTokens, settings: Settings) -> Drafter:
    return PromptLookup()


DRAFTERS: dict[str, Make] = {
    "llma-rag": _ours,
    "llma": _published,
    "prompt-lookup": _prompt_lookup,
}


def replay(
    traces: Sequence[TraceTokens],
    *,
    drafters: Sequence[str],
    budget: int,
    costs: Sequence[float] = DEFAULT_COSTS,
) -> list[ReplayRow]:
    """Force every answer through every drafter.

    Args:
        traces: Answers with at least one token each.
        drafters: Names out of `DRAFTERS`.
        budget: Most nodes of a draft.
        costs: For which costs of a verified token the speed-up is computed.

    Raises:
        ValueError: If a name is unknown or there is no answer.
    """
    if not traces:
        raise ValueError("`traces` must hold at least one answer that is not empty.")
    rows: list[ReplayRow] = []
    for name in drafters:
        if name not in DRAFTERS:
            raise ValueError(f"`drafters` must be among {', '.join(DRAFTERS)}, got {name!r}.")
        runs = _run(traces, DRAFTERS[name], Settings(budget))
        rows += summarise(name, budget, runs, dict.fromkeys(costs, runs))
    return rows


def _run(traces: Sequence[TraceTokens], make: Make, settings: Settings) -> list[ForcedRun]:
    def made(trace: TraceTokens) -> Drafter:
        return make(trace, settings)

    maker: MakeDrafter = made
    return [force(trace, maker, settings.budget) for trace in traces]


def tokenised(
    files: Sequence[Path], *, tokenizer: Path | None = None, rows: int | None = None
) -> list[TraceTokens]:
    """Load and tokenise traces; answers without a token are left out.

    Args:
        files: JSON Lines files.
        tokenizer: Folder of one tokenizer for all; None takes, for each row, the folder of its
            model's family in `tokenizers` beside the folder of the traces.
        rows: First rows of each file; None takes all.
    """
    found = [
        tokenise(trace, load_tokenizer(_folder(tokenizer, file, trace)))
        for file in files
        for trace in load_traces([file], rows)
    ]
    return [trace for trace in found if trace.answer]


def _folder(tokenizer: Path | None, file: Path, trace: Trace) -> Path:
    return tokenizer if tokenizer is not None else family_folder(file, trace.family)


def replay_command(
    traces: Sequence[Path],
    *,
    tokenizer: Path | None = None,
    max_draft_tokens: int = 20,
    rows: int | None = None,
    nodes: int | None = None,
    costs: Sequence[float] = DEFAULT_COSTS,
    drafters: Sequence[str] | None = None,
    as_json: bool = False,
    plot: Path | None = None,
    console: Console | None = None,
) -> None:
    """Replay traces and print the outcome.

    Args:
        traces: `--traces`, one or more JSON Lines files.
        tokenizer: `--tokenizer`, folder with a `tokenizer.json`.
        max_draft_tokens: `--max-draft-tokens`, most drafted tokens per step in one run.
        rows: `--rows`, first rows of each file.
        nodes: `--nodes`, most nodes of a token tree; None drafts chains.
        costs: `--cost`, given once or more: costs of a verified token, as share of a forward.
        drafters: `--drafters`, names out of `DRAFTERS`; None takes all that can run here.
        as_json: `--json`, print a JSON list instead of a table.
        plot: `--plot`, write a PNG of tokens per forward against the node budget.
        console: Where to print; standard output by default.

    Raises:
        OSError: If a file or a tokenizer cannot be read.
        ValueError: If a line is malformed, a number is out of range or a drafter unknown.
    """
    console = console or Console()
    budget = max_draft_tokens if nodes is None else nodes
    if budget < 0:
        raise ValueError(f"`--nodes` and `--max-draft-tokens` must be at least 0, got {budget}.")
    loaded = tokenised(traces, tokenizer=tokenizer, rows=rows)
    names = list(DRAFTERS) if drafters is None else list(drafters)
    found = replay(loaded, drafters=names, budget=budget, costs=costs)
    if plot is not None:
        lines = [
            row
            for budget in PLOTTED_NODES
            for row in replay(loaded, drafters=names, budget=budget, costs=())
        ]
        plot_rows(lines, plot)
    if as_json:
        console.print_json(json.dumps([row.to_json() for row in found]))
    else:
        console.print(replay_table(found))
