"""Replay recorded answers through drafters, without a model.

The command line calls `replay_command`; it prints the table or the JSON itself and raises
`OSError` or `ValueError`, whose message is the sentence to show, for input that cannot be used.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llma_rag.acceptance import AcceptanceModel
from llma_rag.bench.forced import ForcedRun, MakeDrafter, Recycling, force
from llma_rag.bench.peers import (
    HAS_SUFFIX_DECODING,
    EarlierAnswers,
    PromptLookup,
    PublishedLLMA,
    SuffixDecoding,
)
from llma_rag.bench.plots import check_plot
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
from llma_rag.costs import CostCurve
from llma_rag.drafting import Drafter, ReferenceDrafter
from llma_rag.recycling import Recycler

DEFAULT_COSTS = (0.005, 0.02, 0.05, 0.15)
PLOTTED_NODES = (4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a drafter is told.

    Attributes:
        budget: Most nodes of a draft.
        branching: Whether the draft may be a tree.
        cost: Cost of one more verified token, as share of a forward pass; None: free.
        options: Options of a peer, by the names of its constructor.
    """

    budget: int
    branching: bool = False
    cost: float | None = None
    options: Mapping[str, float] = field(default_factory=dict)


Build = Callable[[Settings], MakeDrafter]


def _ours(settings: Settings) -> MakeDrafter:
    if unknown := settings.options.keys() - {"recycling"}:
        raise ValueError(f"`{OURS}` takes the option `recycling` only, got {sorted(unknown)}.")
    acceptance = AcceptanceModel.shipped()
    costs = None if settings.cost is None else CostCurve.linear(settings.cost)
    recycler = Recycler() if settings.options.get("recycling", 1) else None

    def make(trace: TraceTokens) -> Drafter:
        drafter = ReferenceDrafter(
            trace.references,
            trace.prompt,
            max_draft_tokens=settings.budget,
            branching=settings.branching,
            banned_tokens=trace.special_tokens,
            costs=costs,
            acceptance=acceptance,
            recycler=recycler,
        )
        return drafter if recycler is None else Recycling(drafter, recycler, len(trace.prompt))

    return make


def _published(settings: Settings) -> MakeDrafter:
    options = {name: int(value) for name, value in settings.options.items()}
    return lambda trace: PublishedLLMA(trace.references, **options)


def _prompt_lookup(settings: Settings) -> MakeDrafter:
    options = {name: int(value) for name, value in settings.options.items()}
    return lambda trace: PromptLookup(**options)


def _suffix_decoding(settings: Settings) -> MakeDrafter:
    whole = {"draft_length", "branching"}
    given = dict(settings.options)
    shared = {name: int(given.pop(name)) for name in ("depth", "cached_requests") if name in given}
    options: dict[str, Any] = {
        name: int(value) if name in whole else value for name, value in given.items()
    }
    answers = EarlierAnswers(**shared)
    return lambda trace: SuffixDecoding(answers, trace.prompt, **options)


OURS = "llma-rag"
DRAFTERS: dict[str, Build] = {
    OURS: _ours,
    "llma": _published,
    "prompt-lookup": _prompt_lookup,
}
if HAS_SUFFIX_DECODING:
    DRAFTERS["suffix-decoding"] = _suffix_decoding


def parse_drafter(text: str) -> tuple[str, dict[str, float]]:
    """Split `name` or `name:option=number,...`.

    >>> parse_drafter("llma:min_match_length=2,draft_length=5")
    ('llma', {'min_match_length': 2.0, 'draft_length': 5.0})

    Raises:
        ValueError: If the name is unknown or an option is no number.
    """
    name, _, rest = text.partition(":")
    if name not in DRAFTERS:
        raise ValueError(f"`drafters` must be among {', '.join(DRAFTERS)}, got {text!r}.")
    options: dict[str, float] = {}
    for part in rest.split(",") if rest else ():
        key, _, value = part.partition("=")
        try:
            options[key] = float(value)
        except ValueError as error:
            raise ValueError(f"Options must read `name=number`, got {part!r}.") from error
    return name, options


def replay(
    traces: Sequence[TraceTokens],
    *,
    drafters: Sequence[str],
    budget: int,
    branching: bool = False,
    costs: Sequence[float] = DEFAULT_COSTS,
) -> list[ReplayRow]:
    """Force every answer through every drafter.

    Our drafter is run once for free nodes and once more for every cost, which it is then told;
    peers know no costs.

    Args:
        traces: Answers with at least one token each.
        drafters: Names out of `DRAFTERS`, also with options, see `parse_drafter`.
        budget: Most nodes of a draft.
        branching: Whether our drafts may be trees.
        costs: For which costs of a verified token the speed-up is computed.

    Raises:
        ValueError: If a name is unknown, an option is, or there is no answer.
    """
    if not traces:
        raise ValueError("`traces` must hold at least one answer that is not empty.")
    rows: list[ReplayRow] = []
    for text in drafters:
        name, options = parse_drafter(text)
        settings = Settings(budget, branching, options=options)
        runs = _run(traces, DRAFTERS[name], settings)
        told = {
            cost: _run(traces, DRAFTERS[name], replace(settings, cost=cost))
            if name == OURS
            else runs
            for cost in costs
        }
        rows += summarise(text, budget, runs, told)
    return rows


def _run(traces: Sequence[TraceTokens], build: Build, settings: Settings) -> list[ForcedRun]:
    make = build(settings)
    try:
        return [force(trace, make, settings.budget) for trace in traces]
    except TypeError as error:
        if not settings.options:
            raise
        raise ValueError(f"Options {dict(settings.options)} do not fit: {error}.") from error


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
        drafters: `--drafters`, names out of `DRAFTERS`, also as `name:option=number,...`;
            None takes all that can run here.
        as_json: `--json`, print a JSON list instead of a table.
        plot: `--plot`, write a PNG of tokens per forward against the node budget.
        console: Where to print; standard output by default.

    Raises:
        ModuleNotFoundError: If `plot` is given and matplotlib is not installed.
        OSError: If a file or a tokenizer cannot be read.
        ValueError: If a line is malformed, a number is out of range or a drafter unknown.
    """
    check_plot(plot)
    console = console or Console()
    budget = max_draft_tokens if nodes is None else nodes
    if budget < 0:
        raise ValueError(f"`--nodes` and `--max-draft-tokens` must be at least 0, got {budget}.")
    loaded = tokenised(traces, tokenizer=tokenizer, rows=rows)
    names = list(DRAFTERS) if drafters is None else list(drafters)
    trees = nodes is not None
    found = replay(loaded, drafters=names, budget=budget, branching=trees, costs=costs)
    if plot is not None:
        lines = [
            row
            for budget in PLOTTED_NODES
            for row in replay(loaded, drafters=names, budget=budget, branching=trees, costs=())
        ]
        plot_rows(lines, plot)
    if as_json:
        console.print_json(json.dumps([row.to_json() for row in found]))
    else:
        console.print(replay_table(found))
