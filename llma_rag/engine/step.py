"""Run forward passes of one model; knows token ids and caches, not where drafts come from."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from llma_rag.engine.cache import SlabCache, layer_count
from llma_rag.engine.masks import attention_for_tree
from llma_rag.verification import depths


class Row:
    """One sequence in the engine: the keys and values of its committed tokens."""

    def __init__(self, cache: SlabCache) -> None:
        self.cache = cache

    @property
    def length(self) -> int:
        """Tokens whose keys and values are kept."""
        return self.cache.lengths[0]


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass that a sequence asks for.

    Attributes:
        row: The sequence.
        committed: Tokens that follow the kept ones for certain, at least one.
        drafted: Tokens to verify behind them, as a tree.
        parents: For each drafted token its parent's index, -1 for the last committed token.
    """

    row: Row
    committed: Sequence[int]
    drafted: Sequence[int] = field(default=())
    parents: Sequence[int] = field(default=())

    @property
    def is_chain(self) -> bool:
        """Whether every drafted token follows the one before it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))


class StepRunner:
    """Runs the passes of one model; called by one thread only."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model in evaluation mode.

        Raises:
            ValueError: If the model is in training mode, where dropout would change its answers.
        """
        if model.training:
            raise ValueError(
                "`model` is in training mode, which makes its answers random; call `model.eval()`."
            )
        self.model = model
        self._layers = layer_count(model.config)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def open_row(self, capacity: int) -> Row:
        """Return an empty sequence with room for `capacity` tokens; it grows where it must."""
        return Row(SlabCache(self._layers, capacity=capacity))

    @torch.inference_mode()
    def run(self, step: Pass) -> torch.Tensor:
        """Run one pass and return the logits behind the last committed and each drafted token.

        Nothing is kept yet: call `keep` with the accepted nodes.

        Returns:
            Logits, [1 + drafted tokens, vocabulary], in the model's dtype and on its device.
        """
        tokens = [*step.committed, *step.drafted]
        device = self.model.device
        ids = torch.tensor([tokens], device=device)
        wanted = 1 + len(step.drafted)
        extra: dict[str, object] = {"logits_to_keep": wanted} if self._keeps_logits else {}
        if not step.is_chain:
            extra |= self._tree_arguments(step, device)
        output = self.model(
            input_ids=ids, past_key_values=step.row.cache, use_cache=True, return_dict=True, **extra
        )
        logits: torch.Tensor = output.logits[0, -wanted:]
        return logits

    def _tree_arguments(self, step: Pass, device: torch.device) -> dict[str, object]:
        """Return mask and positions in which each node sees its ancestors only."""
        first = step.row.length + len(step.committed)
        positions = [*range(step.row.length, first), *(first + d for d in depths(step.parents))]
        mask = attention_for_tree(
            self.model, step.row.length, len(step.committed), step.parents, device
        )
        return {
            "position_ids": torch.tensor([positions], device=device),
            "attention_mask": mask,
        }

    def keep(self, step: Pass, nodes: Sequence[int]) -> None:
        """Keep the committed tokens of a pass and the accepted `nodes`, in their order."""
        count = len(step.committed)
        cache = step.row.cache
        if all(node == place for place, node in enumerate(nodes)):
            cache.keep(0, count + len(nodes))
        else:
            cache.keep_path(0, [*range(count), *(count + node for node in nodes)])
