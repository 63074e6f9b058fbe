"""Explore trees whose logits are bit for bit those of plain steps, and what they cost.

    python docs/explore_bitwise_trees.py MODEL_FOLDER [--trees 100] [--shape 0.5b] [--context 1000]

Writes `docs/results/bitwise-trees.json`; then run `make docs`. Steps have one fixed shape. In the
mask of a tree the second branch sees its keys in other slots than a chain would, and sums them in
another order ("masked"). Here each row attends over the slots of a chain: those that all rows share
are read once, those behind them are gathered along the row's own path ("paths"). Every node's
logits are compared with those of plain steps of the same kind down its path.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from results import write
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from llma_rag.bench.shapes import random_model
from llma_rag.engine.attention import packed_attention
from llma_rag.engine.cache import SlabCache, layer_count
from llma_rag.engine.fixed import FixedShape
from llma_rag.verification import ancestors, depths

NAME = "explored_trees"
WAYS = ("masked", "paths")
REPEATS = 15


@dataclass(frozen=True)
class Layout:
    """Which slot of the slab each row sees at which place.

    Attributes:
        trunk: Slots that all rows of all steps of a bucket share.
        slots: Slot behind the trunk that a row sees at each place, [rows, places]; None leaves the
            slots where they are.
        bias: Zero where a row sees and minus infinity elsewhere, [rows, trunk + places].
    """

    trunk: int
    slots: torch.Tensor | None
    bias: torch.Tensor


def layout(kept: int, parents: Sequence[int], fixed: FixedShape, way: str) -> Layout:
    """Return the layout of a step behind `kept` tokens; row 0 is the committed one."""
    keys = fixed.keys(kept)
    trunk = max(0, keys - fixed.bucket - fixed.width)
    slots = torch.arange(keys).repeat(fixed.width, 1)
    visible = slots < kept
    paths = [[0], *([0, *(1 + node for node in path)] for path in ancestors(parents))]
    for row, path in enumerate(paths):
        seen = torch.tensor(path) + kept
        if way == "paths":
            slots[row, kept : kept + len(path)] = seen
            visible[row, kept : kept + len(path)] = True
        else:
            visible[row, seen] = True
    visible[len(paths) :, kept] = True
    bias = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
    return Layout(trunk, slots[:, trunk:] if way == "paths" else None, bias)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    step: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend in a layout; a prompt attends as it always does."""
    if step is None or step.slots is None:
        mask = None if step is None else (step.bias == 0)[None, None]
        return packed_attention(module, query, key, value, mask, scaling=scaling)
    heads, rows, size = query.shape[1:]
    kinds, trunk = key.shape[1], step.trunk
    group = heads // kinds
    packed = query.reshape(kinds, group * rows, size) * scaling
    own = packed.view(kinds, group, rows, size).transpose(1, 2)
    tail_keys, tail_values = key[0][:, step.slots], value[0][:, step.slots]
    shared = packed @ key[0, :, :trunk].transpose(1, 2)
    further = (own @ tail_keys.transpose(2, 3)).transpose(1, 2)
    scores = torch.cat([shared.view(kinds, group, rows, trunk), further], -1) + step.bias
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    first = weights[..., :trunk].reshape(kinds, group * rows, trunk) @ value[0, :, :trunk]
    second = (weights[..., trunk:].transpose(1, 2) @ tail_values).transpose(1, 2)
    output = first.view(kinds, group, rows, size) + second
    return output.reshape(1, heads, rows, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)


class Explorer:
    """Runs steps of one fixed shape behind one prompt."""

    def __init__(self, model: PreTrainedModel, fixed: FixedShape, prompt: Sequence[int]) -> None:
        model.set_attn_implementation(NAME)
        self._model = model
        self.fixed = fixed
        self.cache = SlabCache(layer_count(model.config), capacity=len(prompt) + 2 * fixed.bucket)
        self._run(list(prompt), range(len(prompt)), None)
        self.cache.keep(0, len(prompt))

    def step(self, tokens: Sequence[int], parents: Sequence[int], way: str) -> torch.Tensor:
        """Return the logits of a committed token and of the nodes behind it; nothing is kept."""
        kept, fixed = self.cache.lengths[0], self.fixed
        positions = [kept, *(kept + 1 + depth for depth in depths(parents))]
        self.cache.shown = fixed.keys(kept)
        where = layout(kept, parents, fixed, way)
        logits = self._run(fixed.padded([*tokens]), fixed.padded(positions, 1 << 30), where)
        return logits[: len(tokens)]

    def _run(self, tokens: list[int], positions: Any, step: Layout | None) -> torch.Tensor:
        output = self._model(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.tensor([[*positions]]),
            past_key_values=self.cache,
            step=step,
            logits_to_keep=0 if step else 1,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def right(self, tokens: Sequence[int], parents: Sequence[int], way: str) -> list[bool]:
        """For each node, whether its logits are those of plain steps down its path."""
        found = self.step(tokens, parents, way)
        start = self.cache.lengths[0]
        same = []
        for node, path in enumerate([[], *ancestors(parents)]):
            for place in [0, *(1 + one for one in path)]:
                alone = self.step([tokens[place]], [], way)
                self.cache.keep(0, 1)
            self.cache.lengths[0] = start
            same.append(torch.equal(alone[0], found[node]))
        return same


def random_tree(source: random.Random, nodes: int) -> list[int]:
    """Return parents of a tree that branches often."""
    return [source.randrange(-1, node) for node in range(nodes)]


def compare(folder: str, dtype: torch.dtype, trees: int, width: int) -> dict[str, Any]:
    """Count, for each way, the nodes with other bits than plain steps have."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    vocabulary, source, wrong, nodes = model.config.vocab_size, random.Random(0), {}, 0
    for way in WAYS:
        wrong[way] = nodes = 0
        for _ in range(trees):
            fixed = FixedShape(width, bucket=64)
            prompt = [source.randrange(3, vocabulary) for _ in range(source.randint(4, 150))]
            explorer = Explorer(model, fixed, prompt)
            limit = fixed.draft_limit(len(prompt))
            parents = random_tree(source, limit)
            tokens = [source.randrange(3, vocabulary) for _ in range(limit + 1)]
            same = explorer.right(tokens, parents, way)
            wrong[way] += same.count(False)
            nodes += len(same)
    return {"trees": trees, "nodes": nodes, "other_bits": wrong}


def timed(shape: str, dtype: torch.dtype, context: int, fixed: FixedShape) -> dict[str, float]:
    """Return milliseconds of a step of each way, in turns, and the ratio of paths to masked."""
    source = random.Random(0)
    prompt = [source.randrange(3, 30_000) for _ in range(context)]
    explorer = Explorer(random_model(shape, dtype, "cpu"), fixed, prompt)
    parents = random_tree(source, fixed.draft_limit(context))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(REPEATS):
        for way in WAYS:
            start = time.perf_counter()
            explorer.step([7] * (len(parents) + 1), parents, way)
            times[way].append(1e3 * (time.perf_counter() - start))
    ratios = [paths / masked for masked, paths in zip(*times.values(), strict=True)]
    found = {f"{way}_ms": round(statistics.median(of), 1) for way, of in times.items()}
    return found | {"ratio": round(statistics.median(ratios), 3)}


@torch.inference_mode()
def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a trained model, whose bits are compared")
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bits = [
        {"dtype": name, **compare(arguments.folder, getattr(torch, name), arguments.trees, width=8)}
        for name in ("float32", "bfloat16")
    ]
    about = {"shape": arguments.shape, "context": arguments.context, "threads": arguments.threads}
    times = [
        {**about, "width": width, "bucket": bucket, **timed(
            arguments.shape, torch.float32, arguments.context, FixedShape(width, bucket=bucket)
        )}
        for width in (8, 16)
        for bucket in (64, 256)
    ]  # fmt: skip
    write("bitwise-trees", [*bits, *times])


if __name__ == "__main__":
    main()
