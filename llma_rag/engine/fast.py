"""Choose the quickest way to run a model's own layers, leaving the caller's model as it is."""

import weakref

from torch import nn
from transformers import PreTrainedModel

from llma_rag.engine.attention import PACKED
from llma_rag.engine.cpu.fused_layer import fuse_layers
from llma_rag.engine.cpu.shared_linear import shared_linear
from llma_rag.engine.twin import can_twin, has_global_hooks, state_of, twin

_View = tuple[tuple[object, ...], PreTrainedModel]
"""Device, dtype and state that a model had, and the twin that was made of it."""

_views: "weakref.WeakKeyDictionary[PreTrainedModel, _View]" = weakref.WeakKeyDictionary()


def can_be_fast(model: PreTrainedModel) -> bool:
    """Return whether the model's attention can be ours.

    It must be a class of transformers' own, whose instances hold no state that callers set later,
    and go through the attention interface, where nobody chose an implementation other than the
    default, nor hooked into all modules. The probe then finds out whether the outcome is right, and
    what layers see.
    """
    return (
        type(model).__module__.startswith("transformers.")
        and getattr(model.config, "_attn_implementation", None) == "sdpa"
        and bool(getattr(model, "_supports_attention_backend", False))
        and can_twin(model)
        and not has_global_hooks()
    )


def fast_view(model: PreTrainedModel) -> PreTrainedModel:
    """Return the twin of `model` that attends with `packed_attention`.

    Made once per model, and again where what it took over was exchanged or the model was moved or
    cast.
    """
    picture = (model.device, model.dtype, *state_of(model))
    known = _views.get(model)
    if known is None or known[0] != picture:
        view = twin(model, attention=PACKED, exchange=shared_linear)
        fuse_layers(view)
        known = _views[model] = (picture, view)
    return known[1]


UNLIMITED_STEPS = (0.0, float("inf"))


def warm_view(model: PreTrainedModel) -> PreTrainedModel:
    """Return what runs all passes but a sequence's first; the model itself in nearly all cases.

    In transformers 5 the recurrent layers of Nemotron-H and Zamba 2 limit time steps in passes over
    several tokens and not in single steps (`time_step_limit`). `generate` takes single steps behind
    the prompt; so that drafts give their logits, the returned twin has no limit.

    Raises:
        ValueError: If the model has such a limit and no twin.
    """
    if not any(_limits_steps(module) for module in model.modules()):
        return model
    if not can_twin(model):
        raise ValueError("`model` limits time steps in a way that only its twin could undo.")
    view = twin(model)
    for module in filter(_limits_steps, view.modules()):
        module.time_step_limit = UNLIMITED_STEPS  # type: ignore[assignment]  # no tensor or module
    return view


def _limits_steps(module: nn.Module) -> bool:
    limit = getattr(module, "time_step_limit", None)
    return isinstance(limit, (tuple, list)) and tuple(limit) != UNLIMITED_STEPS
