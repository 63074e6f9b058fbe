"""The model of acceptance, the cost curve and the recycler."""

import json
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llma_rag.acceptance import (
    FAR,
    GROUPS,
    REFERENCE,
    AcceptanceModel,
    Lean,
    copy_evidence,
    observe,
    probability,
    recycled_evidence,
)
from llma_rag.costs import CostCurve
from llma_rag.drafting import ReferenceDrafter
from llma_rag.recycling import Recycler


def chance_of(model, evidence, lean):
    return probability(model.weights, lean.state, evidence)


def learn(model, evidence, lean, accepted):
    observe(model.weights, model.precisions, lean.state, evidence, accepted)


def test_the_shipped_prior_trusts_long_matches():
    model, lean = AcceptanceModel.shipped(), Lean()
    found = [
        chance_of(model, copy_evidence(length, FAR, 0, REFERENCE), lean) for length in (2, 4, 8, 32)
    ]
    assert found == sorted(found)
    assert 0.1 < found[0] < 0.8 < found[-1]


def test_it_learns_what_is_accepted():
    model, evidence = AcceptanceModel.shipped(), copy_evidence(3, FAR, 0, REFERENCE)
    chance = np.random.default_rng(0)
    for _ in range(3_000):
        learn(model, evidence, Lean(), bool(chance.random() < 0.1))
    assert chance_of(model, evidence, Lean()) == pytest.approx(0.1, abs=0.05)


def test_a_request_leans_without_the_model_being_lost():
    model, evidence = AcceptanceModel.shipped(), copy_evidence(3, FAR, 0, REFERENCE)
    lean = Lean()
    before = chance_of(model, evidence, Lean())
    for _ in range(20):
        learn(model, evidence, lean, False)
    assert chance_of(model, evidence, lean) < chance_of(model, evidence, Lean()) - 0.05
    assert chance_of(model, evidence, Lean()) > before - 0.15


def test_it_is_saved_as_plain_json(tmp_path):
    model = AcceptanceModel.shipped()
    learn(model, recycled_evidence(0, 0, 0), Lean(), True)
    model.save(tmp_path / "model.json")
    again = AcceptanceModel.from_json(json.loads((tmp_path / "model.json").read_text()))
    assert again.weights == pytest.approx(model.weights, abs=1e-4)
    saved = json.loads((tmp_path / "model.json").read_text())
    del saved["weights"]["length"]
    with pytest.raises(ValueError, match=r"`weights.length` must be a list of 11 numbers"):
        AcceptanceModel.from_json(saved)


def test_curves_interpolate_and_never_fall():
    curve = CostCurve({1: 1.0, 8: 1.3, 16: 1.2})
    assert [curve(width) for width in (1, 8, 12, 32)] == pytest.approx([1.0, 1.3, 1.3, 1.3])
    assert CostCurve.linear(0.05)(21) == pytest.approx(2.0)
    # Beyond a step of the curve nodes are free: the least cost per node sees that.
    step = CostCurve({1: 1.0, 4: 1.0, 5: 1.5, 8: 1.5})
    assert step.table(7).margins[0] == pytest.approx(0.0)
    assert step.table(7).margins[3] == pytest.approx(0.125)
    assert step.table(7).times.tolist() == pytest.approx([step(width) for width in range(1, 9)])


@pytest.mark.parametrize("points", [{}, {0: 1.0}, {2: 0.0}])
def test_curves_refuse_what_is_no_measurement(points):
    with pytest.raises(ValueError, match="must"):
        CostCurve(points)


def test_costly_nodes_are_not_drafted():
    reference, prompt = list(range(10, 60)), [1]

    def drafted(cost):
        costs = CostCurve.linear(cost)
        drafter = ReferenceDrafter([reference], prompt, costs=costs, branching=True)
        return len(drafter.draft([*prompt, 10], 40))

    sizes = [drafted(cost) for cost in (0.0, 0.01, 0.1, 5.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 32
    assert sizes[-1] == 0


def test_wrong_drafts_cost_at_most_two_percent():
    # Every pair of the answer goes on differently in the reference.
    answer = np.random.default_rng(0).integers(3, 1_000, 300).tolist()
    reference = [
        token
        for place in range(len(answer) - 3)
        for token in (*answer[place : place + 3], *range(2_000 + 9 * place, 2_008 + 9 * place))
    ]
    cost = 0.05
    drafter = ReferenceDrafter([reference], [1], costs=CostCurve.linear(cost), branching=True)
    context, spent, done = [1, answer[0]], 1.0, 1
    while done < len(answer):
        draft = drafter.draft(context, 64)
        spent += 1 + cost * len(draft)
        right = 0
        children = {edge: n for n, edge in enumerate(zip(draft.parents, draft.tokens, strict=True))}
        node = children.get((-1, answer[done]))
        while node is not None and done + right + 1 < len(answer):
            right += 1
            node = children.get((node, answer[done + right]))
        context += answer[done : done + right + 1]
        done += right + 1
    assert spent <= 1.02 * len(answer)


def test_recycled_successors_stand_beside_copies():
    recycler = Recycler()
    recycler.observe([5], np.array([[8, 7]]))
    drafter = ReferenceDrafter([[5, 6]], [1], branching=True, recycler=recycler)
    draft = drafter.draft([1, 5], 3)
    assert set(draft.tokens[:3]) == {6, 7, 8}
    assert [place is None for place in draft.places] == [token != 6 for token in draft.tokens]


def test_banned_successors_are_not_drafted():
    recycler = Recycler()
    recycler.observe([5], np.array([[2, 70, 8]]))
    drafter = ReferenceDrafter(
        [],
        [1],
        branching=True,
        recycler=recycler,
        banned_tokens=frozenset({2}),
        vocab_size=64,
    )
    assert set(drafter.draft([1, 5], 3).tokens) == {8}


def test_every_offer_is_learned_from():
    size = sum(GROUPS.values())
    model = AcceptanceModel([0.0] * size, [1.0] * size)
    ranks = model.weights[size - GROUPS["rank"] :: 3]
    recycler = Recycler()
    recycler.observe([5], np.array([[11, 12, 13, 14, 15, 16, 17]]))
    drafter = ReferenceDrafter([], [1], recycler=recycler, acceptance=model)
    assert len(drafter.draft([1, 5], 1)) == 1
    drafter.draft([1, 5, 12], 1)
    assert [int(np.sign(weight)) for weight in ranks] == [-1, 1, *[-1] * 5, 0]


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(-1, 9), st.lists(st.integers(0, 9), unique=True)), max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_the_recycler_is_a_bounded_table_of_latest_successors(width, most, seen):
    recycler = Recycler(width=width, max_tokens=most, banned_tokens={2, 9})
    table: OrderedDict[int, list[int]] = OrderedDict()
    for token, best in seen:
        recycler.observe([token], np.array([best], int).reshape(1, -1))
        if token in (-1, 2, 9):
            continue
        kept = [other for other in best if other not in (2, 9)]
        kept += [other for other in table.pop(token, []) if other not in kept]
        table[token] = kept[:width]
        if len(table) > most:
            table.popitem(last=False)
        assert len(recycler) == len(table)
        assert {known: list(recycler.successors(known)) for known in range(10)} == {
            known: table.get(known, []) for known in range(10)
        }
