"""Rotary embeddings that depend on the sequence's length, and the passes they allow."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

UNBOUNDED = 1 << 30
"""A limit of tokens where there is none."""

_DEPENDENT = ("dynamic", "longrope")


class LengthDependentRope:
    """The switch length of a model's rotary embeddings, if there is one.

    A pass rotates all of its tokens for the length of its last one. Single steps rotate each token
    for its own length, so a pass must not straddle the switch. Beyond the switch "dynamic" gives
    every length frequencies of its own: one token per pass; "longrope" has one further set.

    Attributes:
        kind: "default", "dynamic", "longrope" or another name transformers gives.
        switch: Most tokens rotated in the original way; None where length does not matter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        embeddings = [one for one in model.modules() if hasattr(one, "rope_type")]
        kinds = {kind: one for one in embeddings for kind in _kinds(one)}
        self.kind = next((k for k in kinds if _is_dependent(k)), next(iter(kinds), "none"))
        self.switch: int | None = None
        self._dynamic: list[nn.Module] = []
        self._starts_again = False
        if "dynamic" in self.kind:
            self._dynamic = embeddings
            self.switch = int(kinds[self.kind].original_max_seq_len)  # type: ignore[arg-type]
        elif self.kind == "longrope":
            self.switch = _original_length(kinds[self.kind])
            self._starts_again = _starts_again(model, self.switch)

    def draft_limit(self, position: int) -> int:
        """Return the most tokens that may be drafted behind a token at `position`."""
        if self.switch is None:
            return UNBOUNDED
        if position < self.switch:
            return self.switch - 1 - position
        return 0 if self._dynamic else UNBOUNDED

    def must_start_again(self, remembered: int, end: int) -> bool:
        """Return whether a pass up to `end` tokens must feed the whole sequence once more.

        Some models (Phi-3) drop their cache where they switch to the long frequencies, so that
        all keys are rotated alike.
        """
        crosses = self.switch is not None and remembered <= self.switch < end
        return self._starts_again and remembered > 0 and crosses

    def reset(self) -> None:
        """Forget the longest sequence seen, so that a pass depends on its own row only."""
        for embedding in self._dynamic:
            _reset(embedding)


def _reset(embedding: Any) -> None:
    kinds = embedding.rope_type
    prefixes = [f"{layer}_" for layer in kinds] if isinstance(kinds, dict) else [""]
    for prefix in prefixes:
        name = f"{prefix}max_seq_len_cached"
        if (
            getattr(embedding, name, embedding.original_max_seq_len)
            > embedding.original_max_seq_len
        ):
            original = getattr(embedding, f"{prefix}original_inv_freq")
            embedding.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(embedding, name, embedding.original_max_seq_len)


def _kinds(embedding: nn.Module) -> list[str]:
    kinds: Any = embedding.rope_type
    return list(kinds.values()) if isinstance(kinds, dict) else [str(kinds)]


def is_length_dependent(module: nn.Module) -> bool:
    """Return whether a module rotates by the length of the sequence, and remembers it."""
    return "rope_type" in vars(module) and any(map(_is_dependent, _kinds(module)))


def _is_dependent(kind: str) -> bool:
    return any(name in kind for name in _DEPENDENT)


def _original_length(embedding: nn.Module) -> int:
    parameters: Any = embedding.config.rope_parameters  # type: ignore[union-attr]
    nested = [one for one in parameters.values() if isinstance(one, dict)]
    found = next(
        one["original_max_position_embeddings"]
        for one in (parameters, *nested)
        if "original_max_position_embeddings" in one
    )
    return int(found)


def _starts_again(model: PreTrainedModel, switch: int) -> bool:
    """Ask the model's own `prepare_inputs_for_generation` whether it drops a cache there."""
    cache = DynamicCache()
    states = torch.zeros((1, 1, switch, 1), device=model.device)
    cache.update(states, states, 0)
    ids = torch.zeros((1, switch + 1), dtype=torch.long, device=model.device)
    prepared = model.prepare_inputs_for_generation(  # type: ignore[operator]  # mixin method
        ids, past_key_values=cache, attention_mask=torch.ones_like(ids), use_cache=True
    )
    return prepared.get("past_key_values") is None
