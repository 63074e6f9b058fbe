"""Forced decoding of recorded answers."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from llma_rag.bench.forced import count_accepted
from llma_rag.bench.replay import DRAFTERS, replay_command
from llma_rag.bench.search import Search
from llma_rag.bench.traces import load_traces
from llma_rag.drafting import Draft

SHARED = Path(os.environ.get("LLMA_RAG_SHARED", Path(__file__).parents[2] / "shared"))
WORDS = [f"w{number}" for number in range(30)]


@pytest.fixture
def tokenizer_folder(tmp_path):
    vocab = {word: number for number, word in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "<unk>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder, *rows) -> Path:
    file = folder / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def row(answer, passages=(), **more):
    return {
        "set": "toy",
        "group": answer,
        "prompt": "w0",
        "passages": passages,
        "answer": answer,
    } | more


def run_json(*args, **settings):
    output = io.StringIO()
    replay_command(*args, **settings, as_json=True, console=Console(file=output))
    return json.loads(output.getvalue())


@pytest.mark.parametrize(("drafter", "drafted"), [("llma", 3), ("llma-rag", 4)])
def test_counts_of_a_copied_answer(drafter, drafted, tokenizer_folder):
    # Prefill yields w5; one pass copies w6 w7 and adds w9; a last one yields w1 without a match,
    # though ours tries w8 behind the w9 that interrupted the copy.
    file = write(tokenizer_folder, row(" w5 w6 w7 w9 w1", ["w4 w5 w6 w7 w8"]))
    [found] = run_json([file], tokenizer=tokenizer_folder, drafters=[drafter], costs=[0.5])
    assert found["set"] == "toy"
    assert (found["rows"], found["tokens"], found["forwards"]) == (1, 5, 3)
    assert (found["drafted"], found["accepted"]) == (drafted, 2)
    assert found["tokens_per_forward"] == pytest.approx(5 / 3, abs=1e-4)
    if drafter == "llma":
        assert found["s"] == {"0.5": pytest.approx(5 / 4.5, abs=1e-4)}


def test_the_last_token_ends_the_answer_inside_a_draft(tokenizer_folder):
    file = write(tokenizer_folder, row(" w5 w6 w7", ["w5 w6 w7 w8 w9"]))
    [found] = run_json([file], tokenizer=tokenizer_folder, drafters=["llma-rag"])
    assert (found["tokens"], found["forwards"], found["accepted"]) == (3, 2, 2)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_every_drafter_keeps_to_the_budget(drafter, tokenizer_folder):
    file = write(tokenizer_folder, row(" w5 w6 w7 w9 w1 w5", [" ".join(WORDS)]))
    [found] = run_json([file], tokenizer=tokenizer_folder, drafters=[drafter], max_draft_tokens=1)
    assert found["drafted"] <= found["forwards"]
    assert found["tokens"] == 6


def test_our_drafter_is_told_the_cost(tokenizer_folder):
    file = write(tokenizer_folder, row(" w5 w6 w7 w9 w1", ["w4 w5 w6 w7 w8"]))
    costs = [0.0, 0.9]
    [found] = run_json([file], tokenizer=tokenizer_folder, drafters=["llma-rag"], costs=costs)
    assert found["s"] == {"0": pytest.approx(5 / 3, abs=1e-4), "0.9": 1.0}


def test_peers_take_options(tokenizer_folder):
    file = write(tokenizer_folder, row(" w5 w6 w7 w9 w1", ["w4 w5 w6 w7 w8"]))
    drafters = ["llma:draft_length=1"]
    [found] = run_json([file], tokenizer=tokenizer_folder, drafters=drafters)
    assert (found["drafter"], found["drafted"], found["forwards"]) == (drafters[0], 2, 4)
    for wrong, message in (
        ("llma:draft_length", "must read `name=number`"),
        ("llma:speed=3", "do not fit"),
        ("llma-rag:speed=3", "takes the option"),
    ):
        with pytest.raises(ValueError, match=message):
            run_json([file], tokenizer=tokenizer_folder, drafters=[wrong])


def test_trees_find_what_a_chain_misses(tokenizer_folder):
    passages = ["w5 w6", "w5 w7", "w5 w8"]
    file = write(tokenizer_folder, row(" w5 w8", passages))
    accepted = [
        run_json([file], tokenizer=tokenizer_folder, drafters=["llma-rag"], nodes=nodes)[0]
        for nodes in (1, 3)
    ]
    assert [found["accepted"] for found in accepted] == [0, 1]


def test_several_sets_are_summed_up(tokenizer_folder):
    file = write(tokenizer_folder, row(" w5 w6"), row(" w7", set="other"), row(""))
    found = run_json([file], tokenizer=tokenizer_folder, drafters=["llma-rag"])
    assert [(entry["set"], entry["tokens"]) for entry in found] == [
        ("toy", 2),
        ("other", 1),
        ("all", 3),
    ]


def test_rows_takes_the_first_rows_of_each_file(tokenizer_folder):
    file = write(tokenizer_folder, row(" w5 w6"), row(" w7"))
    [found] = run_json([file], tokenizer=tokenizer_folder, drafters=["llma-rag"], rows=1)
    assert found["rows"] == 1


def test_table_and_plot(tokenizer_folder, tmp_path):
    file = write(tokenizer_folder, row(" w5 w6"))
    output = io.StringIO()
    plot = tmp_path / "plot.png"
    console = Console(file=output, width=200)
    replay_command([file], tokenizer=tokenizer_folder, plot=plot, console=console)
    assert "prompt-lookup" in output.getvalue()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_malformed_lines_are_named(tokenizer_folder):
    file = write(tokenizer_folder, row(" w5"))
    file.write_text(file.read_text() + "no json\n")
    with pytest.raises(ValueError, match=r"some.jsonl:2 is no JSON"):
        load_traces([file])
    file.write_text('{"answer": 3}\n')
    with pytest.raises(ValueError, match=r"some.jsonl:1 must be a JSON object with the text"):
        load_traces([file])


def test_missing_input_is_named(tokenizer_folder, tmp_path):
    file = write(tokenizer_folder, row(" w5"))
    with pytest.raises(OSError, match="absent"):
        replay_command([tmp_path / "absent.jsonl"], tokenizer=tokenizer_folder)
    with pytest.raises(FileNotFoundError, match="`--tokenizer`"):
        replay_command([file], tokenizer=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`drafters` must be among"):
        replay_command([file], tokenizer=tokenizer_folder, drafters=["best"])
    with pytest.raises(ValueError, match="at least one answer"):
        replay_command([write(tokenizer_folder, row(""))], tokenizer=tokenizer_folder)


def test_the_accepted_path_of_a_tree():
    draft = Draft(tokens=(5, 5, 6, 7), parents=(-1, 0, 0, 2))
    assert count_accepted(draft, [5, 6, 7, 8]) == 3
    assert count_accepted(draft, [5, 5]) == 2
    assert count_accepted(draft, [6]) == 0
    assert count_accepted(Draft(), [6]) == 0


@pytest.mark.slow
def test_recorded_answers_of_the_paper_need_a_third_of_the_passes():
    file = SHARED / "traces" / "dev" / "llma_rag.jsonl"
    if not file.exists():
        pytest.skip("the recorded answers lie outside the project")
    tokenizer = SHARED / "tokenizers" / "llama2"
    [found] = run_json([file], tokenizer=tokenizer, drafters=["llma-rag"], max_draft_tokens=20)
    assert found["tokens_per_forward"] >= 3.4


def _searched(values, options):
    """Search a grid of `a` and `b`; return the best setting and how many were measured."""
    measured = []

    def measure(name):
        measured.append(name)
        a, b = (float(part.partition("=")[2]) for part in name.partition(":")[2].split(","))
        return {"0.1": values(a, b)}

    found = Search(measure).best("peer", options, "0.1")
    assert len(measured) == len(set(measured))
    return found, len(measured)


def test_search_finds_the_best_of_a_large_grid_with_one_peak():
    options = {"a": tuple(range(1, 21)), "b": tuple(range(20, 0, -1))}
    found, measured = _searched(lambda a, b: 9 - (a - 3) ** 2 - (b - 2) ** 2, options)
    assert found == ("peer:a=3,b=2", 9)
    assert measured < 20 * 20


def test_search_tries_all_of_a_small_grid():
    """The peak at (4, 2) is behind a valley that one option at a time does not cross."""
    options = {"a": (1, 2, 3, 4), "b": (4, 1, 2)}
    found, measured = _searched(lambda a, b: 9 if (a, b) == (4, 2) else -abs(a - b), options)
    assert found == ("peer:a=4,b=2", 9)
    assert measured == 12
