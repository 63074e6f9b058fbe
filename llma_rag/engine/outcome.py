"""What a pass returned, and the tokens that it holds likeliest."""

from collections.abc import Callable
from functools import cached_property

import torch


class Outcome:
    """What a pass returned for the last committed and each drafted token.

    Read it before the next pass: a pass that was captured leaves it where the next one does.

    Attributes:
        started: When the pass began, by `time.perf_counter`; None where that was not noted.
    """

    def __init__(
        self,
        logits: torch.Tensor | Callable[[], torch.Tensor],
        tokens: Callable[[], list[int]] | None = None,
    ) -> None:
        """Take logits.

        Args:
            logits: As the property, or what returns them.
            tokens: Returns what `likeliest` does, where the pass has found it already.
        """
        self.started: float | None = None
        self._logits = logits
        self._tokens = tokens

    @cached_property
    def logits(self) -> torch.Tensor:
        """Logits, [1 + drafted tokens, vocabulary], of the model's dtype and on its device."""
        return self._logits if isinstance(self._logits, torch.Tensor) else self._logits()

    def likeliest(self) -> list[int]:
        """Return each row's likeliest token, -1 where its logits are no numbers.

        Waits for the pass; one transfer from the device.
        """
        if self._tokens is not None:
            return self._tokens()
        found: list[int] = likeliest_tokens(self.logits).tolist()
        return found


def likeliest_tokens(logits: torch.Tensor) -> torch.Tensor:
    """Return the likeliest token of each row, int64, -1 where its logits are no numbers."""
    return torch.where(usable(logits), logits.float().argmax(-1), -1)


def usable(logits: torch.Tensor) -> torch.Tensor:
    """Return, for logits [..., vocabulary], where a token can be chosen from them.

    Some tokens at minus infinity are usual: models with a padded vocabulary hide the padding so.
    """
    return torch.isfinite(logits.amax(-1))
