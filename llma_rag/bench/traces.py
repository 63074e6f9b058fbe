"""Load recorded answers and turn them into token ids; runs no model."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

FAMILIES = {"vicuna": "llama2", "llama": "llama2", "mistral": "mistral-v1", "mixtral": "mistral-v1"}
"""Tokenizer folder by what the name of the recorded model contains; others use `llama2`."""


@dataclass(frozen=True, slots=True)
class Trace:
    """An answer that some model once wrote, with what it was given.

    Attributes:
        id: Name of the row.
        set: Name of the data set.
        group: Question or document; rows of one group are not independent.
        family: Tokenizer family of the model that wrote the answer.
        prompt: What the model read; made of passages and question where it was not recorded.
        passages: Texts that the prompt holds, the references.
        answer: What the model wrote.
        question: What was asked.
    """

    id: str
    set: str
    group: str
    family: str
    prompt: str
    passages: tuple[str, ...]
    answer: str
    question: str


@dataclass(frozen=True, slots=True)
class TraceTokens:
    """A trace as token ids; references are tokenised each on its own, without special tokens."""

    trace: Trace
    prompt: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    special_tokens: frozenset[int]


def load_traces(files: Iterable[Path], rows: int | None = None) -> list[Trace]:
    """Read traces from JSON Lines files, the first `rows` of each.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a line is no JSON object with `answer`, naming file and line.
    """
    return [trace for file in files for trace in _load(file, rows)]


def _load(file: Path, rows: int | None) -> Iterator[Trace]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if rows is not None and number >= rows:
                return
            if line.strip():
                yield _parse(line, f"{file}:{number + 1}", file.stem)


def _parse(line: str, where: str, stem: str) -> Trace:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}.") from error
    if not isinstance(row, dict) or not isinstance(row.get("answer"), str):
        raise ValueError(f"{where} must be a JSON object with the text `answer`.")
    passages = tuple(str(passage) for passage in row.get("passages") or ())
    question = str(row.get("question") or "")
    return Trace(
        id=str(row.get("id", where)),
        set=str(row.get("set", stem)),
        group=str(row.get("group", row.get("id", where))),
        family=_family(row),
        prompt=_prompt(row, passages, question),
        passages=passages,
        answer=row["answer"],
        question=question,
    )


def _family(row: dict[str, Any]) -> str:
    name = str(row.get("llm", "")).lower()
    return next((family for part, family in FAMILIES.items() if part in name), "llama2")


def _prompt(row: dict[str, Any], passages: tuple[str, ...], question: str) -> str:
    exact = row.get("prompt_exact")
    given = exact if isinstance(exact, str) else row.get("prompt")
    return given if isinstance(given, str) else "\n\n".join((*passages, question))


@lru_cache(maxsize=8)
def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json` of a folder.

    Raises:
        FileNotFoundError: If the folder holds none.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"No `tokenizer.json` in {folder}; give the folder of a tokenizer with `--tokenizer`."
        )
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def family_folder(file: Path, family: str) -> Path:
    """Return where the tokenizer of `family` lies beside the folder of the traces."""
    return file.resolve().parents[2] / "tokenizers" / family


def tokenise(trace: Trace, tokenizer: Tokenizer) -> TraceTokens:
    """Tokenise a trace; the answer as it stands behind its prompt."""
    together = tokenizer.encode(trace.prompt + trace.answer)
    border = len(trace.prompt)
    split = next(
        (place for place, (_, end) in enumerate(together.offsets) if end > border),
        len(together.ids),
    )
    special = (
        number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
    )
    return TraceTokens(
        trace=trace,
        prompt=tuple(together.ids[:split]),
        references=tuple(
            tuple(tokenizer.encode(passage, add_special_tokens=False).ids)
            for passage in trace.passages
        ),
        answer=tuple(together.ids[split:]),
        special_tokens=frozenset(special),
    )
