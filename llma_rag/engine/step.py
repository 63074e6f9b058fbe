"""Run forward passes of one model; knows token ids and caches, not where drafts come from."""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from llma_rag.engine.attention import MAX_PACKED_ROWS, forget_biases
from llma_rag.engine.cuda.captured import CapturedSteps
from llma_rag.engine.fast import warm_view
from llma_rag.engine.fixed import FixedShape
from llma_rag.engine.load import most_positions, most_selected
from llma_rag.engine.masks import attention_for_tree, knows_layers
from llma_rag.engine.memory import Memory, SlabMemory, forward_parameters, memory_of
from llma_rag.engine.outcome import Outcome
from llma_rag.engine.rope import LengthDependentRope
from llma_rag.engine.verdict import Verdict
from llma_rag.verification import depths

_locks: "weakref.WeakKeyDictionary[PreTrainedModel, threading.Lock]" = weakref.WeakKeyDictionary()
"""One for each model that is run: its modules keep things from one layer to the next."""
if hasattr(os, "register_at_fork"):  # whoever held one does not live in the child
    os.register_at_fork(after_in_child=_locks.clear)

MAX_OWED = 16
"""Kept tokens that wait to be fed again, beyond which a pass without a draft settles them."""


class Row:
    """One sequence in the engine: its kept tokens, and what the model remembers of them."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.tokens: list[int] = []
        self._release: Callable[[], object] = lambda: None

    def when_released(self, release: Callable[[], object]) -> None:
        """Have `release` called once, with `release` or when the memory goes."""
        self._release = weakref.finalize(self.memory, release)

    def release(self) -> None:
        """Give the memory back; the row must not be used any more."""
        self._release()

    @property
    def length(self) -> int:
        """Kept tokens."""
        return len(self.tokens)

    @property
    def owed(self) -> Sequence[int]:
        """Kept tokens that the model does not remember and must be fed again."""
        return self.tokens[self.memory.length :]


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
    """Runs the passes of one model, one at a time, whichever threads ask for them.

    Attributes:
        verdict: What the probe found out about the model.
        rope: Where the model's rotary embeddings depend on the length.
        fixed: The one shape of all steps behind a prompt; None takes each as wide as it is.
        captured: Runs steps of that shape; None runs them as all other passes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        verdict: Verdict | None = None,
        fixed: FixedShape | None = None,
        captured: CapturedSteps | None = None,
    ) -> None:
        """Wrap a model in evaluation mode; `engine.probe.runner_of` finds out the verdict.

        Raises:
            ValueError: If the model is in training mode, where dropout would change its answers,
                or has an encoder.
        """
        check_model(model)
        self.model = model
        self._warm = warm_view(model)
        self.verdict = verdict or Verdict()
        self.fixed = fixed
        self.captured = captured
        self._device = _input_device(model)
        self.rope = LengthDependentRope(model)
        self._most_positions = most_positions(model.config)
        self._most_selected = most_selected(model.config)
        self._parameters = forward_parameters(model)

    @property
    def supports_trees(self) -> bool:
        """Whether drafts may branch."""
        return self.verdict.trees and self.fixed is None

    @property
    def can_fix(self) -> bool:
        """Whether steps could have one shape: masks must hide what fills them up."""
        return (
            self.verdict.memory == "slab"
            and self.verdict.trees  # whose masks are made in the same way
            and knows_layers(self.model.config)
            and self.rope.switch is None
            and "position_ids" in self._parameters
        )

    @property
    def is_asynchronous(self) -> bool:
        """Whether `run` returns long before the step is done."""
        return self.captured is not None and self._device.type != "cpu"

    def open_row(self, capacity: int) -> Row:
        """Return an empty sequence with room for `capacity` tokens; it grows where it must."""
        if self.fixed is not None:
            capacity += self.fixed.width  # the last step is as wide as all others
        steps = self.captured
        slab = None if steps is None else steps.take(capacity)
        if steps is not None and slab is None:  # so that the next turn of a talk fits in it too
            capacity = min(capacity + capacity // 4, max(capacity, self._most_positions))
        memory = memory_of(self.model, self.verdict.memory, capacity)
        if steps is not None and isinstance(memory, SlabMemory):
            cache = memory.cache if slab is None else slab
            row = Row(SlabMemory(cache))
            row.when_released(lambda: steps.give_back(cache))
            return row
        return Row(memory)

    def draft_limit(self, row: Row) -> int:
        """Return how many tokens may be drafted behind the row's next one; 0 decodes plainly."""
        if self.verdict.wide_passes == "off" or len(row.owed) > MAX_OWED:
            return 0
        room = min(self._most_positions - 1 - row.length, self.rope.draft_limit(row.length))
        if self.fixed is not None:
            room = min(room, self.fixed.draft_limit(row.length))
        return max(0, min(room, self._most_selected - 1 - row.length))

    def logits(self, step: Pass) -> torch.Tensor:
        """Return the logits of `run`."""
        return self.run(step).logits

    @torch.inference_mode()
    def run(self, step: Pass) -> Outcome:
        """Run one pass and return what follows the last committed and each drafted token.

        Nothing is kept yet: call `keep` with the accepted nodes. A pass that fails leaves the row
        as it was.
        """
        with self._alone():
            started = time.perf_counter()
            try:
                outcome = self._run(step)
            except torch.OutOfMemoryError:
                if self.captured is None or not self.captured.forget_free():
                    raise
                outcome = self._run(step)
            outcome.started = started
            return outcome

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nobody else run the model meanwhile, and leave the caller's autocast."""
        with _locks.setdefault(self.model, threading.Lock()), _no_autocast(self._device.type):
            yield

    def _run(self, step: Pass) -> Outcome:
        row = step.row
        end = row.length + len(step.committed) + len(step.drafted)
        if self.rope.must_start_again(row.memory.length, end):
            row.memory.forget()
        self.rope.reset()
        fixed = self._fixes(step)
        if fixed and self.captured is not None:
            return self._run_captured(self.captured, step)
        arguments = self._fixed_arguments(step) if fixed else self._arguments(step)
        memory = row.memory.open(len(step.drafted))
        try:
            model = self._warm if row.memory.length else self.model
            output = model(**arguments, **memory, return_dict=True)
        except BaseException:
            row.memory.undo()
            raise
        finally:
            if end - row.memory.length > MAX_PACKED_ROWS:
                forget_biases()
        row.memory.take(output)
        logits: torch.Tensor = output.logits[0]
        wanted = 1 + len(step.drafted)
        return Outcome(logits[:wanted] if fixed else logits[-wanted:])

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Run the model as transformers' own guidance does, between passes."""
        with self._alone():
            return self.model(*arguments, **options)

    @torch.inference_mode()
    def keep(self, step: Pass, nodes: Sequence[int]) -> None:
        """Keep the committed tokens of a pass and the accepted `nodes`, in their order."""
        row = step.row
        row.memory.keep(len(row.owed) + len(step.committed), nodes, len(step.drafted))
        row.tokens += [*step.committed, *(step.drafted[node] for node in nodes)]

    def _arguments(self, step: Pass) -> dict[str, object]:
        """Return token ids and positions of a pass, as `generate` gives them; a mask for trees."""
        fed = [*step.row.owed, *step.committed]
        kept = step.row.memory.length
        first = kept + len(fed)
        positions = [*range(kept, first), *(first + depth for depth in depths(step.parents))]
        arguments: dict[str, object] = {"input_ids": self._tensor([*fed, *step.drafted])}
        if "position_ids" in self._parameters:
            arguments["position_ids"] = self._tensor(positions)
        if "logits_to_keep" in self._parameters:
            arguments["logits_to_keep"] = 1 + len(step.drafted)
        if not step.is_chain:
            arguments["attention_mask"] = attention_for_tree(
                self.model, kept, len(fed), step.parents, self._device
            )
        return arguments

    def _fixes(self, step: Pass) -> bool:
        """Return whether a pass takes the fixed shape; tell the slab how much it is to show."""
        memory, fixed = step.row.memory, self.fixed
        if fixed is None or not isinstance(memory, SlabMemory):
            return False
        fits = len(step.committed) == 1 and step.is_chain and len(step.drafted) < fixed.width
        fixes = fits and memory.length > 0
        memory.cache.shown = fixed.keys(memory.length) if fixes else 0
        return fixes

    def _run_captured(self, steps: CapturedSteps, step: Pass) -> Outcome:
        assert self.fixed is not None
        assert isinstance(step.row.memory, SlabMemory)
        kept, last = step.row.memory.length, self._most_positions - 1
        tokens = [*step.committed, *step.drafted]
        positions = self.fixed.padded([*range(kept, kept + len(tokens))], last)
        padded = self.fixed.padded(tokens)
        return steps.run(step.row.memory.cache, padded, positions, len(tokens))

    def _fixed_arguments(self, step: Pass) -> dict[str, object]:
        """Return the arguments of a step filled up to the fixed shape, with its mask."""
        assert self.fixed is not None
        kept, last, fixed = step.row.memory.length, self._most_positions - 1, self.fixed
        tokens = [*step.committed, *step.drafted]
        positions = fixed.padded([*range(kept, kept + len(tokens))], last)
        mask = attention_for_tree(self.model, kept, fixed.width, (), self._device)
        return {
            "input_ids": self._tensor(fixed.padded(tokens)),
            "position_ids": self._tensor(positions),
            "attention_mask": fixed.masked(mask, kept),
        }

    def _tensor(self, row: list[int]) -> torch.Tensor:
        return torch.tensor([row], device=self._device)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    """Return what leaves the caller's autocast: the worker's thread has none, nor must probes."""
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be decoded.

    Raises:
        ValueError: If it is in training mode or has an encoder.
    """
    if model.training:
        raise ValueError(
            "`model` is in training mode, which makes its answers random; call `model.eval()`."
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"`model` must be decoder-only, got the encoder-decoder {type(model).__name__}; "
            "use a causal language model, or transformers' own `generate` for this one."
        )


def _input_device(model: PreTrainedModel) -> torch.device:
    """Return where token ids belong: with the first layer, when a model spans several devices."""
    weight = next(model.get_input_embeddings().parameters(), None)
    if weight is None or weight.is_meta:  # offloaded: accelerate's hooks move what they are given
        return torch.device("cpu")
    return weight.device
