"""Run layers of the Llama family on a CPU with few operations between their products."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from llma_rag.engine.attention import MAX_PACKED_ROWS, packed_attention
from llma_rag.engine.cache import SlabCache
from llma_rag.engine.cpu.half_product import can_keep
from llma_rag.engine.cpu.slab_attention import attend, can_attend
from llma_rag.engine.families import is_llama_layer
from llma_rag.engine.progress import progress
from llma_rag.engine.twin import is_foreign

KINDS: dict[torch.dtype, Any] = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}
"""Dtypes of states, and what tells the kernels of them."""

logger = logging.getLogger(__name__)


class FusedLayer(nn.Module):
    """A decoder layer that runs a few rows of one sequence by compiled kernels, else as it did.

    Linear layers are called as they are, whatever they may be.

    Attributes:
        stands_for: The layer; twins of this module are twins of that one.
    """

    stands_for: Any
    _norms: list[Any]
    _watched: list[nn.Module]

    def __init__(self, layer: Any) -> None:
        """Take a layer for which `can_fuse_layer` holds; its modules keep their names."""
        super().__init__()
        hooks = vars(self).keys() - {"_modules", "_parameters", "_buffers", "training"}
        vars(self).update({name: one for name, one in vars(layer).items() if name not in hooks})
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        watched = [layer, layer.self_attn, layer.mlp, layer.mlp.act_fn, *norms]
        vars(self).update(stands_for=layer, _norms=norms, _watched=watched)  # not as modules of it

    def forward(self, hidden_states: torch.Tensor, **given: Any) -> Any:
        """Return what the layer returns."""
        if not self._knows(hidden_states, given):
            return self.stands_for(hidden_states, **given)
        return self._run(
            hidden_states,
            given["past_key_values"],
            given["attention_mask"],
            *given["position_embeddings"],
        )

    def _knows(self, states: torch.Tensor, given: Mapping[str, Any]) -> bool:
        """Return whether the kernels can run a pass; dtypes change where a model is cast."""
        rows = states.shape[1]
        cache, dtype = given.get("past_key_values"), states.dtype
        return (
            rows <= MAX_PACKED_ROWS
            and dtype in KINDS
            and states.device.type == "cpu"
            and isinstance(cache, SlabCache)
            and cache.places is None
            and len(cache.lengths) == 1
            and cache.lengths[0] > 0
            and all(
                slab.dtype is dtype for slab in cache.slabs(self.stands_for.self_attn.layer_idx, 0)
            )
            and all(angles.dtype is dtype for angles in given["position_embeddings"])
            and all(_suits(norm.weight, states) for norm in self._norms)
            and not any(map(_is_watched, self._watched))
        )

    def _run(
        self,
        states: torch.Tensor,
        cache: SlabCache,
        mask: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        layer = self.stands_for
        attention, mlp = layer.self_attn, layer.mlp
        normal = self._normalised(states, None, layer.input_layernorm)[1]
        heads = self._attended(attention, normal, cache, mask, cos, sin)
        added = attention.o_proj(heads)
        states, normal = self._normalised(states, added, layer.post_attention_layernorm)
        chosen = self._gated(*_alike(normal, mlp.gate_proj, mlp.up_proj))
        output: torch.Tensor = states + mlp.down_proj(chosen)
        return output

    def _normalised(
        self, states: torch.Tensor, delta: torch.Tensor | None, norm: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of two addends and what a norm makes of it."""
        from llma_rag.engine.cpu.layer_kernels import normalise

        states = states.contiguous()
        output, total = torch.empty_like(states), states
        address = 0
        if delta is not None:
            delta = delta.to(states.dtype).contiguous()
            total, address = torch.empty_like(states), delta.data_ptr()
        normalise(
            KINDS[states.dtype], states.data_ptr(), address, total.data_ptr(),
            norm.weight.data_ptr(), output.data_ptr(), states.shape[1], states.shape[2],
            norm.variance_epsilon,
        )  # fmt: skip
        return total, output

    def _attended(
        self,
        attention: Any,
        normal: torch.Tensor,
        cache: SlabCache,
        mask: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """Return what the heads read, [1, rows, heads * dim]."""
        from llma_rag.engine.cpu.layer_kernels import rotate_and_store

        (queries,) = _alike(normal, attention.q_proj)
        keys, values = _alike(normal, attention.k_proj, attention.v_proj)
        rows, start, dim = normal.shape[1], cache.lengths[0], attention.head_dim
        heads, kv_heads = queries.shape[2] // dim, keys.shape[2] // dim
        end = max(start + rows, cache.shown)
        slab_keys, slab_values = cache.slabs(attention.layer_idx, end)
        rotated = normal.new_empty((1, heads, rows, dim))
        cos, sin = cos.contiguous(), sin.contiguous()
        rotate_and_store(
            KINDS[normal.dtype], queries.data_ptr(), keys.data_ptr(), values.data_ptr(),
            cos.data_ptr(), sin.data_ptr(), rotated.data_ptr(), slab_keys.data_ptr(),
            slab_values.data_ptr(), rows, queries.stride(1), keys.stride(1), heads, kv_heads, dim,
            start, slab_keys.shape[2],
        )  # fmt: skip
        window = _window(attention)
        seen = None if mask is None else mask[0, 0, :, start:]
        plain = (window is None or window >= end) and (
            seen is None or _is_flags(seen, rows, end - start)
        )
        if plain and can_attend(rotated, slab_keys):
            read = attend(rotated, slab_keys, slab_values, seen, start, end, attention.scaling)
        else:
            read, _ = packed_attention(
                attention, rotated, slab_keys[:, :, :end], slab_values[:, :, :end], mask,
                scaling=attention.scaling, sliding_window=window,
            )  # fmt: skip
        return read.view(1, rows, heads * dim)

    def _gated(self, gates: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
        from llma_rag.engine.cpu.layer_kernels import gate

        output = gates.new_empty(gates.shape)
        gate(
            KINDS[gates.dtype], gates.data_ptr(), ups.data_ptr(), output.data_ptr(),
            gates.shape[1], gates.stride(1), gates.shape[2],
        )  # fmt: skip
        return output


def fuse_layers(model: PreTrainedModel) -> None:
    """Exchange the layers of a twin, those that are known, in place."""
    inner: Any = getattr(model, "model", None)
    layers = getattr(inner, "layers", None)
    if layers is None or model.device.type != "cpu" or model.dtype not in KINDS:
        return
    rotary = getattr(inner, "rotary_emb", None)
    for name, layer in list(layers._modules.items()):
        if can_fuse_layer(layer, rotary) and can_compile():
            layers._modules[name] = FusedLayer(layer)


@cache
def can_compile() -> bool:
    """Compile the kernels, by calling them for no rows; return whether that can be done here.

    Takes some seconds once per installation, and a fraction of one in later processes.
    """
    try:
        _compile()
    except Exception as error:  # whatever numba and LLVM may raise: layers run as they are
        logger.warning("Layers are not fused: %r", error)
        return False
    return True


def _compile() -> None:
    with progress("Compiling kernels", "kernel", total=1 + 3 * len(KINDS)) as bar:
        from llma_rag.engine.cpu import layer_kernels

        if can_keep(torch.bfloat16):
            from llma_rag.engine.cpu import attention_kernel  # noqa: F401  # it compiles
        bar.update()
        for kind in KINDS.values():
            layer_kernels.normalise(kind, 0, 0, 0, 0, 0, 0, 0, 0.0)
            bar.update()
            layer_kernels.gate(kind, 0, 0, 0, 0, 0, 0)
            bar.update()
            layer_kernels.rotate_and_store(kind, *[0] * 16)
            bar.update()


def can_fuse_layer(layer: Any, rotary: Any) -> bool:
    """Return whether the kernels know all that a layer does beside its linear layers."""
    if not is_llama_layer(layer, rotary):
        return False
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return all(type(norm.weight) is nn.Parameter for norm in norms)


def _suits(weight: torch.Tensor, states: torch.Tensor) -> bool:
    """Return whether a norm's weight, which callers may exchange, can be read number by number."""
    return (
        weight.dtype is states.dtype
        and weight.shape == states.shape[-1:]
        and weight.device == states.device
        and weight.is_contiguous()
    )


def _is_watched(module: nn.Module) -> bool:
    """Return whether somebody wants to be told of a module's passes."""
    if not module._forward_hooks and not module._forward_pre_hooks:
        return False
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(map(is_foreign, hooks))


def _window(attention: Any) -> int | None:
    """Return the tokens that a layer sees; None for all."""
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window: int | None = getattr(holder, "sliding_window", None)
    return window


def _is_flags(seen: torch.Tensor, rows: int, new: int) -> bool:
    """Return whether a mask says of each row which new tokens it sees, row after row in memory."""
    shaped = seen.shape == (rows, new) and seen.stride(0) > 0 and seen.stride(1) == 1
    return shaped and seen.dtype is torch.bool


def _alike(states: torch.Tensor, *layers: nn.Module) -> list[torch.Tensor]:
    """Return what layers make of states, of one dtype and with the same strides."""
    found: list[torch.Tensor] = [layer(states).to(states.dtype) for layer in layers]
    strides = {one.stride() for one in found}
    if len(strides) > 1 or found[0].stride(-1) != 1:
        found = [one.contiguous() for one in found]
    return found
