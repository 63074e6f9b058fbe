"""Make a second view of a model, whose modules can be exchanged while the first stays as it is."""

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch.nn.modules.module as torch_hooks
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from llma_rag.engine.rope import is_length_dependent

Exchange = Callable[[nn.Module], nn.Module | None]
"""Returns what stands for a module in the twin; None for the module's own twin."""

_OWN_WAYS = frozenset({"forward", "_hf_hook", "_compiled_call_impl"})
"""Attributes by which an instance does something else than its class."""

CAPTURING = "transformers.utils.output_capturing"
"""Where transformers' own hooks come from."""

_SETTINGS = frozenset({bool, float, int, str, tuple})
"""Types of attributes by which a module says how it computes, beside tensors."""

_COMMON = _SETTINGS | {dict, set, OrderedDict, type(None)}
"""Types of nearly all attributes; what dictionaries hold is looked at elsewhere."""

_LIBRARIES = frozenset({"torch", "transformers", "llma_rag", "bitsandbytes"})
"""Whose modules hold nothing that changes from call to call but parameters and hooks."""


def twin(
    model: PreTrainedModel, *, attention: str | None = None, exchange: Exchange | None = None
) -> PreTrainedModel:
    """Return a model of new module objects that share all parameters.

    Nothing done to the twin's modules or configuration reaches the model. No memory is taken
    beyond the module objects and what `exchange` makes.

    Args:
        model: Must pass `can_twin`.
        attention: Attention implementation of the twin; None keeps the model's.
        exchange: Asked for each module with no modules below it.
    """
    memo: dict[int, Any] = {}
    copied: PreTrainedModel = _twin(model, memo, exchange)
    if attention is not None:
        for original in configs_of(model):
            memo[id(original)]._attn_implementation_internal = attention
    return copied


def can_twin(model: nn.Module) -> bool:
    """Return whether every module finds its way by its class alone, and keeps it.

    False where an instance carries its own `forward`, as accelerate's hooks do for offloaded or
    spread models, or was compiled: that would lead back into the model. False also for modules of
    other libraries, such as adapters, whose attributes callers set between two requests.
    """
    return all(
        _OWN_WAYS.isdisjoint(vars(module)) and _is_known(type(module)) for module in _walk(model)
    )


def state_of(model: nn.Module) -> tuple[object, ...]:
    """Return what a twin takes over when it is made: modules, buffers, settings, configurations.

    Equal to an earlier outcome if none of them was exchanged. What tensors hold does not count, as
    a twin shares them, nor what modules remember of the last pass: tensors that are no buffers, and
    embeddings that depend on the length.
    """
    found: list[object] = []
    configs: dict[int, PretrainedConfig] = {}
    for module in _walk(model):
        found += weakref.ref(module), type(module).forward
        found += module._buffers
        if is_length_dependent(module):
            continue
        found += map(id, module._buffers.values())
        values = vars(module).values()
        found += [value for value in values if type(value) in _SETTINGS]
        for value in [one for one in values if type(one) not in _COMMON]:
            if isinstance(value, PretrainedConfig) and id(value) not in configs:
                configs.update(_with_parts(value))
    return (*found, *map(_values, configs.values()))


def interventions_of(model: nn.Module) -> tuple[object, ...]:
    """Return what tells of callers' hooks and exchanged forwards in a model, and of which.

    Those of the model itself are not looked at: whoever counts or times its passes has one there.
    """
    return tuple(
        known
        for one in _walk(model)[1:]
        for known in (
            *(key for key, hook in one._forward_hooks.items() if is_foreign(hook)),
            *(key for key, hook in one._forward_pre_hooks.items() if is_foreign(hook)),
            *([id(vars(one)["forward"])] if "forward" in vars(one) else ()),
        )
    )


def is_foreign(hook: object) -> bool:
    """Return whether a hook is a caller's.

    transformers' own hooks stay where hidden states were asked for once, and then do nothing.
    """
    return getattr(hook, "__module__", "") != CAPTURING


def is_hooked(model: nn.Module) -> bool:
    """Return whether somebody hooked into a module's forward, who wants to be told of each pass."""
    some = any(one._forward_hooks or one._forward_pre_hooks for one in _walk(model))
    return some or has_global_hooks()


def has_global_hooks() -> bool:
    """Return whether somebody wants to be told of the passes of all modules there are."""
    return bool(torch_hooks._global_forward_hooks or torch_hooks._global_forward_pre_hooks)


def _walk(model: nn.Module) -> list[nn.Module]:
    """Return all modules, as `modules()` does in five times the time: requests wait for this."""
    found = [model]
    for module in found:
        found += [child for child in module._modules.values() if child is not None]
    return found


def _is_known(kind: type[nn.Module]) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _twin(module: nn.Module, memo: dict[int, Any], exchange: Exchange | None) -> Any:
    module = getattr(module, "stands_for", module)
    if id(module) in memo:
        return memo[id(module)]
    if exchange is not None and not module._modules:
        other = exchange(module)
        if other is not None:
            memo[id(module)] = other
            return other
    copied = object.__new__(type(module))
    memo[id(module)] = copied
    for name, value in vars(module).items():
        if isinstance(value, PretrainedConfig):
            value = _config(value, memo)
        copied.__dict__[name] = value
    copied.__dict__["_buffers"] = dict(module._buffers)
    copied.__dict__["_modules"] = {
        name: None if child is None else _twin(child, memo, exchange)
        for name, child in module._modules.items()
    }
    return copied


def _config(config: PretrainedConfig, memo: dict[int, Any]) -> PretrainedConfig:
    """Return the copy of a configuration; one configuration has one copy, parts included."""
    if id(config) not in memo:
        memo[id(config)] = copy.deepcopy(config, memo)
    found: PretrainedConfig = memo[id(config)]
    return found


def configs_of(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Return the configurations that a model's modules read, parts included."""
    found: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, PretrainedConfig):
                found.update(_with_parts(value))
    return list(found.values())


def _with_parts(config: PretrainedConfig) -> dict[int, PretrainedConfig]:
    parts = [one for one in vars(config).values() if isinstance(one, PretrainedConfig)]
    return {id(one): one for one in (config, *parts)}


def _values(config: PretrainedConfig) -> str:
    values = vars(config).items()
    return repr([one for one in values if not isinstance(one[1], PretrainedConfig)])
