"""What drafts look like; how good they are is measured by replay."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numba import types

from llma_rag import drafting, recycling
from llma_rag.acceptance import AcceptanceModel
from llma_rag.budget import LEAST_PROBABILITY
from llma_rag.compiled import KEPT, callback, compiled, folder_for
from llma_rag.costs import CostCurve
from llma_rag.drafting import WEAK_CANDIDATES, Draft, ReferenceDrafter
from llma_rag.places import Place
from llma_rag.recycling import Recycler

SEEDS = 40
"""Random settings in which compiled drafts are compared with those of plain Python."""

tokens = st.lists(st.integers(0, 4), max_size=30)
small = st.lists(st.integers(0, 3), min_size=1, max_size=30)


@given(st.lists(tokens, max_size=3), tokens, tokens, st.integers(0, 6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_node_is_a_copy_and_follows_its_parent(references, prompt, answer, budget, branching):
    drafter = ReferenceDrafter(
        references,
        prompt,
        branching=branching,
        banned_tokens=frozenset({0}),
        vocab_size=4,
        costs=CostCurve.linear(0.01) if budget % 2 else None,
    )
    texts = [*references, prompt, answer]
    context = list(prompt)
    for token in answer:
        draft = drafter.draft(context, budget)
        assert len(draft) <= budget
        assert not {0, 4} & set(draft.tokens)
        for node, (parent, place) in enumerate(zip(draft.parents, draft.places, strict=True)):
            assert -1 <= parent < node
            assert texts[place.segment][place.offset] == draft.tokens[node]
            assert place.segment >= 0
            if parent >= 0:
                assert texts[place.segment][place.offset - 1] == draft.tokens[parent]
                assert place.offset >= 1
        context.append(token)


def test_places_count_references_then_prompt_then_answer():
    drafter = ReferenceDrafter([[5, 6], [7, 8]], [1, 2], max_draft_tokens=1)
    context = [1, 2]
    found = {}
    for token in (1, 7, 9, 5, 9):
        context.append(token)
        draft = drafter.draft(context, 8)
        found[token, len(context)] = dict(zip(draft.tokens, draft.places, strict=True))
    assert found[1, 3] == {2: Place(2, 1)}
    assert found[7, 4] == {8: Place(1, 1)}
    assert found[9, 5] == {}
    assert found[5, 6] == {6: Place(0, 1)}
    assert found[9, 7] == {5: Place(3, 3)}


def test_a_copy_is_followed_where_it_began():
    # Both references continue equally long matches; the draft stays with the one it copied.
    drafter = ReferenceDrafter([[1, 2, 3], [9, 1, 2, 4, 1, 2, 5]], [0], max_draft_tokens=1)
    assert tuple(drafter.draft([0, 9], 4).places) == (Place(1, 1),)
    assert tuple(drafter.draft([0, 9, 1], 4).places) == (Place(1, 2),)


@pytest.mark.parametrize(("shortest", "found"), [(1, {13: 3, 14: 4}), (2, {})])
def test_an_interrupted_copy_is_taken_up_again(shortest, found):
    reference = list(range(10, 20))
    drafter = ReferenceDrafter([reference], [0], branching=True, min_match_length=shortest)
    assert drafter.draft([0, 10, 11], 1).tokens == (12,)
    draft = drafter.draft([0, 10, 11, 12, 99], 8)  # the model exchanges 13, or puts 99 before it
    roots = [node for node, parent in enumerate(draft.parents) if parent == -1]
    assert {draft.tokens[node]: draft.places[node].offset for node in roots} == found
    assert len(drafter.draft([0, 10, 11, 12, 99, 98], 8)) == 0  # no longer right behind it


def test_a_copy_is_not_taken_up_across_the_end_of_its_text():
    drafter = ReferenceDrafter([[10, 11, 12, 13], [20, 21]], [0], branching=True)
    drafter.draft([0, 10, 11], 1)
    draft = drafter.draft([0, 10, 11, 12, 99], 8)
    assert (draft.tokens, tuple(draft.places)) == ((13,), (Place(0, 3),))


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_nothing_to_copy_drafts_nothing(budget):
    drafter = ReferenceDrafter([], [])
    assert drafter.draft([], budget) == Draft()
    assert drafter.draft([3], budget) == Draft()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_match_length": 0}, "`min_match_length` must be at least 1, got 0"),
        ({"max_draft_tokens": -1}, "`max_draft_tokens` must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        ReferenceDrafter([], [], **setting)


def test_a_chain_is_no_tree():
    assert Draft.chain([1, 2]).is_chain
    assert not Draft(tokens=(1, 2), parents=(-1, -1), places=(None, None)).is_chain


def opinionated(seed: int) -> AcceptanceModel:
    """Return a model that trusts other things than the shipped one does."""
    chance, model = random.Random(seed), AcceptanceModel.shipped()
    return AcceptanceModel([one + chance.gauss(0, 0.7) for one in model.weights], model.precisions)


def lists_of_successors(most: int) -> st.SearchStrategy[list[list[int]]]:
    one = st.lists(st.integers(0, 3), unique=True, max_size=most)
    return st.lists(one, min_size=4, max_size=4)


def recycler_of(successors: list[list[int]]) -> Recycler:
    recycler = Recycler()
    for token, found in enumerate(successors):
        if found:
            recycler.observe([token], np.array([found]))
    return recycler


@given(small, small, lists_of_successors(4), st.integers(1, 32), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_a_smaller_tree_is_the_best_of_a_larger_one(reference, prompt, successors, budget, seed):
    small, large = (
        ReferenceDrafter(
            [reference],
            prompt,
            max_draft_tokens=nodes,
            max_depth=6,
            branching=True,
            acceptance=opinionated(seed),
            recycler=recycler_of(successors),
        ).draft(prompt, nodes)
        for nodes in (budget, 64)
    )
    assert len(small) == min(budget, len(large))
    assert small.tokens == large.tokens[:budget]
    assert small.parents == large.parents[:budget]
    assert list(large.probabilities) == sorted(large.probabilities, reverse=True)
    assert len(set(zip(large.parents, large.tokens, strict=True))) == len(large)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=WEAK_CANDIDATES - 3),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    lists_of_successors(1),
    st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_a_chain_is_the_most_probable_way_down_the_tree(reference, prompt, successors, seed):
    """Where they grow from the same places: chains take fewer of many short matches."""
    chain, tree = (
        ReferenceDrafter(
            [reference],
            prompt,
            max_draft_tokens=400,
            max_depth=4,
            branching=branching,
            acceptance=opinionated(seed),
            recycler=recycler_of(successors),
        ).draft(prompt, 400)
        for branching in (False, True)
    )
    assert chain.is_chain
    assume(min(chain.probabilities, default=1.0) > LEAST_PROBABILITY)
    node = -1
    for token, probability in zip(chain.tokens, chain.probabilities, strict=True):
        children = [child for child, parent in enumerate(tree.parents) if parent == node]
        assert probability == pytest.approx(max(tree.probabilities[child] for child in children))
        node = next(child for child in children if tree.tokens[child] == token)
        assert tree.probabilities[node] == pytest.approx(probability)
    assert node not in tree.parents or len(chain) == 4


@pytest.mark.parametrize("branching", [False, True])
def test_a_run_ends_where_a_recycled_token_is_more_probable(branching):
    saved = AcceptanceModel.shipped().to_json()
    saved["weights"]["rank"] = [9.0] * len(saved["weights"]["rank"])
    drafter = ReferenceDrafter(
        [[5, 6, 7, 9]],
        [1],
        max_draft_tokens=3,
        branching=branching,
        acceptance=AcceptanceModel.from_json(saved),
        recycler=recycler_of([*[[]] * 7, [8]]),
    )
    assert drafter.draft([1, 5], 3).tokens == (6, 7, 8)


class Guarded(np.ndarray):
    """An array without numpy's meaning of negative indices: compiled code would read elsewhere."""

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(checked(place))

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(checked(place), value)


def checked(place: Any) -> Any:
    for one in place if isinstance(place, tuple) else (place,):
        if not isinstance(one, slice) and one < 0:
            raise IndexError(f"negative index {one}")
    return place


def guarded(arrays: Any) -> Any:
    """Return a named tuple of arrays as guarded ones."""
    return arrays._make(one.view(Guarded) for one in arrays)


def drafted_by_chance(seed: int, guard: bool = False) -> list[Any]:
    """Draft along a random answer in some setting; return every draft and what was learned."""
    chance = random.Random(seed)
    long = seed % 10 == 0
    kinds = 3_000 if seed % 20 == 0 else 6

    def text(size: int) -> list[int]:
        return [chance.randrange(kinds) for _ in range(size)]

    width = chance.choice([3, 8, 12])
    recycler = Recycler(width=width, max_tokens=chance.choice([3, 99]), banned_tokens=[4])
    model, prompt, answer = opinionated(seed), text(20), text(1_300 if long else 60)
    drafter = ReferenceDrafter(
        [text(chance.choice([40, 900])), [], answer[10:30], [5] * 30],
        prompt,
        max_draft_tokens=chance.choice([0, 1, 12, 64]),
        max_depth=chance.choice([1, 9, 64]),
        branching=chance.random() < 0.5,
        min_match_length=chance.choice([1, 1, 3]),
        banned_tokens=frozenset({0}),
        costs=chance.choice([None, CostCurve.linear(0.02), CostCurve({1: 1.0, 4: 1.0, 5: 1.4})]),
        acceptance=model,
        recycler=chance.choice([recycler, None]),
        earlier=[answer[:20]],
        repeats=[answer[5:]],
    )
    if guard:
        drafter._tree, drafter._offers = guarded(drafter._tree), guarded(drafter._offers)
        drafter._bearings = guarded(drafter._bearings)
    found: list[Any] = []
    context = list(prompt)
    while answer:
        if guard:
            drafter.index.texts = guarded(drafter.index.texts)
            recycler.table = guarded(recycler.table)
        draft = drafter.draft(context, chance.choice([0, 3, 64]))
        found.append([draft.tokens, draft.parents, list(draft.places), draft.probabilities])
        size = chance.choice([1, 2, 5, 90 if long else 3])
        new, answer = answer[:size], answer[size:]
        recycler.observe(context[-1:] + new[:-1], np.array([new, text(len(new))]).T)
        context += new
    return [found, model.weights.tolist()]


def test_compiled_drafts_are_those_of_python() -> None:
    """Without the compiler every index is checked, too."""
    script = (
        "import json, sys; from tests.test_drafting import drafted_by_chance as drafted; "
        f"json.dump([drafted(seed, guard=True) for seed in range({SEEDS})], sys.stdout)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    wanted = json.loads(json.dumps([drafted_by_chance(seed) for seed in range(SEEDS)]))
    assert rounded(json.loads(found.stdout)) == rounded(wanted)
    assert sum(len(draft[0]) for drafts, _ in wanted for draft in drafts) > 10 * SEEDS
    # In no setting anything else was compiled than what is compiled at load.
    assert [len(step.signatures) for step in (drafting._step, recycling._observe)] == [1, 1]


def rounded(found: Any) -> Any:
    """Return nested lists with their floats rounded."""
    if isinstance(found, list):
        return [rounded(one) for one in found]
    return round(found, 9) if isinstance(found, float) else found


def test_what_was_compiled_is_kept_apart_for_every_version(tmp_path: Path) -> None:
    package, base = tmp_path / "package", tmp_path / "base"
    package.mkdir()
    found = []
    for number in range(KEPT + 2):
        (package / "one.py").write_text(f"@compiled\ndef one(): return {number}\n")
        folder = folder_for(package, base)
        assert folder is not None
        assert folder.parent == base
        os.utime(folder, (number, number))
        assert folder_for(package, base) == folder
        found.append(folder)
    (package / "other.py").write_text("not compiled")
    assert folder_for(package, base) == found[-1]
    assert {*base.iterdir()} == {*found[-KEPT:]}


def test_functions_are_compiled_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "one.py").write_text("@compiled\ndef one(): ...\n")
    assert folder_for(tmp_path, tmp_path / "file" / "folder") is None
    assert folder_for(tmp_path / "no_sources", tmp_path) is None
    monkeypatch.setattr("llma_rag.compiled.FOLDER", None)
    assert compiled(lambda number: 2 * number)(21) == 42


def _tripled(number: int) -> int:
    return 3 * number


@pytest.mark.parametrize("damaged", ["*.nbi", "*.nbc"])
def test_functions_are_compiled_where_what_is_kept_is_damaged(
    damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llma_rag.compiled.FOLDER", tmp_path)
    nothing = types.void(types.int64)
    assert compiled(_tripled)(14) == 42
    callback(nothing)(_tripled_nowhere)
    files = list(tmp_path.rglob(damaged))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:7])
    assert compiled(_tripled)(14) == 42
    again = compiled(_tripled)
    assert again(14) == 42
    assert again.stats.cache_hits, "it was kept anew"
    assert callback(nothing)(_tripled_nowhere).address


def _tripled_nowhere(number: int) -> None:
    _ = 3 * number


def test_functions_are_compiled_where_no_room_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("llma_rag.compiled.FOLDER", tmp_path)
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", fail)
    assert compiled(_tripled)(14) == 42
    assert callback(types.void(types.int64))(_tripled_nowhere).address
