"""Build the attention masks of drafts that branch."""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from llma_rag.engine.attention import PACKED
from llma_rag.verification import ancestors, depths


def attention_for_tree(
    model: PreTrainedModel, kept: int, committed: int, parents: Sequence[int], device: torch.device
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the mask in which a drafted token sees the context and its ancestors.

    Args:
        model: Its configuration tells window sizes and the form of mask it takes.
        kept: Tokens in the cache before the pass.
        committed: Tokens of the pass in front of the draft.
        parents: Parent of each drafted token, -1 for the last committed token.
        device: Where the mask is made.

    Returns:
        [1, 1, committed + drafted, kept + committed + drafted]: booleans for SDPA, else zeros and
        the lowest value of the model's dtype. A dict by layer type for models with several.
    """
    config = model.config.get_text_config(decoder=True)
    visible = _visible(kept, committed, parents)
    positions = torch.arange(visible.shape[1])
    positions[kept + committed :] = kept + committed + torch.tensor(depths(parents))
    masks = {
        kind: _as_model_wants(model, _windowed(visible, positions, config, kind).to(device))
        for kind in (getattr(config, "layer_types", None) or only_kind(config))
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def knows_layers(config: PretrainedConfig) -> bool:
    """Return whether the masks made here say all that a model's layers look at.

    Windows that a model cuts itself, by places in the cache (GPT-Neo), or other kinds of layers
    would see other tokens in a tree than in a chain. Llama 4 also scales queries by their places
    in a pass.
    """
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or only_kind(text))
    odd = hasattr(text, "attention_types") or getattr(text, "attn_temperature_tuning", False)
    return kinds <= {"full_attention", "sliding_attention"} and not odd


def only_kind(config: object) -> list[str]:
    """Return the kind of all layers of a configuration that names none."""
    return ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]


def _visible(kept: int, committed: int, parents: Sequence[int]) -> torch.Tensor:
    rows = committed + len(parents)
    visible = torch.ones((rows, kept + rows), dtype=torch.bool).tril(kept)
    start = kept + committed
    visible[committed:, start:] = False
    for node, path in enumerate(ancestors(parents)):
        visible[committed + node, [start + step for step in path]] = True
    return visible


def _windowed(
    visible: torch.Tensor, positions: torch.Tensor, config: object, kind: str
) -> torch.Tensor:
    window: int | None = getattr(config, "sliding_window", None)
    if kind != "sliding_attention" or window is None:
        return visible
    distance = positions[-len(visible) :, None] - positions
    return visible & (distance < window)


def _as_model_wants(model: PreTrainedModel, visible: torch.Tensor) -> torch.Tensor:
    mask = visible[None, None]
    if model.config._attn_implementation in ("sdpa", PACKED):
        return mask
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, lowest)
