"""Choose the quickest way to run a model's own layers, leaving the caller's model as it is."""

import weakref

from transformers import PreTrainedModel

from llma_rag.engine.attention import PACKED
from llma_rag.engine.twin import can_twin, twin

_views: "weakref.WeakKeyDictionary[PreTrainedModel, PreTrainedModel]" = weakref.WeakKeyDictionary()


def can_be_fast(model: PreTrainedModel) -> bool:
    """Return whether the model's attention can be ours.

    It must be a class of transformers' own, whose instances hold no state that callers set later,
    and go through the attention interface, where nobody chose an implementation other than the
    default. The probe then finds out whether the outcome is right.
    """
    return (
        type(model).__module__.startswith("transformers.")
        and getattr(model.config, "_attn_implementation", None) == "sdpa"
        and bool(getattr(model, "_supports_attention_backend", False))
        and can_twin(model)
    )


def fast_view(model: PreTrainedModel) -> PreTrainedModel:
    """Return the twin of `model` that attends with `packed_attention`; made once per model."""
    if model not in _views:
        _views[model] = twin(model, attention=PACKED)
    return _views[model]
