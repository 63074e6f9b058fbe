"""Arms are timed in turns on the same answers; what is printed follows from the times."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from llma_rag.bench import command, peers
from llma_rag.bench.arms import Timed
from llma_rag.bench.bandwidth import share, traffic
from llma_rag.bench.command import arms_for, bench_command, packed
from llma_rag.bench.shapes import SHAPES
from llma_rag.bench.timing import interleave, ratio_of, rows_of
from llma_rag.bench.traces import Trace, TraceTokens
from llma_rag.bench.workloads import misleading, without_overlap
from llma_rag.engine.calibration import Calibration
from llma_rag.engine.cpu.half_product import can_keep
from tests.models import CONFIGS, character_tokenizer, tiny_model

TEXT = "the red fox ran over the hill and the grey wolf ran after the red fox"


def trace(number: int) -> TraceTokens:
    row = Trace(str(number), "set", str(number), "llama2", "", (), "", "")
    return TraceTokens(row, (1, 2), (), (3, 4), frozenset())


def timed(seconds: float, tokens: tuple[int, ...] = (3, 4), forwards: int = 2) -> Timed:
    return Timed(seconds, seconds / 2, forwards, tokens)


def test_arms_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, str]] = []

    def run(arm: str, one: TraceTokens) -> Timed:
        calls.append((arm, one.trace.id))
        return timed(100.0 if len(calls) <= 2 else 1.0)

    found = interleave(run, ("a", "b"), [trace(0), trace(1)], repeats=3)
    assert {arm: [len(runs) for runs in of] for arm, of in found.items()} == {
        "a": [3, 3],
        "b": [3, 3],
    }
    assert all(one.seconds == 1.0 for of in found.values() for runs in of for one in runs)
    assert len(calls) == 14
    assert all({arm for arm, _ in calls[at : at + 2]} == {"a", "b"} for at in range(0, 14, 2))


def test_a_run_ends_between_prompts_when_its_time_is_up() -> None:
    found = interleave(
        lambda *_: timed(1.0), ("a", "b"), [trace(0), trace(1), trace(2)], repeats=3,
        time_is_up=iter([False, False, False, True]).__next__,
    )  # fmt: skip
    assert {arm: [len(runs) for runs in of] for arm, of in found.items()} == {
        "a": [2, 1, 1],
        "b": [2, 1, 1],
    }


def test_rows_hold_medians_ratios_and_what_is_identical() -> None:
    plain = [[timed(4.0), timed(4.0), timed(90.0)], [timed(8.0)] * 3]
    ours = [[timed(2.0, forwards=1)] * 3, [timed(2.0, (3, 9), forwards=1)] * 3]
    rows = {row.arm: row for row in rows_of({"plain": plain, "llma": ours})}
    assert rows["plain"].identical == 1.0
    assert rows["llma"].identical == 0.5
    assert rows["llma"].tokens_per_forward == 2.0
    assert rows["llma"].answer_ratio["plain"]["prompts"] == [2.0, 4.0]
    assert rows["llma"].answer_ratio["plain"]["median"] == 3.0
    assert rows["llma"].ratio["plain"]["prompts"] == [2.0, 4.0]
    assert rows["plain"].ms_per_token == 3000.0
    assert rows["plain"].ms_per_forward == 3000.0
    assert rows["llma"].ttft_more_ms["plain"]["prompts"] == [-1000.0, -3000.0]


def test_the_ratio_leaves_the_time_to_the_first_token_out() -> None:
    found = {"plain": [[Timed(4.0, 3.0, 2, (3, 4))]], "llma": [[Timed(3.5, 3.0, 2, (3, 4))]]}
    row = rows_of(found)[1]
    assert row.ratio["plain"]["median"] == 2.0
    assert row.answer_ratio["plain"]["median"] == 1.143


def test_bandwidth_is_what_a_pass_must_read_over_what_can_be_copied() -> None:
    """A Llama of 2 layers, 2 heads of 8 for keys and values; the embedding is not read."""
    model = tiny_model("llama-gqa")
    facts = traffic(model, model)
    weights = sum(one.numel() for one in model.parameters()) - 32 * model.config.vocab_size
    assert facts["weight_gb"] == facts["our_weight_gb"] == pytest.approx(4 * weights / 1e9)
    assert facts["kv_kb_per_token"] == pytest.approx(2 * 2 * 2 * 8 * 4 / 1e3)
    assert facts["memory_gb_per_s"] > 0.01
    rates = {"kv_kb_per_token": 100.0, "memory_gb_per_s": 20.0}
    run = {"weight_gb": 2.0, "our_weight_gb": 1.0, **rates}
    one = Timed(8.1, 0.1, 101, (3,) * 100, prompt_tokens=950)
    theirs, ours = rows_of({"hf-greedy": [[one]], "plain": [[one]]})
    assert ours.context == 1000
    assert share(ours, run) == pytest.approx(1.1 / 0.08 / 20)
    assert share(theirs, run) == pytest.approx(2.1 / 0.08 / 20)


def test_weights_that_are_kept_in_bfloat16_count_by_their_bytes() -> None:
    model = copy.deepcopy(tiny_model("llama-gqa")).bfloat16().float()
    facts = traffic(model, packed(model))
    linear = sum(one.numel() for one in model.parameters() if one.dim() == 2)
    linear -= model.get_input_embeddings().weight.numel()
    halved = can_keep(torch.bfloat16)
    assert facts["our_weight_gb"] == pytest.approx(facts["weight_gb"] - 2 * linear / 1e9 * halved)


def test_the_interval_holds_the_median() -> None:
    found = ratio_of(np.linspace(1.0, 3.0, 21))
    assert found["median"] == 2.0
    assert 1.0 < found["low"] < 2.0 < found["high"] < 3.0


def test_rows_that_copying_cannot_help_keep_the_answer_and_change_the_rest() -> None:
    rows = [
        TraceTokens(
            Trace(str(n), "s", str(n), "llama2", "", (text,), answer, ""), (n,) * 99, (), (n,),
            frozenset(),
        )
        for n, text, answer in ((1, "x y z", "one two"), (2, "p q r s", "three"))
    ]  # fmt: skip
    apart, wrong = without_overlap(rows), misleading(rows, lambda ids: f" {ids[0]}")
    assert [one.answer for one in apart] == [one.answer for one in wrong] == [(1,), (2,)]
    assert [one.prompt for one in apart] == [one.prompt for one in wrong] == [(2,) * 64, (1,) * 64]
    assert [one.trace.passages for one in apart] == [("p q r s",), ("x y z",)]
    assert wrong[0].trace.passages == ("1 p q r s",)
    with pytest.raises(ValueError, match="two rows"):
        without_overlap(rows[:1])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Recorded answers and a tokenizer, and a shape small enough for a test."""
    monkeypatch.setitem(SHAPES, "tiny", CONFIGS["llama-gqa"])
    monkeypatch.setattr(command, "measure", lambda _: Calibration({128: {1: 1.0}}))
    lines = [
        json.dumps({"id": str(n), "prompt": TEXT, "passages": [TEXT], "answer": TEXT[8 * n : 40]})
        for n in range(2)
    ]
    (tmp_path / "traces.jsonl").write_text("\n".join(lines))
    character_tokenizer().save_pretrained(tmp_path)
    return tmp_path / "traces.jsonl", tmp_path


def test_forced_answers_are_the_recorded_ones_in_every_arm(files: tuple[Path, Path]) -> None:
    traces, tokenizer = files
    out = tokenizer / "out.json"
    status = bench_command(
        traces=[traces], shape="tiny", tokenizer=tokenizer, device="cpu", dtype="float32",
        tokens=12, repeats=1, json_file=out, plot=tokenizer / "p.png", console=Console(quiet=True),
    )  # fmt: skip
    rows = {row["arm"]: row for row in json.loads(out.read_text())}
    assert status == 0
    assert list(rows) == arms_for("cpu")
    assert list(rows)[:4] == ["hf-greedy", "hf-prompt-lookup", "plain", "llma"]
    assert all(row["identical"] == 1.0 for row in rows.values())
    assert rows["hf-greedy"]["tokens_per_forward"] == rows["plain"]["tokens_per_forward"] == 1.0
    assert rows["llma"]["tokens_per_forward"] > 1.5
    assert all(row["ttft_ms"] > 0 for row in rows.values())
    assert (tokenizer / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_suffix_arm_runs_its_drafts_in_our_engine(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another drafter in its place: SuffixDecoding's package is not needed for tests."""
    monkeypatch.setattr(peers, "EarlierAnswers", object)
    monkeypatch.setattr(peers, "SuffixDecoding", lambda *_, branching: peers.PromptLookup())
    out = files[1] / "out.json"
    bench_command(
        traces=[files[0]], shape="tiny", tokenizer=files[1], device="cpu", dtype="float32",
        arms=["plain", "suffix"], tokens=12, repeats=1, json_file=out, console=Console(quiet=True),
    )  # fmt: skip
    rows = {row["arm"]: row for row in json.loads(out.read_text())}
    assert rows["suffix"]["identical"] == 1.0
    assert rows["suffix"]["tokens_per_forward"] > 1.2


@pytest.mark.parametrize("arms", [["plain", "llma"], ["llma"]])
@pytest.mark.parametrize("wrong", [False, True])
def test_verify_lets_the_model_choose_and_exits_3_on_a_difference(
    files: tuple[Path, Path], wrong: bool, arms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any repeat; compared with plain decoding also where nobody asked to time it."""
    traces, tokenizer = files
    tiny_model("llama-gqa").save_pretrained(tokenizer)
    if wrong:
        original, runs = command.Bench.run, Counter[str]()

        def differ(self: command.Bench, arm: str, one: TraceTokens) -> Timed:
            found = original(self, arm, one)
            runs[arm] += 1
            return timed(found.seconds, (9,)) if arm == "llma" and runs[arm] == 2 else found

        monkeypatch.setattr(command.Bench, "run", differ)
    status = bench_command(
        traces=[traces], model=str(tokenizer), tokenizer=tokenizer, device="cpu", dtype="float32",
        arms=arms, tokens=8, repeats=2, verify=True, console=Console(quiet=True),
    )  # fmt: skip
    assert status == (3 if wrong else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--model"),
        ({"model": "a", "shape": "b"}, "--model"),
        ({"shape": "nine"}, "--shape"),
        ({"shape": "tiny", "arms": ["warp"]}, "--arms"),
        ({"shape": "tiny", "dtype": "int99"}, "--dtype"),
    ],
)
def test_wrong_options_are_named(
    files: tuple[Path, Path], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bench_command(traces=[files[0]], tokenizer=files[1], **options)


def test_a_plot_that_cannot_be_drawn_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llma_rag.bench.plots.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"--plot.*llma-rag\[plot\]"):
        bench_command(traces=[], shape="tiny", plot=Path("p.png"))
