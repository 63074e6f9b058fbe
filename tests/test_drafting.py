"""What drafts look like; how good they are is measured by replay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@given(small, small, st.lists(st.lists(st.integers(0, 3), unique=True), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("branching", [False, True])
def test_following_a_run_drafts_what_expanding_every_node_would(
    branching, reference, prompt, successors
):
    def drafted():
        drafter = ReferenceDrafter(
            [reference],
            prompt,
            max_depth=6,
            branching=branching,
            costs=CostCurve.linear(0.02),
            successors=successors.__getitem__,
        )
        return drafter.draft(prompt, 32)

    def expand(self, node, depth, probability, places, gain):
        self._expand(node, depth, probability, places, self.tree.tokens[node])
        return gain

    found = drafted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grower, "_run", expand)
        wanted = drafted()
    assert sorted(found.probabilities) == pytest.approx(sorted(wanted.probabilities))
    assert len(set(zip(found.parents, found.tokens, strict=True))) == len(found)
