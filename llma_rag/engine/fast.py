"""Choose the quickest way to run a model's own layers, leaving the caller's model as it is."""

import weakref

from transformers import PreTrainedModel

from llma_rag.engine.attention import PACKED
from llma_rag.engine.twin import can_twin, twin

_views: "weakref.WeakKeyDictionary[PreTrainedModel, PreTrainedModel]" = weakref.WeakKeyDictionary()


def can_be_fast(model: PreTrainedModel) -> bool:
    """Return whether the model's attention can be ours.

    It must go through transformers' attention interface, where nobody chose an implementation
    other than the default; the probe then finds out whether the outcome is right.
    """
    return (
        getattr(model.config, "_attn_implementation", None) == "sdpa"
        and bool(getattr(model, "_supports_attention_backend", False))
        and can_twin(model)
    )


def fast_view(model: PreTrainedModel) -> PreTrainedModel:
    """Return the twin of `model` that attends with `packed_attention`; made once per model."""
    if model not in _views:
        _views[model] = twin(model, attention=PACKED)
    return _views[model]
