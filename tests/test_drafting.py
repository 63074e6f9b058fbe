"""What drafts look like; how good they are is measured by replay."""

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llma_rag.acceptance import GROUPS, AcceptanceModel
from llma_rag.budget import LEAST_PROBABILITY
from llma_rag.chains import Chain
from llma_rag.costs import CostCurve
from llma_rag.drafting import Draft, Place, ReferenceDrafter
from llma_rag.expansion import Grower

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


def opinionated(seed: int, *, ranked: bool = False) -> AcceptanceModel:
    """Return a model that trusts other things than the shipped one does.

    With `ranked` it trusts no later rank more than an earlier one. Ranks are offered one after the
    other, so that otherwise which of two equal paths is taken first decides what is seen at all.
    """
    chance, model = random.Random(seed), AcceptanceModel.shipped()
    weights = [one + chance.gauss(0, 0.7) for one in model.weights]
    if ranked:
        first = len(weights) - GROUPS["rank"]
        for kind in range(3):
            weights[first + kind :: 3] = sorted(weights[first + kind :: 3], reverse=True)
    return AcceptanceModel(weights, model.precisions)


def lists_of_successors(most: int) -> st.SearchStrategy[list[list[int]]]:
    one = st.lists(st.integers(0, 3), unique=True, max_size=most)
    return st.lists(one, min_size=4, max_size=4)


@given(small, small, lists_of_successors(4), st.integers(1, 32), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("branching", [False, True])
def test_following_a_run_drafts_what_expanding_every_node_would(
    branching, reference, prompt, successors, budget, seed
):
    def drafted():
        drafter = ReferenceDrafter(
            [reference],
            prompt,
            max_depth=6,
            branching=branching,
            costs=CostCurve.linear(0.02) if budget % 2 else None,
            acceptance=opinionated(seed, ranked=branching),
            successors=successors.__getitem__,
        )
        return drafter.draft(prompt, budget)

    def expand(self, node, depth, path, places):
        self._expand(node, depth, path, self.tree.tokens[node])

    found = drafted()
    assume(min(found.probabilities, default=1.0) > LEAST_PROBABILITY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grower, "_follow", expand)
        patch.setattr(Chain, "_run", lambda self: True)
        wanted = drafted()
    assert sorted(found.probabilities) == pytest.approx(sorted(wanted.probabilities))
    assert len(set(zip(found.parents, found.tokens, strict=True))) == len(found)
    if not branching:
        assert (found.tokens, found.parents) == (wanted.tokens, wanted.parents)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    lists_of_successors(1),
    st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_a_chain_is_the_most_probable_way_down_the_tree(reference, prompt, successors, seed):
    chain, tree = (
        ReferenceDrafter(
            [reference],
            prompt,
            max_draft_tokens=400,
            max_depth=4,
            branching=branching,
            acceptance=opinionated(seed),
            successors=successors.__getitem__,
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
        successors=lambda token: [8] if token == 7 else [],
    )
    assert drafter.draft([1, 5], 3).tokens == (6, 7, 8)
