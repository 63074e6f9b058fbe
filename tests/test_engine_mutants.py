"""Break the engine on purpose: each mutant must be caught by the named test."""

import functools

import pytest

from llma_rag.engine import masks, probe, step
from llma_rag.engine.cache import SlabCache
from llma_rag.engine.memory import OwnMemory, SlabMemory
from llma_rag.engine.probe import runner_of
from llma_rag.engine.rope import UNBOUNDED, LengthDependentRope
from llma_rag.engine.snapshot import Snapshot
from llma_rag.engine.step import StepRunner
from tests import test_architectures as architectures
from tests import test_engine as engine
from tests import test_probe as probes
from tests.families import model_of


def keeps_rejected_tokens(self, fed, nodes, drafted):
    self.cache.keep(self.row, fed + drafted)


def keeps_one_too_few(self, fed, nodes, drafted):
    self.cache.keep(self.row, fed + max(0, len(nodes) - 1))


def keeps_without_moving(self, row, places):
    self.lengths[row] += len(places)


def keeps_a_rejected_state(self, fed, nodes, drafted):
    self.length += fed + len(nodes)


def counts_siblings_as_depth(parents):
    return list(range(len(parents)))


def sees_everything(visible, distance, config, kind):
    return visible


def sees_siblings(parents):
    return [list(range(node + 1)) for node in range(len(parents))]


windows = functools.partial(
    architectures.test_T03_sliding_window_straddled_by_drafts_and_rejected_tails,
    "mistral_window",
    "eager",
)
tree = functools.partial(engine.test_random_trees_give_the_logits_of_single_steps, "qwen2", "eager")
recurrent = functools.partial(
    architectures.test_T05_recurrent_state_is_put_back_after_a_rejection, "qwen3_next"
)
limited = functools.partial(
    architectures.test_T05_recurrent_state_is_put_back_after_a_rejection, "nemotron_h"
)
longrope = functools.partial(
    architectures.test_T04_no_pass_straddles_the_switch_of_the_rotary_embeddings
)

MUTANTS = {
    "a slab keeps rejected tokens": (SlabMemory, "keep", keeps_rejected_tokens, windows),
    "a slab keeps one too few": (SlabMemory, "keep", keeps_one_too_few, windows),
    "an accepted path is not compacted": (SlabCache, "keep_path", keeps_without_moving, tree),
    "positions by place, not depth": (step, "depths", counts_siblings_as_depth, tree),
    "a node sees its siblings": (masks, "ancestors", sees_siblings, tree),
    "trees look beyond the window": (masks, "_windowed", sees_everything, windows),
    "a rejected state is kept": (OwnMemory, "keep", keeps_a_rejected_state, recurrent),
    "drafts limit time steps": (step, "warm_view", lambda model: model, limited),
    "a snapshot copies nothing": (Snapshot, "_copied", lambda self, value: value, recurrent),
    "a failed pass is not undone": (
        OwnMemory,
        "undo",
        lambda self: None,
        functools.partial(
            engine.test_a_pass_that_fails_at_any_layer_leaves_the_row_as_it_was, "lfm2"
        ),
    ),
    "tokens owed are never settled": (
        step,
        "MAX_OWED",
        10**6,
        engine.test_tokens_owed_are_settled_by_a_pass_without_a_draft,
    ),
    "drafts straddle the longrope switch": (
        LengthDependentRope,
        "draft_limit",
        lambda self, position: UNBOUNDED,
        functools.partial(longrope, "llama-longrope", "eager"),
    ),
    "drafts beyond the dynamic switch": (
        LengthDependentRope,
        "draft_limit",
        lambda self, position: UNBOUNDED,
        functools.partial(longrope, "llama-dynamic", "eager"),
    ),
    "the cache is not fed again at the switch": (
        LengthDependentRope,
        "must_start_again",
        lambda self, remembered, end: False,
        functools.partial(longrope, "phi3-longrope", "eager"),
    ),
    "a longer row rotates a shorter one": (
        LengthDependentRope,
        "reset",
        lambda self: None,
        architectures.test_T04_a_longer_row_does_not_rotate_a_shorter_one,
    ),
    "drafts go beyond the learned positions": (
        StepRunner,
        "draft_limit",
        lambda self, row: UNBOUNDED,
        architectures.test_T07_the_runner_itself_limits_drafts_to_the_positions,
    ),
    "the probe finds everything right": (
        probe._Steps,
        "compare",
        lambda self, logits, what: 0.0,
        probes.test_a_model_that_sees_later_tokens_is_found,
    ),
    "the probe does not let rows take turns": (
        probe,
        "_owns_its_state",
        lambda model, ids: True,
        probes.test_state_that_rows_share_is_found,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_engine_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, attribute, replacement, killer = MUTANTS[name]
    for family in ("mistral_window", "qwen2", "qwen3_next", "lfm2", "nemotron_h"):
        for model in (model_of(family), model_of(family, "eager")):
            runner_of(model)  # probed unbroken: the probe itself would catch the mutant
    monkeypatch.setattr(target, attribute, replacement)
    if killer is engine.test_tokens_owed_are_settled_by_a_pass_without_a_draft:
        monkeypatch.setattr(engine, "MAX_OWED", 16)
    with pytest.raises(AssertionError):
        killer()
