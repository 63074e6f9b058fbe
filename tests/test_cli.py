import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as model_logging
from typer.testing import CliRunner

from llma_rag.cli import app
from llma_rag.demo.running import Row

ROW = Row(
    framework="langchain",
    question="When does the ferry leave?",
    answer="The ferry leaves at 6:40.",
    sources=("timetable.md",),
    tokens=12,
    forwards=3,
    tokens_per_forward=4.0,
    seconds=0.1,
    seconds_plain=0.2,
    seconds_generate=0.3,
    identical=True,
)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "ferry.md").write_text("# Ferry\n\nThe ferry leaves the harbour at 6:40 every day.\n")
    return folder


@pytest.fixture(autouse=True)
def talkative():
    """A command quiets the libraries for its own process; here they must speak again."""
    hub, model = hub_logging.get_verbosity(), model_logging.get_verbosity()
    yield
    hub_logging.set_verbosity(hub)
    model_logging.set_verbosity(model)
    model_logging.enable_progress_bar()


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result, *words: str) -> None:
    """One sentence on stderr that holds `words`, exit code 2, nothing else."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = ("torch", "transformers", "numpy", "faiss", "langchain_core", "llama_index.core")
    code = f"import sys, llma_rag.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command():
    result = run("--help")
    assert result.exit_code == 0
    assert {"demo", "ask", "replay"} <= set(result.stdout.split())


class TestAskRefuses:
    def test_an_empty_question(self, docs):
        assert_refused(run("ask", "--docs", docs, "  "), "`question`", "write what you want")

    def test_a_missing_folder(self, tmp_path):
        assert_refused(run("ask", "--docs", tmp_path / "none", "Why?"), "existing folder", "check")

    def test_a_file_instead_of_a_folder(self, docs):
        assert_refused(run("ask", "--docs", docs / "ferry.md", "Why?"), "must be a folder")

    def test_an_unreadable_folder(self, docs, monkeypatch):
        def refuse(path: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        assert_refused(run("ask", "--docs", docs, "Why?"), "readable", "change its permissions")

    def test_an_unreadable_file(self, docs, monkeypatch):
        def refuse(self: Path, **_: object) -> str:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "read_text", refuse)
        assert_refused(run("ask", "--docs", docs, "Why?"), "ferry.md", "change its permissions")

    def test_a_folder_without_documents(self, tmp_path):
        assert_refused(run("ask", "--docs", tmp_path, "Why?"), ".md", "add documents")

    def test_documents_without_text(self, docs):
        (docs / "ferry.md").write_text("\n \n")
        assert_refused(run("ask", "--docs", docs, "Why?"), "only empty ones", "add text")

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00\x9c", b"PK\x03\x04\x00\x00 text"])
    def test_a_file_that_is_not_text(self, docs, content):
        (docs / "picture.txt").write_bytes(content)
        assert_refused(run("ask", "--docs", docs, "Why?"), "picture.txt", "convert the file")

    def test_a_number_of_passages_below_one(self, docs):
        assert_refused(run("ask", "--docs", docs, "--k", 0, "Why?"), "`--k` must be at least 1")

    def test_a_limit_below_one(self, docs):
        refused = run("ask", "--docs", docs, "--max-new-tokens", 0, "Why?")
        assert_refused(refused, "`--max-new-tokens` must be at least 1")

    def test_a_model_path_that_does_not_exist(self, docs, tmp_path):
        refused = run("ask", "--docs", docs, "--model", tmp_path / "none", "Why?")
        assert_refused(refused, "no model folder", "check the path")

    def test_a_prompt_longer_than_the_context(self, docs):
        long = "The ferry waits. " * 3000
        (docs / "long.txt").write_text(long)
        assert_refused(run("ask", "--docs", docs, "--k", 200, "Why ferry?"), "context", "fewer")

    def test_a_hub_name_without_network(self, docs):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "llma_rag.cli",
                "ask",
                "--docs",
                docs,
                "--model",
                "x/nothing",
                "Why?",
            ],
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "x/nothing" in done.stderr
        assert "download the model first" in done.stderr

    def test_missing_packages(self, docs, monkeypatch):
        monkeypatch.setattr("llma_rag.cli.find_spec", lambda name: None)
        assert_refused(run("ask", "--docs", docs, "Why?"), "pip install 'llma-rag[demo]'")


def test_ask_answers_from_the_documents(docs):
    result = run("ask", "--docs", docs, "When does the ferry leave the harbour?")
    assert result.exit_code == 0, result.stderr
    answer, sources, costs = result.stdout.strip().splitlines()[-3:]
    assert answer.strip()
    assert sources.startswith("sources: ")
    assert "forward passes" in costs


def test_names_of_documents_cannot_act_in_the_terminal(docs):
    (docs / "ferry.md").rename(docs / "[bold]fer\x1b[31mry.md")
    result = run("ask", "--docs", docs, "When does the ferry leave the harbour?")
    assert result.exit_code == 0, result.stderr
    assert "sources: [bold]fer\ufffd[31mry.md" in result.stdout


def test_control_characters_are_replaced_one_for_one():
    """Answers are shown so too, and colours are laid over them by their places."""
    from llma_rag.demo.terminal import inert

    hostile = "a[bold]b\x1b[31mc\u202ed\x07"
    assert inert(hostile) == "a[bold]b\ufffd[31mc\ufffdd\ufffd"
    assert len(inert(hostile)) == len(hostile)


class TestDemo:
    def run_with(self, monkeypatch, rows: list[Row], *arguments: str):
        class Stand:
            passages = ()

            def __init__(self, *_: object) -> None:
                pass

            def rows(self, **_: object):
                return iter(rows)

        monkeypatch.setattr("llma_rag.demo.running.Demo", Stand)
        monkeypatch.setattr("llma_rag.demo.show.Demo", Stand)
        return run("demo", *arguments)

    def test_json_has_one_row_per_answer(self, monkeypatch):
        result = self.run_with(monkeypatch, [ROW, ROW], "--json")
        assert result.exit_code == 0
        rows = json.loads(result.stdout)
        assert len(rows) == 2
        assert list(rows[0]) == [
            "framework", "question", "answer", "sources", "tokens", "forwards",
            "tokens_per_forward", "seconds", "seconds_plain", "seconds_generate", "identical",
        ]  # fmt: skip

    @pytest.mark.parametrize("arguments", [(), ("--json",)])
    def test_an_answer_that_differs_is_exit_code_1(self, monkeypatch, arguments):
        rows = [ROW, replace(ROW, identical=False), ROW]
        assert self.run_with(monkeypatch, rows, *arguments).exit_code == 1
        assert self.run_with(monkeypatch, rows[:1], *arguments).exit_code == 0


class TestReplay:
    def test_prints_one_row_per_drafter_and_set(self, shared):
        result = run(
            "replay", "--traces", shared / "traces/dev/llma_rag.jsonl", "--tokenizer",
            shared / "tokenizers/llama2", "--max-draft-tokens", 20, "--rows", 2,
            "--drafters", "llma:min_match_length=2,draft_length=5,llma-rag", "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        rows = json.loads(result.stdout)
        assert len(rows) == 2
        row = rows[0]
        assert {
            "drafter", "set", "rows", "tokens", "forwards", "drafted", "accepted",
            "tokens_per_forward",
        } <= set(row)  # fmt: skip
        assert row["rows"] == 2

    def test_refuses_a_missing_file(self, tmp_path):
        refused = run("replay", "--traces", tmp_path / "none.jsonl", "--tokenizer", tmp_path)
        assert_refused(refused, "none.jsonl")
