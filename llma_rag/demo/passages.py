"""Read text files and split them into passages; knows no framework and no model."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_CHARACTERS = 400
SUFFIXES = frozenset({".md", ".markdown", ".text", ".txt"})

_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, short enough to stand in a prompt beside others.

    Attributes:
        text: Characters `start` to `start + len(text)` of the document.
        source: Name of the document.
        heading: The heading above the passage, empty where there is none.
        start: First character of the passage in the document.
    """

    text: str
    source: str
    heading: str = ""
    start: int = 0


def searched_text(passage: Passage) -> str:
    """Return what a passage is found by: its heading and its text."""
    return f"{passage.heading}\n{passage.text}"


def read_folder(folder: str | os.PathLike[str]) -> list[Passage]:
    """Return the passages of all text and Markdown files of a folder and its subfolders.

    Raises:
        FileNotFoundError: If the folder does not exist.
        NotADirectoryError: If it is no folder.
        PermissionError: If a folder or a file may not be read.
        ValueError: If there is no document with text, or a document is not UTF-8 text.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(
            f"`docs` must be an existing folder, got {str(root)!r}; check the path."
        )
    if not root.is_dir():
        raise NotADirectoryError(
            f"`docs` must be a folder, got the file {str(root)!r}; name the folder that holds it."
        )
    files = sorted(_files(root))
    if not files:
        raise ValueError(
            f"`docs` must hold text or Markdown files ({', '.join(sorted(SUFFIXES))}), got none in "
            f"{str(root)!r}; add documents or name another folder."
        )
    passages = [
        passage
        for file in files
        for passage in split_text(_read(file), source=file.relative_to(root).as_posix())
    ]
    if not passages:
        raise ValueError(
            f"`docs` must hold documents with text, got only empty ones in {str(root)!r}; add text."
        )
    return passages


def split_text(text: str, source: str, max_characters: int = MAX_CHARACTERS) -> list[Passage]:
    r"""Split a document at headings and paragraphs, long paragraphs at the ends of sentences.

    Neighbouring paragraphs under one heading share a passage while both fit.

    >>> [passage.text for passage in split_text("# A\n\nOne. Two.\n\nThree.", "a.md", 10)]
    ['One. Two.', 'Three.']

    Raises:
        ValueError: If `max_characters` is less than 1.
    """
    if max_characters < 1:
        raise ValueError(f"`max_characters` must be at least 1, got {max_characters}.")
    found: list[tuple[str, int, int]] = []
    for heading, start, end in _paragraphs(text):
        for begin, stop in _cut(text, start, end, max_characters):
            if found and found[-1][0] == heading and stop - found[-1][1] <= max_characters:
                found[-1] = (heading, found[-1][1], stop)
            else:
                found.append((heading, begin, stop))
    return [Passage(text[start:end], source, heading, start) for heading, start, end in found]


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root, onerror=_refuse):
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)


def _refuse(error: OSError) -> None:
    raise PermissionError(
        f"`docs` must be readable, got {str(error.filename)!r} without permission; "
        "change its permissions or name another folder."
    ) from error


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except PermissionError as error:
        _refuse(error)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(
            f"`docs` must hold text in UTF-8, but {str(file)!r} is not text; "
            "convert the file or move it out of the folder."
        )
    return text


def _paragraphs(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the heading, first character and end of each run of lines that are not blank."""
    heading, start, end, at = "", -1, -1, 0
    for line in text.splitlines(keepends=True):
        match = _HEADING.match(line)
        if match or not line.strip():
            if start >= 0:
                yield heading, start, end
            start = -1
            heading = match[1] if match else heading
        else:
            start = at + len(line) - len(line.lstrip()) if start < 0 else start
            end = at + len(line.rstrip())
        at += len(line)
    if start >= 0:
        yield heading, start, end


def _cut(text: str, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield pieces of at most `size` characters, cut after sentences, else words, else anywhere."""
    while end - start > size:
        cut = _cut_point(text, start, size)
        yield start, cut
        start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
    yield start, end


def _cut_point(text: str, start: int, size: int) -> int:
    window = text[start : start + size + 1]
    ends = [match.start() for match in _SENTENCE_END.finditer(window)]
    if not ends:
        ends = [match.start() for match in re.finditer(r"\s+", window)]
    return start + (ends[-1] if ends else size)
