"""Say in one sentence whether a model can be decoded here without a reference changing a token."""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from llma_rag.engine.load import context_length, load
from llma_rag.engine.outcome import usable
from llma_rag.engine.probe import probe
from llma_rag.engine.step import Pass, StepRunner

Status = Literal["safe", "degraded", "unusable"]

EXIT_CODES: Mapping[Status, int] = {"safe": 0, "degraded": 1, "unusable": 2}

_MEMORY = {
    "slab": "keys and values in one slab; rejected drafts are forgotten for free",
    "own": "the model's own state, put back after a rejected draft",
    "none": "none; every pass feeds the whole sequence",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `llma-rag doctor` prints.

    Attributes:
        status: "safe", "degraded" (decoded plainly: right, but not faster) or "unusable".
        advice: One sentence.
        facts: Versions, device and what was found out about the model, in the order of printing.
    """

    status: Status
    advice: str
    facts: dict[str, str | int | bool | None] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 where safe, 1 where degraded, 2 where unusable."""
        return EXIT_CODES[self.status]


def diagnose(name: str) -> Diagnosis:
    """Load a model, probe it, and say what was found; an error of the model is a finding too."""
    facts = _environment()
    try:
        model, _ = load(name, {})
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        return Diagnosis("unusable", f"The model could not be loaded: {_line(error)}", facts)
    return examine(model, facts)


def examine(
    model: PreTrainedModel, facts: dict[str, str | int | bool | None] | None = None
) -> Diagnosis:
    """Probe a model that is loaded."""
    facts = _environment() if facts is None else facts
    try:
        runner = StepRunner(model)
    except ValueError as error:
        return Diagnosis("unusable", _line(error), facts)
    facts |= _description(model, runner)
    verdict = probe(model)
    facts |= {
        "wide_passes": verdict.wide_passes,
        "reason": verdict.reason,
        "memory": _MEMORY[verdict.memory],
        "trees": verdict.trees,
    }
    broken = _what_is_broken(StepRunner(model, verdict))
    if broken:
        return Diagnosis("unusable", broken, facts)
    if verdict.wide_passes == "off":
        advice = (
            "Answers are right but not faster: this model is decoded plainly; choose a model "
            "with attention layers, or a newer transformers, to profit from references."
        )
        return Diagnosis("degraded", advice, facts)
    if verdict.wide_passes == "rounded":
        advice = (
            f"Safe: drafts are verified up to the rounding of {facts['dtype']}, in which a near "
            "tie may fall otherwise than in single steps; load in float32 where that matters."
        )
        return Diagnosis("safe", advice, facts)
    return Diagnosis("safe", "Safe: references never change a token of this model.", facts)


def _what_is_broken(runner: StepRunner) -> str | None:
    """Run a plain pass; return a sentence if even that fails."""
    try:
        logits = runner.logits(Pass(runner.open_row(8), [1, 2, 3]))
    except Exception as error:  # whatever a model raises is the finding
        return f"The model fails on three tokens: {_line(error)}"
    if not bool(usable(logits).all()):
        return "The model's logits are not finite; check its weights and its dtype."
    return None


def _environment() -> dict[str, str | int | bool | None]:
    has_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if has_gpu else f"CPU, {torch.get_num_threads()} threads"
    return {
        "llma-rag": _version("llma-rag"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "device": device,
    }


def _description(model: PreTrainedModel, runner: StepRunner) -> dict[str, str | int | bool | None]:
    text = model.config.get_text_config(decoder=True)
    layers = Counter(type(layer).__name__ for layer in DynamicCache(config=model.config).layers)
    return {
        "model": type(model).__name__,
        "model_device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, "_attn_implementation", None),
        "cache": ", ".join(f"{count} {name}" for name, count in layers.items()) or "DynamicCache",
        "rope": runner.rope.kind,
        "rope_switch": runner.rope.switch,
        "sliding_window": getattr(text, "sliding_window", None),
        "context_length": context_length(model.config),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
