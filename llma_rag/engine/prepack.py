"""Lay linear weights out once for oneDNN, which otherwise does so at every call on a CPU."""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear

from llma_rag.engine.machine import is_intel

ROWS = 16
"""Rows of a pass for which oneDNN is asked to choose a layout; others run in it as well."""

LEAST_ROWS = 1 if is_intel() else 4
"""Rows that a narrower pass is filled up to with its own. On the AMD processor that was tried,
oneDNN's kernels for one, two and three rows read the same weights in up to 1.5 times the time; on
the Intel one, whose memory was slower, the kernel for one row is the quickest."""

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers, side by side in one module, that read the same input and are computed together: a call
costs as much as reading a tenth of a megabyte, whatever the layer's size."""


class _Packed:
    """Layers over the same input in oneDNN's layout, computed by one call.

    The outcome is held until every layer has taken its part, each time for one input object. Other
    inputs are computed anew, so that no order of calls gives a wrong outcome.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Pack copies of the weights; either all layers have a bias or none."""
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.weight = _pack(weights[0] if len(weights) == 1 else torch.cat(weights))
        self.bias = torch.cat(biases) if biases else None
        self._features = sum(layer.out_features for layer in layers)
        self._layers = self._left = len(layers)
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None

    def part(self, states: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Return [..., end - start] of [..., in_features]: what the layer at `start` computes."""
        held = self._held
        if held is None or held[0] is not states:
            held = (states, _linear(states, self.weight, self.bias, self._features))
            self._held, self._left = held, self._layers
        self._left -= 1
        if self._left <= 0:
            self._held = None
        return held[1] if self._layers == 1 else held[1][..., start:end]


class PrepackedLinear(nn.Module):
    """A linear layer whose weight is kept in oneDNN's own layout and in no other."""

    def __init__(self, packed: _Packed, start: int, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self._packed = packed
        self._start, self._end = start, start + layer.out_features

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight, [out_features, in_features]; writing to it changes nothing."""
        return self._packed.weight.to_dense()[self._start : self._end]

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, [out_features]."""
        bias = self._packed.bias
        return None if bias is None else bias[self._start : self._end]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] of [..., in_features]."""
        return self._packed.part(states, self._start, self._end)

    def extra_repr(self) -> str:
        """Return the sizes, as `nn.Linear` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def prepacked(model: nn.Module) -> dict[nn.Module, PrepackedLinear]:
    """Return what stands for each plain linear layer of a model on a CPU.

    The originals keep their weights, so that their memory is taken twice while both live.
    """
    return {
        parent.get_submodule(name): other
        for parent in model.modules()
        for name, other in _prepacked_below(parent)
    }


def prepack_in_place(model: nn.Module) -> int:
    """Exchange the linear layers of a model that is ours, and release their weights one by one.

    An output layer whose weight is also the embedding's takes that memory once more.

    Returns:
        How many layers were exchanged.
    """
    exchanged = 0
    for parent in list(model.modules()):
        for name, other in _prepacked_below(parent):
            parent._modules[name] = other
            exchanged += 1
    return exchanged


def _prepacked_below(parent: nn.Module) -> Iterator[tuple[str, PrepackedLinear]]:
    """Yield the names of the plain linear layers right below a module, and what stands for them."""
    plain = {
        name: child
        for name, child in parent._modules.items()
        if type(child) is nn.Linear and _can_exchange(child)
    }
    joined = [names for names in JOINED if _can_join([plain.get(name) for name in names])]
    alone = plain.keys() - {name for names in joined for name in names}
    for names in (*joined, *((name,) for name in plain if name in alone)):
        layers = [plain[name] for name in names]
        packed, start = _Packed(layers), 0
        for name, layer in zip(names, layers, strict=True):
            yield name, PrepackedLinear(packed, start, layer)
            start += layer.out_features


def _can_exchange(layer: nn.Linear) -> bool:
    hooked = layer._forward_hooks or layer._forward_pre_hooks or vars(layer).get("forward")
    weight = layer.weight.detach()  # torchao's quantised layers differ in the weight's class alone
    plain = type(weight) is torch.Tensor and weight.device.type == "cpu"
    return plain and not hooked and can_prepack(weight.dtype)


def _can_join(layers: Sequence[nn.Linear | None]) -> bool:
    kinds = {
        (layer.in_features, layer.weight.dtype, layer.bias is None)
        for layer in layers
        if layer is not None
    }
    return len(kinds) == 1 and None not in layers


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's private operators are there and give what `linear` gives."""
    if dtype not in (torch.float32, torch.bfloat16) or not _has_onednn():
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((48, 32), generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    states = torch.randn((1, 3, 32), generator=generator).to(dtype)
    try:
        found = _linear(states, _pack(weight), bias, 48)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    expected = linear(states, weight, bias)
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=10 * tolerance)


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # untyped in torch


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return packed


def _linear(
    states: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    flat = states.reshape(-1, states.shape[-1])
    rows = flat.shape[0]
    if 0 < rows < LEAST_ROWS:
        flat = torch.cat([flat] * -(-LEAST_ROWS // rows))[:LEAST_ROWS]
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(flat, packed, bias, "none", [], "")
    return output[:rows].view(*states.shape[:-1], out_features)
