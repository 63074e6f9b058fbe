"""Find out what layers see of the tokens before them, and by what they are told."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from llma_rag.engine.attention import packed_attention
from llma_rag.engine.masks import knows_layers, only_kind
from llma_rag.engine.step import Pass, StepRunner
from llma_rag.engine.twin import configs_of, twin
from llma_rag.engine.verdict import Verdict

WATCHED = "llma_watched"
"""Name under which `packed_attention` is watched."""

_windows: ContextVar[list[int | None]] = ContextVar("windows")


def windows_of(config: PretrainedConfig) -> list[int | None]:
    """Return how many tokens each layer sees, itself included; None for all."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or only_kind(text) * text.num_hidden_layers
    window: int | None = getattr(text, "sliding_window", None)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def tells_windows(model: PreTrainedModel) -> bool:
    """Return whether each layer tells our attention, for which no masks are made, what it sees.

    Some families limit that by the mask alone, to more tokens than are probed.
    """
    if not knows_layers(model.config):
        return False
    runner = StepRunner(twin(model, attention=WATCHED), Verdict(memory="none"))
    with _watching() as found:
        try:
            runner.run(Pass(runner.open_row(1), [1]))
        except Exception:  # whatever a model raises: it runs as it is
            return False
    return found == windows_of(model.config)


def with_short_windows(model: PreTrainedModel, window: int) -> PreTrainedModel:
    """Return a twin in which sliding windows that are wider see `window` tokens.

    Args:
        model: Must pass `can_twin`.
        window: Tokens that a row sees, itself included.
    """
    copied = twin(model)
    for holder in (*configs_of(copied), *copied.modules()):
        known = vars(holder).get("sliding_window")
        if isinstance(known, int) and known > window:
            vars(holder)["sliding_window"] = window
    return copied


def _watched_attention(
    module: nn.Module, *states: Any, sliding_window: int | None = None, **given: Any
) -> tuple[torch.Tensor, None]:
    _windows.get().append(sliding_window)
    return packed_attention(module, *states, sliding_window=sliding_window, **given)


AttentionInterface.register(WATCHED, _watched_attention)


@contextmanager
def _watching() -> Iterator[list[int | None]]:
    """Yield a list to which every layer that attends in this thread adds the window it names."""
    found: list[int | None] = []
    token = _windows.set(found)
    try:
        yield found
    finally:
        _windows.reset(token)
