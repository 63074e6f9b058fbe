"""Run every step in one shape, so that drafts cannot change a logit by a bit."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

Mask = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class FixedShape:
    """Steps of `width` rows over keys of whole buckets.

    A row's logits depend on the shape of the pass, not on the other rows or on the row's place in
    it; masked keys add exact zeros. Where that holds (`is_bitwise` finds out), a token's logits are
    the same bits whether it was drafted or not, if its bucket is the same too.

    Attributes:
        width: Rows of every step, the token before the draft included.
        bucket: Tokens by which the keys grow.
    """

    width: int
    bucket: int = 256

    def draft_limit(self, length: int) -> int:
        """Return how many tokens may follow the one at `length` in one step.

        Further ones would be seen with other keys than in a step of their own.

        >>> FixedShape(8, bucket=64).draft_limit(50), FixedShape(8, bucket=64).draft_limit(54)
        (5, 1)
        """
        return min(self.width - 1, self.bucket - 1 - (length + self.width) % self.bucket)

    def keys(self, length: int) -> int:
        """Return how many keys a step behind `length` tokens sees, masked ones included."""
        return ((length + self.width) // self.bucket + 1) * self.bucket

    def padded(self, values: list[int], last: int | None = None) -> list[int]:
        """Return `values` filled up to the width; with `last`, they go on counting up to it."""
        if last is None:
            return values + [0] * (self.width - len(values))
        count = range(values[-1] + 1, values[-1] + 1 + self.width - len(values))
        return values + [min(value, last) for value in count]

    def masked(self, mask: Mask, length: int) -> Mask:
        """Return a mask of `length + width` keys with all others of the bucket hidden."""
        if isinstance(mask, dict):
            return {kind: self._masked(one, length) for kind, one in mask.items()}
        return self._masked(mask, length)

    def _masked(self, mask: torch.Tensor, length: int) -> torch.Tensor:
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return pad(mask, (0, self.keys(length) - mask.shape[-1]), value=hidden)
