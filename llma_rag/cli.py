"""The command line; heavy packages are imported when a command runs, so that help is quick."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Answers from local models over retrieved text, decoded faster and left unchanged.",
)

_DEMO_PACKAGES = ("faiss", "langchain_classic", "langchain_llma", "llama_index")

_NAMES = re.compile(r",(?=[a-z-]+(?:[:,]|$))")
"""Between two drafters, not between the options of one."""
_FILE_WIDTH = 200
"""Columns of a table that goes to a file or a pipe."""

Json = Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")]


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def demo(as_json: Json = False) -> None:
    """Answer questions about the bundled documents through LangChain and LlamaIndex.

    Exit code 1 if any answer differs from the one without references.
    """
    with _input_errors():
        _need_demo_packages()
        _quiet(progress=False)
        from rich.console import Console

        from llma_rag.demo.running import Demo
        from llma_rag.demo.show import Show

        rows = list(Demo().rows()) if as_json else Show(Console()).run()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    if not all(row.identical for row in rows):
        raise typer.Exit(1)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    docs: Annotated[Path, typer.Option(help="Folder with text and Markdown files.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or hub name of a model; the bundled one if unset.")
    ] = None,
    k: Annotated[int, typer.Option(help="How many passages are retrieved.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
) -> None:
    """Answer a question about your own documents, with the sources of what was copied."""
    with _input_errors():
        _check_question(question)
        _check_at_least_one("--k", k)
        _check_at_least_one("--max-new-tokens", max_new_tokens)
        from llma_rag.demo import MODEL
        from llma_rag.demo.passages import read_folder

        passages = read_folder(docs)
        _need_demo_packages()
        _quiet(progress=sys.stderr.isatty())
        from rich.console import Console

        from llma_rag.demo.asking import answer_question

        answer_question(
            question,
            passages,
            model=MODEL if model is None else model,
            k=k,
            max_new_tokens=max_new_tokens,
            console=Console(),
        )


@app.command()
def replay(
    traces: Annotated[list[Path], typer.Option(help="JSON Lines file of recorded answers.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the `tokenizer.json` of the answers' model.")
    ] = None,
    max_draft_tokens: Annotated[int, typer.Option(help="Most tokens of a draft.")] = 20,
    rows: Annotated[int | None, typer.Option(help="First rows of each file.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Most nodes of a token tree.")] = None,
    cost: Annotated[
        list[float] | None,
        typer.Option(help="Cost of a verified token, as share of a forward pass."),
    ] = None,
    drafters: Annotated[
        list[str] | None, typer.Option(help="`name` or `name:option=number,...`; all if unset.")
    ] = None,
    as_json: Json = False,
    plot: Annotated[
        Path | None, typer.Option(help="PNG of tokens per forward against nodes.")
    ] = None,
) -> None:
    """Replay recorded answers through drafters, without a model."""
    with _input_errors():
        from rich.console import Console

        from llma_rag.bench.replay import DEFAULT_COSTS, replay_command

        replay_command(
            traces,
            tokenizer=tokenizer,
            max_draft_tokens=max_draft_tokens,
            rows=rows,
            nodes=nodes,
            costs=cost or DEFAULT_COSTS,
            drafters=[name for given in drafters for name in _NAMES.split(given)]
            if drafters
            else None,
            as_json=as_json,
            plot=plot,
            console=Console(width=None if sys.stdout.isatty() else _FILE_WIDTH),
        )


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option(help="Folder or hub name of a model; the bundled one if unset.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead.")] = False,
) -> None:
    """Check a model: can references speed it up here without changing a token?

    Exit code 0 if safe, 1 if it is decoded plainly, 2 if it cannot be used.
    """
    with _input_errors():
        from llma_rag.demo import MODEL
        from llma_rag.demo.terminal import inert
        from llma_rag.engine.doctor import diagnose

        diagnosis = diagnose(str(MODEL) if model is None else model)
    if as_json:
        found = {"status": diagnosis.status, "advice": diagnosis.advice, **diagnosis.facts}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for name, fact in diagnosis.facts.items():
            typer.echo(f"{name.replace('_', ' '):16} {inert(str(fact))}")
        typer.echo(f"\n{diagnosis.status}: {inert(diagnosis.advice.removeprefix('Safe: '))}")
    raise typer.Exit(diagnosis.exit_code)


@app.command()
def bench(
    traces: Annotated[list[Path], typer.Option(help="JSON Lines file of recorded answers.")],
    model: Annotated[str | None, typer.Option(help="Folder or hub name of a model.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Random weights instead: llama-3.1-8b, llama-3.2-1b, qwen2.5-7b, 0.5b."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the `tokenizer.json` of the answers' model.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device; CUDA where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the weights.")] = "bfloat16",
    arms: Annotated[list[str] | None, typer.Option(help="Names of arms; all if unset.")] = None,
    prompts: Annotated[int, typer.Option(help="First answers of each file.")] = 8,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 128,
    repeats: Annotated[int, typer.Option(help="Times that an arm decodes a prompt.")] = 5,
    verify: Annotated[
        bool, typer.Option(help="Let the model choose; exit code 3 if an answer of ours differs.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write a JSON list, one row per arm.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the times.")] = None,
) -> None:
    """Time a model with and without references, beside transformers' own decoding."""
    with _input_errors():
        for option, value in (("prompts", prompts), ("tokens", tokens), ("repeats", repeats)):
            _check_at_least_one(f"--{option}", value)
        from llma_rag.bench.command import bench_command

        status = bench_command(
            traces=traces,
            model=model,
            shape=shape,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            arms=[name for given in arms for name in given.split(",")] if arms else None,
            prompts=prompts,
            tokens=tokens,
            repeats=repeats,
            verify=verify,
            json_file=json_file,
            plot=plot,
        )
    if status:
        raise typer.Exit(status)


@contextmanager
def _input_errors() -> Iterator[None]:
    """Turn what the library says of bad input into one sentence and exit code 2."""
    try:
        yield
    except (ModuleNotFoundError, OSError, ValueError) as error:
        from llma_rag.demo.terminal import inert

        sentence = inert(" ".join(str(error).split()))
        typer.echo(f"Error: {sentence or type(error).__name__}", err=True)
        raise typer.Exit(2) from None


def _check_question(question: str) -> None:
    if not question.strip():
        raise ValueError(
            "`question` must hold text, got an empty one; write what you want to know."
        )


def _check_at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{option}` must be at least 1, got {value}.")


def _need_demo_packages() -> None:
    missing = [name for name in _DEMO_PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"This command needs {', '.join(missing)}; install them with "
            "`pip install 'llma-rag[demo]'`."
        )


def _quiet(*, progress: bool) -> None:
    """Keep the libraries' own messages from between the lines of an answer or of an error."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as transformers

    hub.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not progress:
        transformers.disable_progress_bar()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
