"""Run steps of one shape as a CUDA graph whose lengths stay on the device."""

import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch

from llma_rag.engine.cache import SlabCache
from llma_rag.engine.outcome import Outcome

MOST_SLABS = 8
"""Free slabs that are kept with their graphs for later requests."""

WARM_UPS = 3
"""Steps before a capture, in which kernels are compiled and libraries choose theirs."""


class StepFunction(Protocol):
    """Runs one step of a model; a graph can hold it, since it never looks at what it is given."""

    device: torch.device

    def __call__(self, inputs: torch.Tensor, slab: SlabCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step.

        Args:
            inputs: Tokens, positions and the kept tokens' count, int64 [2 * width + 1].
            slab: Has room for the step.

        Returns:
            Logits, [width, vocabulary], and each row's likeliest token, int64 [width], -1 where
            its logits are no numbers.
        """
        ...


class CapturedSteps:
    """Steps of `width` rows of one model; every slab has a graph of its own.

    Slabs of finished requests are kept with their graphs, so that a later request that fits in
    one captures nothing. A larger one takes the place of all that are free. On other devices than
    CUDA the same step runs without a graph.

    Attributes:
        captures: Slabs that were captured.
        seconds: What the first steps over them took, captures included.
    """

    def __init__(self, function: StepFunction, width: int) -> None:
        """Make no step yet.

        Args:
            function: What a step does.
            width: Rows of a step.
        """
        self.captures = 0
        self.seconds = 0.0
        self.function = function
        self._width = width
        device = function.device
        self._on_device: Callable[[], AbstractContextManager[Any]] = nullcontext
        if device.type == "cuda":
            self._on_device = partial(torch.cuda.device, device)
        self._graphs: weakref.WeakKeyDictionary[SlabCache, _Step] = weakref.WeakKeyDictionary()
        self._free: OrderedDict[int, SlabCache] = OrderedDict()

    def take(self, capacity: int) -> SlabCache | None:
        """Return a free slab with room for `capacity` tokens, emptied; None if there is none."""
        for name, slab in self._free.items():
            if max(slab.reserved, slab.capacity) >= capacity:
                del self._free[name]
                slab.lengths[:] = [0] * len(slab.lengths)
                return slab
        self.forget_free()
        return None

    def forget_free(self) -> bool:
        """Release the slabs that nobody uses, with their graphs; return whether there were any."""
        were = bool(self._free)
        self._free.clear()
        return were

    def give_back(self, slab: SlabCache) -> None:
        """Keep a slab that nobody uses any more; the one given back longest ago makes room."""
        self._free[id(slab)] = slab
        while len(self._free) > MOST_SLABS:
            self._free.popitem(last=False)

    def run(
        self, slab: SlabCache, tokens: Sequence[int], positions: Sequence[int], rows: int
    ) -> Outcome:
        """Run one step behind the slab's kept tokens.

        Args:
            slab: Holds the prompt at least; it may grow, which captures anew.
            tokens: As many as a step has rows.
            positions: Likewise.
            rows: First rows whose outcome is wanted.

        Returns:
            Logits, [rows, vocabulary], and their tokens, both to be read before the next step.
        """
        with self._on_device():
            return self._run(slab, tokens, positions, rows)

    def _run(
        self, slab: SlabCache, tokens: Sequence[int], positions: Sequence[int], rows: int
    ) -> Outcome:
        needed = slab.lengths[0] + self._width
        step = self._graphs.get(slab)
        if step is not None and step.fits(needed):
            return step.run(tokens, positions, rows)
        begin = time.perf_counter()
        step = self._graphs[slab] = _Step(self.function, slab, self._width, needed)
        outcome = step.run(tokens, positions, rows)
        self.captures += 1
        self.seconds += time.perf_counter() - begin
        return outcome


class _Step:
    """One step over one slab: static inputs and outputs, and the graph between them."""

    def __init__(self, function: StepFunction, slab: SlabCache, width: int, needed: int) -> None:
        slab.reserve(needed)
        self._slab = weakref.proxy(slab)
        self._capacity = slab.capacity
        self._function = function
        self._on_gpu = function.device.type == "cuda"
        size = 2 * width + 1
        self._inputs = torch.zeros(size, dtype=torch.long, device=function.device)
        self._sent = torch.zeros(size, dtype=torch.long, pin_memory=self._on_gpu)
        self._received = torch.zeros(width, dtype=torch.long, pin_memory=self._on_gpu)
        self._sent_numbers, self._received_numbers = self._sent.numpy(), self._received.numpy()
        self._logits = torch.empty(0)
        if self._on_gpu:
            self._graph: torch.cuda.CUDAGraph | None = None
            event: Any = torch.cuda.Event  # untyped in torch
            self._ended = event()

    def fits(self, needed: int) -> bool:
        """Return whether the slab is the one that was captured and has room."""
        return needed <= self._capacity == self._slab_itself().capacity

    def run(self, tokens: Sequence[int], positions: Sequence[int], rows: int) -> Outcome:
        """Send the inputs, replay, and return what the first rows came to."""
        if self._on_gpu:
            self._ended.synchronize()  # the last step may be about to read its inputs still
        self._sent_numbers[:] = (*tokens, *positions, self._slab.lengths[0])
        if not self._on_gpu:
            self._forward()
            return Outcome(self._logits[:rows], self._received[:rows].tolist)
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()
        self._ended.record()
        return Outcome(lambda: self._logits[:rows].clone(), lambda: self._tokens(rows))

    def _tokens(self, rows: int) -> list[int]:
        """Return the likeliest tokens of the step that ran last."""
        self._ended.synchronize()
        found: list[int] = self._received_numbers[:rows].tolist()
        return found

    def _capture(self) -> torch.cuda.CUDAGraph:
        for _ in range(WARM_UPS):
            self._forward()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        stream: Any = (
            torch.cuda.Stream
        )  # untyped in torch; of this device, where several are in use
        with torch.cuda.graph(graph, stream=stream(), capture_error_mode="thread_local"):
            self._forward()
        return graph

    def _forward(self) -> None:
        self._inputs.copy_(self._sent, non_blocking=True)
        self._logits, tokens = self._function(self._inputs, self._slab_itself())
        self._received.copy_(tokens, non_blocking=True)

    def _slab_itself(self) -> SlabCache:
        slab: SlabCache = self._slab.itself()
        return slab
