"""Find out at load time whether passes over several tokens are right for a model here."""

import random
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from llma_rag.engine.cache import supports_slab
from llma_rag.engine.fast import can_be_fast, fast_view
from llma_rag.engine.load import most_positions
from llma_rag.engine.masks import knows_layers
from llma_rag.engine.memory import NoStateError
from llma_rag.engine.outcome import usable
from llma_rag.engine.rope import UNBOUNDED
from llma_rag.engine.step import Pass, Row, StepRunner, check_model
from llma_rag.engine.twin import can_twin, interventions_of, state_of
from llma_rag.engine.verdict import MemoryKind, Verdict
from llma_rag.engine.windows import tells_windows, windows_of, with_short_windows

PROBED_TOKENS = 32
"""Tokens of a probe, where the model's context holds as many."""

FEWEST_TOKENS = 12
"""Tokens of a probe of a slow model; with less context than this a model is not probed."""

SLOW_PASS = 0.2
"""Seconds of one pass from which a model counts as slow."""

EXPLAINED = 5e-5
"""Part of the largest logit by which the order of float32 sums changes any logit at most.

Measured on tiny models of 60 families: 1.4e-5 where passes over several tokens are right, 2.4e-4
and more where they are wrong.
"""

TF32_EPS = 2.0**-10
"""Spacing of the numbers that matrix products are rounded to where TF32 is allowed."""

MOST_VERDICTS = 8
"""States of one model whose verdicts are kept, the latest: callers may hook in for each request."""

_verdicts: "weakref.WeakKeyDictionary[PreTrainedModel, dict[object, Verdict]]" = (
    weakref.WeakKeyDictionary()
)


def runner_of(model: PreTrainedModel) -> StepRunner:
    """Return a runner that decodes `model` in the way the probe found right.

    A model that was probed before is not probed again. Warns once where it is decoded plainly.

    Raises:
        ValueError: If the model is in training mode or has an encoder.
    """
    check_model(model)
    key = picture(model)
    known = _verdicts.setdefault(model, {})
    if key not in known:
        while len(known) >= MOST_VERDICTS:
            del known[next(iter(known))]
        known[key] = probe(model)
        if known[key].wide_passes == "off":
            warnings.warn(
                f"References do not speed up {type(model).__name__}: {known[key].reason} It is "
                "decoded as without references, one token per forward pass.",
                stacklevel=3,
            )
    verdict = known[key]
    return StepRunner(fast_view(model) if verdict.fast else model, verdict)


def picture(model: PreTrainedModel) -> tuple[object, ...]:
    """Return what a verdict and a runner depend on; it is another one once the model was changed.

    Values of weights do not count, modules, their settings, devices and hooks do, and on CUDA where
    weights lie, as graphs know nothing of others.
    """
    kernel = getattr(model.config, "_attn_implementation", None)
    weight = model.get_input_embeddings().weight
    known: tuple[object, ...] = ()
    if model.device.type == "cuda":
        known = tuple(one.data_ptr() for one in model.parameters())
    kind = (model.dtype, model.device, kernel, weight.shape, can_be_fast(model), *known)
    return (*kind, *interventions_of(model), *state_of(model))


@torch.inference_mode()
def probe(model: PreTrainedModel) -> Verdict:
    """Compare passes over several tokens with single steps, on about 32 tokens.

    Never raises for what the model does: whatever fails is a reason to decode plainly.
    """
    try:
        ids = _tokens(model)
        if not _owns_its_state(model, ids):
            raise NoStateError
        steps = _single_steps(model, ids)
    except NoStateError:
        return _plainly("Its state is not in a cache that a request could own.", "none")
    except _WrongError as error:
        return _plainly(str(error), "own")
    except Exception as error:
        return _plainly(f"The probe failed ({_in_a_line(error)}).", "none")
    reason = ""
    for candidate, memory in _candidates(model):
        try:
            view = candidate(model)
            return replace(_verdict(view, memory, steps), fast=view is not model)
        except _WrongError as error:
            reason = str(error)
        except Exception as error:
            reason = f"A pass over several tokens fails ({_in_a_line(error)})."
    return _plainly(reason, "own")


class _WrongError(Exception):
    """Says in a sentence why a model must be decoded plainly."""


@dataclass(frozen=True)
class _Steps:
    """What single steps give, the measure for everything else.

    Attributes:
        ids: The probed tokens.
        logits: Behind the prompt and each token after it, [tokens, vocabulary], float32.
        exact: Whether the model computes in full float32.
        tolerance: Difference of a token's logits that rounding explains: the largest one where the
            model computes in float32, the mean one where it rounds more.
    """

    ids: list[int]
    logits: torch.Tensor
    exact: bool
    tolerance: float

    @property
    def prompt(self) -> int:
        """Tokens that are fed in one pass before the comparison begins."""
        return len(self.ids) - len(self.logits) + 1

    def compare(self, logits: torch.Tensor, what: str) -> float:
        """Return the largest difference of a token's logits to the first of the steps.

        Raises:
            _WrongError: If it is more than rounding explains.
        """
        difference = _difference(logits, self.logits[: len(logits)], self.exact)
        if not difference <= self.tolerance:
            raise _WrongError(
                f"{what} gives other logits than single steps (by {difference:.1e}, rounding "
                f"explains {self.tolerance:.1e})."
            )
        return difference


def _candidates(
    model: PreTrainedModel,
) -> Iterator[tuple[Callable[[PreTrainedModel], PreTrainedModel], MemoryKind]]:
    """Yield what makes a view of the model, and the memory that goes with it, best first."""
    if supports_slab(model.config):
        if can_be_fast(model) and tells_windows(model):
            yield fast_view, "slab"
        yield _itself, "slab"
    yield _itself, "own"


def _itself(model: PreTrainedModel) -> PreTrainedModel:
    return model


def _plainly(reason: str, memory: MemoryKind) -> Verdict:
    return Verdict("off", reason, memory, trees=False)


def _verdict(model: PreTrainedModel, memory: MemoryKind, steps: _Steps) -> Verdict:
    runner = StepRunner(model, Verdict(memory=memory))
    worst = steps.compare(_chain(runner, steps), "A pass over several tokens")
    what = f"Passes over several tokens give the logits of single steps (to {worst:.1e})"
    trees = memory == "slab" and knows_layers(model.config) and _trees_are_right(runner, steps)
    if memory == "slab" and _has_long_windows(model, steps):
        trees = _are_windows_known(model, steps) and trees
    if not steps.exact:
        kind = str(model.dtype).removeprefix("torch.")
        reason = f"{what}, as near as {kind} rounds; near ties may be decided otherwise."
        return Verdict("rounded", reason, memory, trees)
    return Verdict("exact", f"{what}.", memory, trees)


def _tokens(model: PreTrainedModel) -> list[int]:
    rope = StepRunner(model).rope
    room = min(most_positions(model.config), rope.switch or UNBOUNDED, PROBED_TOKENS)
    if room < FEWEST_TOKENS:
        raise _WrongError(f"Its context of {room} tokens is too short to probe it.")
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    source = random.Random(0)
    return [source.randrange(vocabulary) for _ in range(room)]


def _owns_its_state(model: PreTrainedModel, ids: list[int]) -> bool:
    """Return whether rows that take turns do not disturb each other, as they do in modules."""
    runner = StepRunner(model, Verdict(memory="own"))
    alone, disturbed, other = (runner.open_row(len(ids)) for _ in range(3))
    expected = [_feed(runner, alone, part) for part in (ids[:-1], ids[-1:])]
    got = [_feed(runner, disturbed, ids[:-1])]
    _feed(runner, other, ids[::-1])
    got.append(_feed(runner, disturbed, ids[-1:]))
    first, second = torch.stack(expected), torch.stack(got)
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True)


def _single_steps(model: PreTrainedModel, ids: list[int]) -> _Steps:
    started = time.perf_counter()
    whole = StepRunner(model, Verdict(memory="none"))
    at_once = whole.logits(Pass(whole.open_row(0), ids[:1], ids[1:], range(-1, len(ids) - 2)))
    if time.perf_counter() - started > SLOW_PASS:
        ids, at_once = ids[:FEWEST_TOKENS], at_once[:FEWEST_TOKENS]
    runner = StepRunner(model, Verdict(memory="own"))
    row = runner.open_row(len(ids))
    prompt = len(ids) // 2
    parts = [ids[:prompt], *([token] for token in ids[prompt:])]
    logits = torch.stack([_feed(runner, row, part) for part in parts])
    if not bool(usable(logits).all()):
        raise _WrongError("Its logits are not finite.")
    exact = _is_exact(model.dtype)
    tolerance = EXPLAINED * _scale(logits)
    if not exact:
        tolerance = _low_tolerance(model.dtype, logits, at_once[prompt - 1 :].float())
    return _Steps(ids, logits, exact, tolerance)


def _is_exact(dtype: torch.dtype) -> bool:
    """Return whether sums of this dtype are as exact as it is, which TF32 makes untrue."""
    return torch.finfo(dtype).bits >= 32 and torch.get_float32_matmul_precision() == "highest"


def _low_tolerance(dtype: torch.dtype, steps: torch.Tensor, at_once: torch.Tensor) -> float:
    """Return thrice the difference of single steps to one pass, within bounds for the dtype."""
    scale = _scale(steps)
    least = max(torch.finfo(dtype).eps, TF32_EPS if torch.finfo(dtype).bits >= 32 else 0.0)
    return scale * min(max(3 * _difference(steps, at_once, False) / scale, least), 0.05)


def _scale(logits: torch.Tensor) -> float:
    return float(logits[torch.isfinite(logits)].abs().max())


def _difference(one: torch.Tensor, other: torch.Tensor, largest: bool) -> float:
    distance = torch.where(one == other, 0.0, (one - other).abs())  # infinite ones may be equal
    return float((distance if largest else distance.mean(-1)).max())


def _feed(runner: StepRunner, row: Row, tokens: list[int]) -> torch.Tensor:
    """Run and keep tokens that are certain; return the logits behind them."""
    step = Pass(row, tokens)
    logits = runner.logits(step)[0].float()
    runner.keep(step, [])
    return logits


def _chain(runner: StepRunner, steps: _Steps) -> torch.Tensor:
    """Return the logits of the probed tokens from drafts, the first of them half rejected."""
    ids, prompt = steps.ids, steps.prompt
    row = runner.open_row(len(ids))
    found = [_feed(runner, row, ids[:prompt])[None]]
    wrong = [ids[0], ids[1], ids[2]]
    step = Pass(row, ids[prompt : prompt + 1], [*ids[prompt + 1 : prompt + 3], *wrong], _line(5))
    found.append(runner.logits(step)[:3])
    runner.keep(step, [0, 1])
    last = len(ids) - 1
    step = Pass(row, ids[prompt + 3 : prompt + 4], ids[prompt + 4 : last], _line(last - prompt - 4))
    found.append(runner.logits(step))
    runner.keep(step, range(len(step.drafted)))
    found.append(_feed(runner, row, ids[last:])[None])
    return torch.cat([one.float() for one in found])


def _trees_are_right(runner: StepRunner, steps: _Steps) -> bool:
    """Return whether the second branches of a tree give the logits of single steps."""
    ids, prompt = steps.ids, steps.prompt
    right = ids[prompt + 1 : prompt + 3]
    try:
        row = runner.open_row(len(ids))
        found = [_feed(runner, row, ids[:prompt])[None]]
        drafted = [ids[0], right[0], ids[1], right[1], ids[2]]
        step = Pass(row, ids[prompt : prompt + 1], drafted, [-1, -1, 0, 1, 1])
        found.append(runner.logits(step)[[0, 2, 4]])
        runner.keep(step, [1, 3])
        found.append(_feed(runner, row, ids[prompt + 3 : prompt + 4])[None])
        steps.compare(torch.cat([one.float() for one in found]), "A tree")
    except Exception:  # masks of this form fail in many ways, and chains do without them
        return False
    return True


def _has_long_windows(model: PreTrainedModel, steps: _Steps) -> bool:
    """Return whether a layer may see fewer tokens than all, and still more than are probed."""
    return any((window or 0) >= len(steps.ids) for window in windows_of(model.config))


def _are_windows_known(model: PreTrainedModel, steps: _Steps) -> bool:
    """Return whether trees see what single steps see where windows end before the probe does.

    Some families do not window as their configuration says, by which the masks of trees are made,
    and transformers' own cache forgets.

    Raises:
        _WrongError: If chains do not see that either.
    """
    if not can_twin(model):
        return False
    short = with_short_windows(model, len(steps.ids) // 4)
    measure = _single_steps(short, steps.ids)
    runner = StepRunner(short, Verdict(memory="slab"))
    measure.compare(_chain(runner, measure), "A pass behind a window")
    return _trees_are_right(runner, measure)


def _line(length: int) -> range:
    return range(-1, length - 1)


def _in_a_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
