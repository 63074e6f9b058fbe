"""Run steps of any model whose attention the Triton kernel knows, compiled by torch."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from llma_rag.engine.cache import SlabCache
from llma_rag.engine.families import head_dim
from llma_rag.engine.outcome import likeliest_tokens
from llma_rag.engine.twin import is_hooked, twin

VERIFIED = "llma_verified"
"""Name under which `verified_attention` is registered with transformers, with no mask function."""

Backend = str | Callable[..., Any]
"""What `torch.compile` takes as a backend."""

MOST_COMPILED = 256
"""Steps of different models or widths that one process compiles; further ones run uncompiled."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step's rows see, on the device; a graph reads it anew at every replay.

    Attributes:
        starts: Kept tokens, int64 [1].
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
    """Attend to a whole slab by the plan of the step that runs; see `attention_kernel.verify`."""
    from llma_rag.engine.cuda.attention_kernel import verify

    plan = _current.plan
    assert plan is not None, "only a `CompiledStep` runs this attention"
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return verify(query, key, value, plan.starts, plan.slots, plan.ancestors, factor), None


AttentionInterface.register(VERIFIED, verified_attention)


def can_capture(model: PreTrainedModel) -> bool:
    """Return whether the kernel knows all that a model's attention does.

    False for windows, soft caps, sinks and head sizes that are no power of two, and where hooks
    want to be told of each pass, which a graph does not tell.
    """
    text = model.config.get_text_config(decoder=True)
    size = head_dim(text)
    plain = all(kind == "full_attention" for kind in getattr(text, "layer_types", None) or ())
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    capped = getattr(text, "attn_logit_softcapping", None)
    sinks = any("sinks" in name for name, _ in model.named_parameters())
    rounded = size >= 16 and size & (size - 1) == 0
    unknown = windowed or capped or sinks or is_hooked(model)
    return plain and rounded and not unknown and bool(find_spec("triton"))


class CompiledStep:
    """A step of one model and width, compiled once for slabs of any capacity.

    Of some forty kernels of a layer most are then one. On other devices than CUDA the same step
    runs as it is, unless a backend is given.
    """

    def __init__(
        self, model: PreTrainedModel, width: int, *, backend: Backend | None = None
    ) -> None:
        """Compile nothing yet.

        Args:
            model: `can_capture` holds for it.
            width: Rows of a step.
            backend: Of `torch.compile`; None compiles on CUDA alone, by inductor.
        """
        self.device = model.device
        on_gpu = self.device.type == "cuda"
        self._model = twin(model, attention=VERIFIED)
        self._backend = "inductor" if backend is None and on_gpu else backend
        self._compiled: Callable[..., Any] | None = None
        self._width = width
        self._rows = torch.arange(width, device=self.device)
        sees = [[(2 << row) - 1 for row in range(width)]]
        self._slots = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._ancestors = torch.tensor(sees, dtype=torch.long, device=self.device)

    def __call__(self, inputs: torch.Tensor, slab: SlabCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step; see `captured.StepFunction`."""
        width = self._width
        for states in slab.states():
            torch._dynamo.mark_dynamic(states, 2)
        start = inputs[2 * width :]
        _current.plan = Plan(start, self._slots, self._ancestors)
        slab.places = start + self._rows
        try:
            output = self._pass(
                input_ids=inputs[None, :width],
                position_ids=inputs[None, width : 2 * width],
                past_key_values=slab,
                use_cache=True,
                return_dict=True,
            )
        finally:
            _current.plan, slab.places = None, None
        logits: torch.Tensor = output.logits[0]
        return logits, likeliest_tokens(logits)

    def _pass(self, **arguments: Any) -> Any:
        """Run the model.

        Whether compiled is decided by the first pass: steps of both kinds round differently.
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
