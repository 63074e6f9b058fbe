"""Earlier answers: what is recalled, for whom, and what survives."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llma_rag.answers import AnswerStore, Recalled, _checksum


class Vocabulary(dict):
    """As much of a tokenizer as a store looks at."""

    get_vocab = dict.copy


LLAMA, QWEN = Vocabulary(a=0, b=1), Vocabulary(a=1, b=0)


@pytest.fixture(params=["memory", "directory"])
def store(request, tmp_path):
    directory = tmp_path / "answers" if request.param == "directory" else None
    return AnswerStore(LLAMA, directory=directory, max_tokens=10, max_recalled=3)


def test_answers_to_the_same_prompt_stand_apart(store):
    store.add("a", [1, 2], [5, 6])
    store.add("a", [1], [7])
    assert store.recall("a", [1, 2]) == Recalled(repeats=((5, 6),), earlier=((7,),))
    assert store.recall("a", [9]) == Recalled(earlier=((5, 6), (7,)))


def test_namespaces_are_never_crossed(store):
    store.add("a", [1, 2], [5, 6])
    store.add("b", [1, 2], [5, 6])
    store.forget("b")
    assert store.recall("b", [1, 2]) == Recalled()
    assert store.recall("a", [1, 2]).repeats == ((5, 6),)


@pytest.mark.parametrize("namespace", ["", None, 3])
def test_a_namespace_is_mandatory(store, namespace):
    with pytest.raises(ValueError, match="`namespace` must be"):
        store.add(namespace, [1], [2])
    with pytest.raises(ValueError, match="`namespace` must be"):
        store.recall(namespace, [1])


def test_the_least_recently_used_is_dropped(store):
    for answer in (1, 2, 3):
        store.add("a", [answer], [answer] * 3)
    store.recall("a", [1])
    store.add("a", [4], [4] * 3)
    assert len(store) == 3
    assert store.recall("a", [2]).repeats == ()
    assert store.recall("a", [1]).repeats == ((1, 1, 1),)
    store.add("a", [5], [5] * 11)
    assert len(store) == 3


def test_an_equal_answer_is_stored_once(store):
    store.add("a", [1], [2])
    store.add("a", [1], [2])
    store.add("a", [1], [])
    assert len(store) == 1


def test_a_directory_is_opened_again(tmp_path):
    store = AnswerStore(LLAMA, directory=tmp_path)
    store.add("a", [1], [2, 3])
    store.add("b", [1], [4])
    again = AnswerStore(LLAMA, directory=tmp_path)
    assert again.recall("a", [1]).repeats == ((2, 3),)
    other = AnswerStore(QWEN, directory=tmp_path)
    assert other.recall("a", [1]) == Recalled()
    assert len(AnswerStore(LLAMA, directory=tmp_path, max_tokens=2)) == 1


@pytest.mark.parametrize("spoil", ["cut", "edit", "pickle", "deep"])
def test_a_damaged_file_is_no_answer(tmp_path, spoil):
    AnswerStore(LLAMA, directory=tmp_path).add("a", [1], [2, 3])
    [file] = tmp_path.glob("*.json")
    text = file.read_text()
    spoilt = {
        "cut": text[: len(text) // 2].encode(),
        "edit": text.replace("[2, 3]", "[2, 4]").encode(),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "deep": b"[" * 100_000,
    }
    file.write_bytes(spoilt[spoil])
    store = AnswerStore(LLAMA, directory=tmp_path)
    assert (len(store), store.dropped) == (0, 1)
    store.add("a", [1], [2, 3])
    assert len(AnswerStore(LLAMA, directory=tmp_path)) == 1


def test_files_of_others_are_left_alone(tmp_path):
    """As those of a model's folder, of a newer version, and of other programs."""
    digest = "0" * 64
    for name, text in {
        "config.json": '{"a": 1}',
        "notes.partial": "x",
        f"{digest}.json": json.dumps({"format": 2, "tokens": [1]}),
        f"{digest[1:]}1.json": "[1, 2]",
        f"{digest}.json.bak": "{",
        f"{digest.replace('0', 'A')}.json": "{",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / f"{'f' * 64}.json").mkdir()
    (tmp_path / "folder.json").mkdir()
    before = sorted(tmp_path.iterdir())
    store = AnswerStore(LLAMA, directory=tmp_path)
    assert (len(store), store.dropped) == (0, 0)
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_read_now_is_kept(tmp_path, monkeypatch):
    AnswerStore(LLAMA, directory=tmp_path).add("a", [1], [2, 3])

    def refuse(*_):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as context:
        context.setattr("llma_rag.answers.Path.read_bytes", refuse)
        assert len(AnswerStore(LLAMA, directory=tmp_path)) == 0
    assert len(AnswerStore(LLAMA, directory=tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["a"]}, {"tokens": [1.5]}, {"tokens": [None]}, {"tokens": [True]},
        {"tokens": [-1]}, {"tokens": [2**40]}, {"tokens": 7}, {"namespace": 3}, {"question": None},
        "key", "tokens", "tokenizer",
    ],
)  # fmt: skip
def test_fields_that_are_missing_or_of_another_kind_make_no_answer(tmp_path, change):
    AnswerStore(LLAMA, directory=tmp_path).add("a", [1], [2, 3])
    [file] = tmp_path.glob("*.json")
    entry = json.loads(file.read_text())
    del entry["checksum"]
    if isinstance(change, str):
        del entry[change]
    else:
        entry |= change
    file.write_text(json.dumps(entry | {"checksum": _checksum(entry)}))
    store = AnswerStore(LLAMA, directory=tmp_path)
    assert (len(store), store.dropped) == (0, 1)
    assert not file.exists()


def test_a_copied_file_counts_once(tmp_path):
    AnswerStore(LLAMA, directory=tmp_path).add("a", [1], [2, 3])
    [file] = tmp_path.glob("*.json")
    (tmp_path / f"{'0' * 64}.json").write_bytes(file.read_bytes())
    store = AnswerStore(LLAMA, directory=tmp_path, max_tokens=3)
    assert store.recall("a", [1]).repeats == ((2, 3),)


def test_a_crash_before_the_rename_leaves_the_store_whole(tmp_path, monkeypatch):
    store = AnswerStore(LLAMA, directory=tmp_path)
    store.add("a", [1], [2])

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("llma_rag.answers.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.add("a", [1], [3])
    again = AnswerStore(LLAMA, directory=tmp_path)
    assert again.recall("a", [1]).repeats == ((2,),)
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


def test_a_directory_that_became_read_only_is_recalled_from(tmp_path, monkeypatch):
    store = AnswerStore(LLAMA, directory=tmp_path)
    store.add("a", [1], [2])

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("llma_rag.answers.os.utime", refuse)
    assert store.recall("a", [1]).repeats == ((2,),)


def test_a_directory_that_is_full_bounds_the_store_all_the_same(tmp_path, monkeypatch):
    store = AnswerStore(LLAMA, directory=tmp_path, max_tokens=3)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llma_rag.answers.os.replace", refuse)
    for number in range(9):
        with pytest.raises(OSError, match="No space"):
            store.add("a", [number], [2])
    assert len(store) == 3


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.lists(st.integers(0, 9))),
        max_size=20,
    )
)
@settings(max_examples=100, deadline=None)
def test_what_is_recalled_was_stored_under_that_namespace(entries):
    store = AnswerStore(LLAMA, max_tokens=15)
    given_to = {name: set() for name in "abc"}
    for name, prompt, answer in entries:
        store.add(name, [prompt], answer)
        given_to[name].add((prompt, tuple(answer)))
    for name, stored in given_to.items():
        for prompt in range(4):
            recalled = store.recall(name, [prompt])
            assert {(prompt, answer) for answer in recalled.repeats} <= stored
            assert set(recalled.earlier) <= {answer for _, answer in stored}


@pytest.mark.parametrize("setting", [{"max_tokens": 0}, {"max_recalled": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        AnswerStore(LLAMA, **setting)
    with pytest.raises(TypeError, match="`tokenizer` must be a tokenizer"):
        AnswerStore("llama")
