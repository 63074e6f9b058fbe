"""Run steps of one shape as a CUDA graph whose lengths stay on the device; needs Triton."""

import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from llma_rag.engine.cache import SlabCache
from llma_rag.engine.twin import twin

VERIFIED = "llma_verified"
"""Name under which `verified_attention` is registered with transformers, with no mask function."""

MOST_SLABS = 8
"""Free slabs that are kept with their graphs for later requests."""

Backend = str | Callable[..., Any]
"""What `torch.compile` takes as a backend."""

MOST_COMPILED = 256
"""Steps of different models or widths that one process compiles; further ones run uncompiled."""

WARM_UPS = 3
"""Steps before a capture, in which kernels are compiled and libraries choose theirs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step's rows see, on the device; a graph reads it anew at every replay.

    Attributes:
        starts: Kept tokens, int32 [1].
        slots: Which row of the slab, int32 [1].
        ancestors: Bit j of entry i is set where row i sees row j, int64 [1, width].
    """

    starts: torch.Tensor
    slots: torch.Tensor
    ancestors: torch.Tensor


class _Current(threading.local):
    def __init__(self) -> None:
        self.plan: Plan | None = None  # of the instance: older torch.compile sees no other


_current = _Current()


def verified_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to a whole slab by the plan of the step that runs; see `kernels.verify`."""
    from llma_rag.engine.kernels import verify

    plan = _current.plan
    assert plan is not None, "only a `CapturedStep` runs this attention"
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return verify(query, key, value, plan.starts, plan.slots, plan.ancestors, factor), None


AttentionInterface.register(VERIFIED, verified_attention)


def can_capture(model: PreTrainedModel) -> bool:
    """Return whether the kernel knows all that a model's attention does.

    False for windows, soft caps, sinks and head sizes that are no power of two.
    """
    text = model.config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    plain = all(kind == "full_attention" for kind in getattr(text, "layer_types", None) or ())
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    capped = getattr(text, "attn_logit_softcapping", None)
    sinks = any("sinks" in name for name, _ in model.named_parameters())
    rounded = size >= 16 and size & (size - 1) == 0
    return plain and rounded and not (windowed or capped or sinks) and bool(find_spec("triton"))


class CapturedSteps:
    """Steps of `width` rows of one model; every slab has a graph of its own.

    Slabs of finished requests are kept with their graphs, so that a later request captures nothing.
    Before a capture the model is compiled, once for slabs of any capacity: of some forty kernels
    of a layer most are then one. On other devices than CUDA the same step runs without a graph.

    Attributes:
        captures: Slabs that were captured.
        seconds: What the first steps over them took, captures included.
    """

    def __init__(
        self, model: PreTrainedModel, width: int, *, backend: Backend | None = None
    ) -> None:
        """Make no step yet.

        Args:
            model: `can_capture` holds for it.
            width: Rows of a step.
            backend: Of `torch.compile`; None compiles on CUDA alone, by inductor.
        """
        self.captures = 0
        self.seconds = 0.0
        self._model = _Compiled(twin(model, attention=VERIFIED), backend)
        self._width = width
        self._graphs: weakref.WeakKeyDictionary[SlabCache, _Step] = weakref.WeakKeyDictionary()
        self._free: OrderedDict[int, SlabCache] = OrderedDict()

    def take(self, capacity: int) -> SlabCache | None:
        """Return a free slab with room for `capacity` tokens, emptied; None if there is none."""
        for name, slab in self._free.items():
            if max(slab.reserved, slab.capacity) >= capacity:
                del self._free[name]
                slab.lengths[:] = [0] * len(slab.lengths)
                return slab
        return None

    def give_back(self, slab: SlabCache) -> None:
        """Keep a slab that nobody uses any more; the one given back longest ago makes room."""
        self._free[id(slab)] = slab
        while len(self._free) > MOST_SLABS:
            self._free.popitem(last=False)

    def run(self, slab: SlabCache, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Run one step behind the slab's kept tokens.

        Args:
            slab: Holds the prompt at least; it may grow, which captures anew.
            tokens: As many as a step has rows.
            positions: Likewise.

        Returns:
            Logits, [width, vocabulary], a copy that later steps leave alone.
        """
        needed = slab.lengths[0] + self._width
        step = self._graphs.get(slab)
        if step is not None and step.fits(needed):
            return step.run(tokens, positions)
        begin = time.perf_counter()
        step = self._graphs[slab] = _Step(self._model, slab, self._width, needed)
        logits = step.run(tokens, positions)
        self.captures += 1
        self.seconds += time.perf_counter() - begin
        return logits


class _Compiled:
    """A model that is compiled with its first pass, or runs as it is where that fails."""

    def __init__(self, model: PreTrainedModel, backend: Backend | None) -> None:
        self.device = model.device
        self._model = model
        self._backend = "inductor" if backend is None and _on_gpu(model.device) else backend
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, **arguments: Any) -> Any:
        """Run a pass.

        Whether compiled is decided by the first one: steps of both kinds round differently.
        """
        if self._backend is None:
            return self._model(**arguments)
        if self._compiled is not None:
            return self._run(self._compiled, arguments)
        try:
            compiled = torch.compile(self._model, backend=self._backend, dynamic=False)
            output = self._run(compiled, arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch.compile raises whatever its parts do
            self._backend = None
            text = f"Steps are captured without torch.compile, which failed: {error!r}"
            warnings.warn(text, stacklevel=2)
            return self._model(**arguments)
        self._compiled = compiled
        return output

    def _run(self, compiled: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call what is compiled; the limit counts all models of a process together."""
        with torch._dynamo.config.patch(cache_size_limit=MOST_COMPILED):
            return compiled(**arguments)


class _Step:
    """One step over one slab: static inputs, and the graph that reads them."""

    def __init__(self, model: _Compiled, slab: SlabCache, width: int, needed: int) -> None:
        device = model.device
        slab.reserve(needed)
        for states in slab.states():
            torch._dynamo.mark_dynamic(states, 2)
        self._slab = weakref.proxy(slab)
        self._capacity = slab.capacity
        self._model = model
        self._width = width
        self._host = torch.zeros(2 * width + 1, dtype=torch.long, pin_memory=_on_gpu(device))
        self._inputs = torch.zeros(2 * width + 1, dtype=torch.long, device=device)
        self._rows = torch.arange(width, device=device)
        sees = [[(2 << row) - 1 for row in range(width)]]
        self._slots = torch.zeros(1, dtype=torch.int32, device=device)
        self._ancestors = torch.tensor(sees, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: torch.Tensor | None = None

    def fits(self, needed: int) -> bool:
        """Return whether the slab is the one that was captured and has room."""
        return needed <= self._capacity == self._slab_itself().capacity

    def run(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Copy the inputs, replay, and return a copy of the logits."""
        self._host[:] = torch.tensor([*tokens, *positions, self._slab.lengths[0]])
        self._inputs.copy_(self._host, non_blocking=True)
        if not _on_gpu(self._inputs.device):
            return self._forward()
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        assert self._logits is not None
        self._graph.replay()
        return self._logits.clone()

    def _capture(self) -> None:
        for _ in range(WARM_UPS):
            self._forward()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other decoders go on
            self._logits = self._forward()
        self._graph = graph

    def _forward(self) -> torch.Tensor:
        width, inputs = self._width, self._inputs
        start = inputs[2 * width :]
        plan = Plan(start.to(torch.int32), self._slots, self._ancestors)
        _current.plan, self._slab.places = plan, start + self._rows
        try:
            output = self._model(
                input_ids=inputs[None, :width],
                position_ids=inputs[None, width : 2 * width],
                past_key_values=self._slab_itself(),
                use_cache=True,
                return_dict=True,
            )
        finally:
            _current.plan, self._slab.places = None, None
        logits: torch.Tensor = output.logits[0]
        return logits

    def _slab_itself(self) -> SlabCache:
        slab: SlabCache = self._slab.itself()
        return slab


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
