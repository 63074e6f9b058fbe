"""Ask the caller's stopping criteria about every committed length, in order."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import MaxTimeCriteria

from llma_rag.engine.options import Settings
from llma_rag.result import FinishReason
from llma_rag.sampling import InputIds

Criterion = Callable[..., Any]


class Criteria:
    """The stopping criteria of one request; `max_time` counts from its making."""

    def __init__(self, settings: Settings, device: torch.device | str) -> None:
        self._limit = settings.config.max_time
        self._criteria: Sequence[Criterion] = settings.criteria
        self._ids = InputIds(device)
        self._clock = None if self._limit is None else MaxTimeCriteria(float(self._limit))

    @torch.no_grad()
    def __call__(self, context: Sequence[int]) -> FinishReason | None:
        """Return why the answer ends behind the last token of `context`; None if it goes on.

        Call it once per committed token: criteria may count their calls.
        """
        if self._clock is None and not self._criteria:
            return None
        ids = self._ids.of(context)
        met = [bool(torch.as_tensor(met(ids, None)).any()) for met in self._criteria]
        if any(met):
            return "stop"
        if self._clock is not None and bool(self._clock(ids, None).any()):
            return "length"
        return None
