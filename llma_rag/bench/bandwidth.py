"""Say how near a pass comes to reading what it must as fast as the memory lets it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from llma_rag.bench.timing import ArmRow
from llma_rag.engine.cache import layer_count
from llma_rag.engine.cpu.prepack import PrepackedLinear
from llma_rag.engine.families import head_dim

BLOCK, TIMES = {"cpu": 1 << 28, "cuda": 1 << 30}, 5
"""Bytes of a block by device, and how often it is copied and read; the quickest time counts."""


def traffic(model: PreTrainedModel, ours: PreTrainedModel) -> dict[str, float]:
    """Return what a pass of one token reads, and how fast its device's memory is.

    Args:
        model: What transformers' arms run; of its weights all count, but an embedding that is not
            the output layer too; a mixture of experts reads less.
        ours: What our arms run.

    Returns:
        `weight_gb`, `our_weight_gb`, `kv_kb_per_token` and `memory_gb_per_s`, by copying or by
        reading, whatever moves more; a byte that is copied counts twice, as it is read and written.
    """
    return {
        "weight_gb": _weight_bytes(model) / 1e9,
        "our_weight_gb": _weight_bytes(ours) / 1e9,
        "kv_kb_per_token": _kv_bytes(model) / 1e3,
        "memory_gb_per_s": _memory_rate(model.device) / 1e9,
    }


def _weight_bytes(model: PreTrainedModel) -> int:
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # in transformers
    tied = output is not None and output.weight is embeddings
    layers = [one for one in model.modules() if isinstance(one, PrepackedLinear)]
    products = {id(one.product): one.product.nbytes for one in layers}
    weights = sum(one.nbytes for one in model.parameters())
    return weights + sum(products.values()) - (0 if tied else embeddings.nbytes)


def share(row: ArmRow, run: Mapping[str, Any]) -> float:
    """Return the bytes that a pass of a row must read, over its time, over the memory's rate.

    Args:
        row: Its passes read all weights, and the keys and values of half of the answer and of the
            prompt.
        run: Holds what `traffic` returned.
    """
    weights = run["weight_gb" if row.arm.startswith("hf-") else "our_weight_gb"]
    read = weights * 1e9 + row.context * run["kv_kb_per_token"] * 1e3
    return float(read / (row.ms_per_forward / 1e3) / (run["memory_gb_per_s"] * 1e9))


def _kv_bytes(model: PreTrainedModel) -> int:
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * layer_count(model.config) * heads * head_dim(text) * model.dtype.itemsize)


def _memory_rate(device: torch.device) -> float:
    """Return bytes per second of passes over blocks larger than any cache."""
    size = BLOCK.get(device.type, BLOCK["cpu"])
    block = torch.zeros(size // 8, dtype=torch.long, device=device)
    other = torch.empty_like(block)
    rates = []
    ways: list[tuple[Callable[[], Any], int]] = [
        (lambda: other.copy_(block), 2 * size),
        (block.sum, size),
    ]
    for do, moved in ways:
        for _ in range(1 + TIMES):
            begin = time.perf_counter()
            do()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates.append(moved / (time.perf_counter() - begin))
    return max(rates)
