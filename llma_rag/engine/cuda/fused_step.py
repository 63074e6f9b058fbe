"""Run steps of models of the Llama family by kernels of our own; on CUDA, and it needs Triton."""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llma_rag.engine.cache import SlabCache
from llma_rag.engine.families import head_dim, is_llama_layer

DTYPES = frozenset({torch.bfloat16})
"""Of weights; in float16 a residual times the gain of a norm could overflow."""

BLOCK = 128
"""Columns of weights that are multiplied at a time; every size must be a multiple."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut into programs.

    Attributes:
        rows: Rows of weights of a program.
        split: Most programs that share rows.
        block: Columns that are multiplied at a time.
        stages: Blocks that are on their way at a time.
    """

    rows: int
    split: int = 1
    block: int = BLOCK
    stages: int = 4


PROJECT, ADD, ACTIVATE, PREDICT = Tiles(64), Tiles(64, 4), Tiles(64, block=64, stages=5), Tiles(64)
"""Chosen by timing on an H200."""

PREFETCHED = 2
"""Lines of each row of weights that are brought into the cache before the inputs are there."""


def can_fuse(model: PreTrainedModel) -> bool:
    """Return whether the kernels know all that a model's layers do.

    Called for models that `compiled_step.can_capture` accepts.
    """
    inner = getattr(model, "model", None)
    layers: Any = getattr(inner, "layers", None)
    if not layers or not find_spec("triton") or model.dtype not in DTYPES:
        return False
    text = model.config.get_text_config(decoder=True)
    dim = head_dim(text)
    sizes = {text.hidden_size, text.intermediate_size, text.num_attention_heads * dim}
    rotary = getattr(inner, "rotary_emb", None)
    return (
        all(is_llama_layer(one, rotary) for one in layers)
        and all(size % BLOCK == 0 for size in sizes)
        and dim >= 32
        and all(_is_plain(one) for one in model.modules())
        and all(_has_the_right_biases(layer) for layer in layers)
        and model.lm_head.bias is None
    )


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is one of torch's or transformers' own, with plain weights."""
    weight = getattr(module, "weight", None)
    known = type(module).__module__.startswith(("torch.nn.modules.", "transformers."))
    contiguous = weight is None or (type(weight) is nn.Parameter and weight.is_contiguous())
    return known and contiguous


def _has_the_right_biases(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    heads = (attention.q_proj, attention.k_proj, attention.v_proj)
    others = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    same = len({one.bias is None for one in heads}) == 1
    linear = all(type(one) is nn.Linear for one in (*heads, *others))
    return linear and same and all(one.bias is None for one in others)


class FusedStep:
    """A step of one model and width: about six kernels a layer, which overlap on new GPUs.

    All of its memory but logits is used again by every step, so that one step runs at a time.
    """

    def __init__(self, model: PreTrainedModel, width: int) -> None:
        """Take a model for which `can_fuse` holds, and the rows of a step."""
        self.device = model.device
        self._model: Any = model
        self._width = width
        text = model.config.get_text_config(decoder=True)
        self._size, self._inner = text.hidden_size, text.intermediate_size
        self._heads = text.num_attention_heads
        self._kv_heads = text.num_key_value_heads
        self._dim = head_dim(text)
        self._projected = (self._heads + 2 * self._kv_heads) * self._dim
        self._vocabulary = self._model.lm_head.weight.shape[0]
        self._options: dict[str, Any] = {"PDL": False}
        if self.device.type == "cuda" and _knows_pdl(self.device):
            self._options = {"PDL": True, "launch_pdl": True}

    @cached_property
    def _room(self) -> dict[str, torch.Tensor]:
        """Memory between kernels."""
        from triton import cdiv, next_power_of_2

        width, size, device = self._width, self._size, self.device
        heads, dim = self._heads, self._dim
        shared = max(ADD.split * size, PROJECT.split * self._projected)
        parts = next_power_of_2(cdiv(size, ADD.rows))
        tiles = cdiv(self._vocabulary, PREDICT.rows)
        kind: dict[str, Any] = {"dtype": self._model.dtype, "device": device}
        exact: dict[str, Any] = {"dtype": torch.float32, "device": device}
        whole: dict[str, Any] = {"dtype": torch.int32, "device": device}
        sees = [[(2 << row) - 1 for row in range(width)]]
        return {
            "residual": torch.empty((width, size), **kind),
            "scaled": torch.empty((width, size), **kind),
            "squares": torch.zeros((parts, width), **exact),
            "angles": torch.empty((2, width, dim // 2), **kind),
            "query": torch.empty((1, heads, width, dim), **kind),
            "attended": torch.empty((1, width, heads, dim), **kind),
            "activated": torch.empty((width, self._inner), **kind),
            "shares": torch.empty(shared * width, **exact),
            "counts": torch.zeros(max(size, self._projected), **whole),
            "best": torch.empty((tiles, width), **exact),
            "tokens": torch.empty((tiles, width), **whole),
            "slots": torch.zeros(1, **whole),
            "ancestors": torch.tensor(sees, dtype=torch.long, device=device),
        }

    def __call__(self, inputs: torch.Tensor, slab: SlabCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step; see `captured.StepFunction`."""
        from triton import next_power_of_2

        from llma_rag.engine.cuda import fused_kernels as kernels
        from llma_rag.engine.cuda.attention_kernel import Pieces

        room, size, start = self._room, self._size, inputs[2 * self._width :]
        body = self._model.model
        norms = [*(norm for layer in body.layers for norm in _norms(layer)), body.norm]
        states = slab.states()
        pieces = Pieces(room["query"], states[0])
        kernels.embed[(self._width,)](
            inputs, body.embed_tokens.weight, norms[0].weight, body.rotary_emb.inv_freq,
            *self._stream, room["angles"], body.rotary_emb.attention_scaling,
            PADDED=next_power_of_2(size), HALF=self._dim // 2, **self._norm,
        )  # fmt: skip
        for number, layer in enumerate(body.layers):
            before, between, behind = norms[2 * number : 2 * number + 3]
            keys, values = states[2 * number : 2 * number + 2]
            self._attend(layer.self_attn, before, keys, values, start, pieces)
            self._add(room["attended"], layer.self_attn.o_proj, between)
            self._activate(layer.mlp, between)
            self._add(room["activated"], layer.mlp.down_proj, behind)
        return self._predict()

    @property
    def _stream(self) -> tuple[torch.Tensor, ...]:
        """What flows from layer to layer."""
        return self._room["residual"], self._room["scaled"], self._room["squares"]

    @property
    def _norm(self) -> dict[str, Any]:
        """Arguments of kernels in front of or behind a norm."""
        parts = len(self._room["squares"])
        return {"SIZE": self._size, "WIDTH": self._width, "PARTS": parts, **self._options}

    def _attend(
        self, attention: Any, norm: Any, keys: torch.Tensor, values: torch.Tensor,
        start: torch.Tensor, pieces: Any,
    ) -> None:  # fmt: skip
        from llma_rag.engine.cuda import fused_kernels as kernels
        from llma_rag.engine.cuda.attention_kernel import attend

        room, tiles = self._room, _fitted(PROJECT, self._size, self._dim)
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        biased = layers[0].bias is not None
        biases = [one.bias if biased else one.weight for one in layers]
        kernels.queries_keys_values[(self._projected // tiles.rows, tiles.split)](
            *self._stream[1:], room["angles"], start, *(one.weight for one in layers),
            *biases, room["query"], keys, values, room["shares"], room["counts"],
            *keys.stride()[1:3], norm.variance_epsilon,
            HEADS=self._heads, KV_HEADS=self._kv_heads, DIM=self._dim, BIAS=biased,
            SPLIT=tiles.split, **self._norm, **_cut(tiles),
        )  # fmt: skip
        attend(
            room["query"], keys, values, start, room["slots"], room["ancestors"],
            attention.scaling, pieces, room["attended"], self._options,
        )  # fmt: skip

    def _add(self, rows: torch.Tensor, layer: nn.Linear, norm: Any) -> None:
        from llma_rag.engine.cuda import fused_kernels as kernels

        columns = layer.weight.shape[1]
        room, tiles = self._room, _fitted(ADD, columns)
        kernels.add_product[(self._size // tiles.rows, tiles.split)](
            rows, layer.weight, room["residual"], norm.weight, *self._stream[1:], room["shares"],
            room["counts"], SIZE=self._size, K=columns, WIDTH=self._width, SPLIT=tiles.split,
            **self._options, **_cut(tiles),
        )  # fmt: skip

    def _activate(self, mlp: Any, norm: Any) -> None:
        from llma_rag.engine.cuda import fused_kernels as kernels

        kernels.activate[(self._inner // ACTIVATE.rows,)](
            *self._stream[1:], mlp.gate_proj.weight, mlp.up_proj.weight, self._room["activated"],
            norm.variance_epsilon, INNER=self._inner, **self._norm, **_cut(ACTIVATE),
        )  # fmt: skip

    def _predict(self) -> tuple[torch.Tensor, torch.Tensor]:
        from triton import next_power_of_2

        from llma_rag.engine.cuda import fused_kernels as kernels

        room, head, norm = self._room, self._model.lm_head, self._model.model.norm
        logits = room["scaled"].new_empty((self._width, self._vocabulary))
        tokens = torch.empty(self._width, dtype=torch.long, device=self.device)
        count = len(room["best"])
        kernels.predict[(count,)](
            *self._stream[1:], head.weight, logits, room["best"], room["tokens"],
            norm.variance_epsilon, VOCABULARY=self._vocabulary, **self._norm,
            **_cut(PREDICT),
        )  # fmt: skip
        kernels.choose[(self._width,)](
            room["best"], room["tokens"], tokens,
            TILES=count, PADDED=next_power_of_2(count), WIDTH=self._width, **self._options,
        )  # fmt: skip
        return logits, tokens


def _cut(tiles: Tiles) -> dict[str, int]:
    return {
        "ROWS": tiles.rows,
        "BLOCK": tiles.block,
        "LINES": PREFETCHED,
        "num_warps": 4,
        "num_stages": tiles.stages,
    }


def _knows_pdl(device: torch.device) -> bool:
    """Return whether a kernel can begin before the last one ends, by GPU and version of Triton."""
    from triton.language.extra import cuda

    return torch.cuda.get_device_capability(device) >= (9, 0) and hasattr(cuda, "gdc_wait")


def _fitted(tiles: Tiles, columns: int, most_rows: int = BLOCK) -> Tiles:
    """Return tiles that divide a product of so many columns."""
    split = tiles.split
    while columns % (split * tiles.block):
        split //= 2
    return replace(tiles, rows=min(tiles.rows, most_rows), split=split)


def _norms(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm
