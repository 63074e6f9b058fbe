import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.demo.embedding import HashingEmbedding, features
from llma_rag.demo.passages import read_folder, split_text

TEXTS = st.text(alphabet=st.sampled_from("ab.# \n\r\t\u2028é"), max_size=300)


@given(TEXTS, st.integers(1, 40))
def test_passages_are_slices_of_the_document_in_order(text, size):
    end = 0
    for passage in split_text(text, "a.md", size):
        assert passage.start >= end
        end = passage.start + len(passage.text)
        assert text[passage.start : end] == passage.text
        assert passage.text == passage.text.strip() != ""


@given(st.text(alphabet="ab. \n\r\t\u2028é", max_size=300), st.integers(1, 40))
def test_passages_hold_every_word_of_a_text_without_headings(text, size):
    passages = split_text(text, "a.md", size)
    assert "".join("".join(p.text.split()) for p in passages) == "".join(text.split())


@given(TEXTS, st.integers(1, 40))
def test_passages_are_no_longer_than_asked(text, size):
    assert all(len(passage.text) <= size for passage in split_text(text, "a.md", size))


def test_headings_are_kept_beside_the_text():
    passages = split_text("# Ferry\n\nIt sails.\n\n## Fares\n\nIt costs.\n", "a.md")
    assert [(passage.heading, passage.text) for passage in passages] == [
        ("Ferry", "It sails."),
        ("Fares", "It costs."),
    ]


def test_long_paragraphs_are_cut_after_sentences():
    text = "One is short. Two is short. Three is short."
    assert [passage.text for passage in split_text(text, "a.md", 30)] == [
        "One is short. Two is short.",
        "Three is short.",
    ]


def test_subfolders_are_read_and_other_files_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("Two.")
    (tmp_path / "a.md").write_text("\ufeffOne.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00")
    assert [(p.source, p.text) for p in read_folder(tmp_path)] == [
        ("a.md", "One."),
        ("b/two.txt", "Two."),
    ]


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="`max_characters` must be at least 1, got 0"):
        split_text("a", "a.md", 0)


def test_an_embedding_is_the_same_in_every_process():
    vector = HashingEmbedding().embed("ferry tickets")
    assert np.flatnonzero(vector).tolist() == [694, 1344, 1745]


def test_the_nearest_text_shares_the_rare_words():
    texts = ["The ferry carries cars.", "The ferry carries bees.", "The ferry carries dogs."]
    embedding = HashingEmbedding(texts)
    nearness = embedding.embed_all(texts) @ embedding.embed("Which ferry carries bees?")
    assert int(np.argmax(nearness)) == 1


def test_texts_without_words_embed_to_zero():
    assert not HashingEmbedding(["a"]).embed("?!").any()
    assert HashingEmbedding().embed_all([]).shape == (0, 2048)


def test_word_forms_share_a_stem():
    assert features("tickets") == features("ticket")
