"""Which part of a draft is accepted."""

import doctest

from hypothesis import given
from hypothesis import strategies as st

from llma_rag import verification
from llma_rag.verification import ROOT, accepted, ancestors, depths


@st.composite
def trees(draw):
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, 12)))]
    tokens = draw(st.lists(st.integers(0, 3), min_size=len(parents), max_size=len(parents)))
    return tokens, parents


@given(trees(), st.lists(st.integers(0, 3), min_size=14, max_size=14))
def test_the_walk_follows_the_choices_and_ends_at_the_first_token_not_drafted(tree, script):
    tokens, parents = tree
    asked: list[int] = []

    def choose(node: int) -> int:
        asked.append(node)
        return script[len(asked) - 1]

    choices = list(accepted(tokens, parents, choose))
    assert [choice.token for choice in choices] == script[: len(choices)]
    assert choices[-1].node is None
    walked = [choice.node for choice in choices[:-1]]
    assert asked == [ROOT, *walked]
    for above, node in zip([ROOT, *walked], walked, strict=False):
        assert parents[node] == above
    last = walked[-1] if walked else ROOT
    children = {tokens[n] for n, parent in enumerate(parents) if parent == last}
    assert choices[-1].token not in children


def test_nothing_is_asked_before_it_is_taken():
    asked = []
    walk = accepted([5, 6], [-1, 0], lambda node: asked.append(node) or 5)
    next(walk)
    assert asked == [ROOT]


@given(trees())
def test_paths_and_depths_agree(tree):
    _, parents = tree
    assert [len(path) - 1 for path in ancestors(parents)] == depths(parents)


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(verification).failed == 0
