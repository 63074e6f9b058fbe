"""Exchange a model's linear layers for such as read their weights as quickly as a CPU can."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from llma_rag.engine.cpu.half_product import HalfProduct, can_keep, kept_dtype
from llma_rag.engine.cpu.onednn_product import OneDnnProduct, can_prepack, lacks_products

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers, side by side in one module, that read the same input and are computed together: a call
costs as much as reading a tenth of a megabyte, whatever the layer's size."""


class Product(Protocol):
    """Multiplies by a weight that it keeps in a layout of its own, and adds a bias.

    Attributes:
        bias: [outputs]; None for none.
        nbytes: Bytes of the weight.
    """

    bias: torch.Tensor | None
    nbytes: int

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return [rows, outputs] of [rows, inputs]."""
        ...

    def dense(self) -> torch.Tensor:
        """Return a copy of the weight, [outputs, inputs]."""
        ...


def can_multiply(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies numbers of a dtype here, or our own kernel, in float32.

    Where only our kernel knows 16 bits, which it computes in float32, float32 is the better dtype.
    """
    return can_prepack(dtype) or (dtype is torch.float32 and can_keep(torch.bfloat16))


def product_of(
    weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> Product | None:
    """Return the quickest product that computes in a dtype; None where there is but torch's own."""
    if not weight.numel():
        return None
    if dtype is torch.float32 or lacks_products(dtype):
        kept = kept_dtype(weight)
        if kept is not None and can_keep(kept):
            return HalfProduct(weight, bias, dtype)
    if not can_prepack(dtype):
        return None
    return OneDnnProduct(weight.to(dtype), None if bias is None else bias.to(dtype))


class _Packed:
    """Layers over the same input, computed by one call.

    The outcome is held until every layer has taken its part, once, of one input object. Other and
    written inputs are computed anew; only of those made in inference mode torch does not tell
    whether they were written in between.
    """

    def __init__(self, product: Product, layers: int) -> None:
        self.product = product
        self._layers = layers
        self._held: tuple[torch.Tensor, int, torch.Tensor] | None = None
        self._taken: set[int] = set()

    def part(self, states: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Return [..., end - start] of [..., in_features]: what the layer at `start` computes."""
        held, version = self._held, 0 if states.is_inference() else states._version
        if held is None or held[0] is not states or held[1] != version or start in self._taken:
            output = self.product(states.reshape(-1, states.shape[-1]))
            held = (states, version, output.view(*states.shape[:-1], output.shape[-1]))
            self._held, self._taken = held, set()
        self._taken.add(start)
        if len(self._taken) == self._layers:
            self._held = None
        return held[2] if self._layers == 1 else held[2][..., start:end]


class PrepackedLinear(nn.Module):
    """A linear layer whose weight is kept as its product reads it and in no other way."""

    def __init__(self, packed: _Packed, start: int, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self._packed = packed
        self._start, self._end = start, start + layer.out_features

    @property
    def product(self) -> Product:
        """What computes this layer, and those that are computed with it."""
        return self._packed.product

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight, [out_features, in_features]; writing to it changes nothing."""
        return self.product.dense()[self._start : self._end]

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, [out_features]."""
        bias = self.product.bias
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
        for name, other in _prepacked_below(parent, None)
    }


def prepack_in_place(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Exchange the linear layers of a model that is ours, and release their weights one by one.

    An output layer whose weight is also the embedding's takes that memory once more.

    Args:
        model: A model that shall only decode.
        dtype: What the layers compute in, other than their weights' dtype; None for that one.

    Returns:
        How many layers were exchanged.
    """
    exchanged = 0
    for parent in list(model.modules()):
        for name, other in _prepacked_below(parent, dtype):
            parent._modules[name] = other
            exchanged += 1
    return exchanged


def _prepacked_below(
    parent: nn.Module, dtype: torch.dtype | None
) -> Iterator[tuple[str, PrepackedLinear]]:
    """Yield the names of the plain linear layers right below a module, and what stands for them."""
    plain = {
        name: child
        for name, child in parent._modules.items()
        if type(child) is nn.Linear and can_exchange(child)
    }
    joined = [names for names in JOINED if _can_join([plain.get(name) for name in names])]
    alone = plain.keys() - {name for names in joined for name in names}
    for names in (*joined, *((name,) for name in plain if name in alone)):
        layers = [plain[name] for name in names]
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias = torch.cat(biases) if biases else None
        product = product_of(weight, bias, dtype or weight.dtype)
        if product is None:
            continue
        packed, start = _Packed(product, len(layers)), 0
        for name, layer in zip(names, layers, strict=True):
            yield name, PrepackedLinear(packed, start, layer)
            start += layer.out_features


def can_exchange(layer: nn.Linear) -> bool:
    """Return whether a layer is a plain one on the CPU that nobody has hooked into."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or vars(layer).get("forward")
    weight = layer.weight.detach()  # torchao's quantised layers differ in the weight's class alone
    plain = type(weight) is torch.Tensor and weight.device.type == "cpu"
    return plain and not hooked


def _can_join(layers: Sequence[nn.Linear | None]) -> bool:
    kinds = {
        (layer.in_features, layer.weight.dtype, layer.bias is None)
        for layer in layers
        if layer is not None
    }
    return len(kinds) == 1 and None not in layers
