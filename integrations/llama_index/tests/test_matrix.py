from functools import cache

import pytest

pytest.importorskip("faiss", reason="rows over a FAISS store need faiss-cpu")
pytest.importorskip(
    "llama_index.vector_stores.faiss", reason="rows over a FAISS store need its LlamaIndex package"
)

from integrations.llama_index.tests import matrix, matrix_chats, matrix_engines

assert matrix_chats
assert matrix_engines


@cache
def outcome(name):
    return matrix.run_row(matrix.ROWS[name])


@pytest.mark.parametrize("name", matrix.ROWS)
def test_every_call_sees_all_true_nodes(name):
    """Fewer than all only where `short` says so: a broken handler fails nearly every row."""
    result = outcome(name)
    assert result.calls - result.complete == matrix.ROWS[name].short


def test_almost_all_calls_see_all_true_nodes():
    """Ten see less: six rightly (each try sees its own), four are not linked to a retrieval."""
    outcomes = [outcome(name) for name in matrix.ROWS]
    calls = sum(result.calls for result in outcomes)
    complete = sum(result.complete for result in outcomes)
    assert calls >= 220, "a row counts too little"
    assert calls - complete <= 10
