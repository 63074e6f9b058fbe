"""Keep earlier answers as further references; off unless a caller makes a store."""

import hashlib
import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1

_OUR_NAMES = re.compile(r"[0-9a-f]{64}\.(json|partial)")
"""Names of files that a store writes; it touches no others."""

_TEXTS = ("tokenizer", "namespace", "key", "question")
"""Fields of an entry that are texts."""

_MAX_TOKEN = 2**31 - 1


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An earlier answer as token ids.

    Attributes:
        question: Digest of the token ids of its prompt, as `digest` computes it.
        tokens: Token ids of the answer.
    """

    question: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the store offers to one request.

    Attributes:
        repeats: Answers to the very same prompt, newest first.
        earlier: Answers to other prompts, newest first.
    """

    repeats: tuple[tuple[int, ...], ...] = ()
    earlier: tuple[tuple[int, ...], ...] = ()


def fingerprint(tokenizer: Any) -> str:
    """Return a digest of a tokenizer's vocabulary: where it is equal, ids mean the same text.

    Raises:
        TypeError: If it is no tokenizer.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(f"`tokenizer` must be a tokenizer of transformers, got {tokenizer!r}.")
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def digest(token_ids: Sequence[int]) -> str:
    """Return a digest of token ids."""
    return hashlib.sha256(json.dumps(list(token_ids)).encode()).hexdigest()


class AnswerStore:
    """Earlier answers, split by namespace, in memory or in a directory.

    No answer is ever recalled under another namespace or for another tokenizer than it was stored
    with. On disk every answer is one JSON file, written aside and renamed, with a checksum: one
    that a crash or someone else damaged is removed. Other files in the directory, those of another
    format and those that cannot be read now are left as they are. Files hold token ids in the
    clear; protect the directory as you protect the answers. Threads and decoders may share a
    store; one process writes to a directory at a time.

    Attributes:
        dropped: Damaged files that were found when the store was opened.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        directory: str | os.PathLike[str] | None = None,
        max_tokens: int = 1_000_000,
        max_recalled: int = 10,
    ) -> None:
        """Open a store.

        Args:
            tokenizer: The model's tokenizer; answers of another vocabulary are not recalled.
            directory: Where to keep the answers; None keeps them in memory only.
            max_tokens: Tokens of all answers together; the least recently used are dropped.
            max_recalled: Most answers that one request is offered.

        Raises:
            OSError: If the directory cannot be made or read.
            TypeError: If `tokenizer` is no tokenizer.
            ValueError: If a number is below 1.
        """
        for name, value in (("max_tokens", max_tokens), ("max_recalled", max_recalled)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self._fingerprint = fingerprint(tokenizer)
        self._lock = threading.RLock()
        self._directory = None if directory is None else Path(directory)
        self._max_tokens = max_tokens
        self._max_recalled = max_recalled
        self._answers: OrderedDict[tuple[str, str], StoredAnswer] = OrderedDict()
        self._size = 0
        self.dropped = 0
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._read(self._directory)

    def check(self, tokenizer: Any) -> None:
        """Refuse a tokenizer whose vocabulary is not the store's.

        Raises:
            ValueError: If it is not.
        """
        if fingerprint(tokenizer) != self._fingerprint:
            raise ValueError(
                "`answers` was made for another tokenizer; make it with `AnswerStore(tokenizer)`."
            )

    def add(self, namespace: str, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Store an answer under a namespace; an equal one is only refreshed.

        Raises:
            ValueError: If the namespace is empty.
        """
        _check(namespace)
        if not answer or len(answer) > self._max_tokens:
            return
        stored = StoredAnswer(digest(prompt), tuple(answer))
        key = (namespace, digest([len(prompt), *prompt, *answer]))
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                self._touch(key)
                return
            self._put(key, stored)
            self._shrink()
            if self._directory is not None:
                self._write(self._directory, key, stored)

    def recall(self, namespace: str, prompt: Sequence[int]) -> Recalled:
        """Return what was answered before under this namespace, the same prompt's answers apart.

        Raises:
            ValueError: If the namespace is empty.
        """
        _check(namespace)
        question = digest(prompt)
        with self._lock:
            taken = self._taken(namespace, question)
            for key, stored in reversed(taken):
                if stored.question == question:
                    self._answers.move_to_end(key)
                    self._touch(key)
        return Recalled(
            repeats=tuple(one.tokens for _, one in taken if one.question == question),
            earlier=tuple(one.tokens for _, one in taken if one.question != question),
        )

    def forget(self, namespace: str) -> None:
        """Drop every answer of a namespace, on disk too."""
        with self._lock:
            for key in [key for key in self._answers if key[0] == namespace]:
                self._drop(key)

    def _taken(self, namespace: str, question: str) -> list[tuple[tuple[str, str], StoredAnswer]]:
        """Return what a request is offered: the same question's answers first, newest first."""
        mine = [entry for entry in reversed(self._answers.items()) if entry[0][0] == namespace]
        mine.sort(key=lambda entry: entry[1].question != question)
        return mine[: self._max_recalled]

    def __len__(self) -> int:
        return len(self._answers)

    def _put(self, key: tuple[str, str], stored: StoredAnswer) -> None:
        self._answers[key] = stored
        self._size += len(stored.tokens)

    def _put_once(self, entry: dict[str, Any]) -> None:
        key = (entry["namespace"], entry["key"])
        if key not in self._answers:
            self._put(key, StoredAnswer(entry["question"], tuple(entry["tokens"])))

    def _shrink(self) -> None:
        while self._size > self._max_tokens:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: tuple[str, str]) -> None:
        self._size -= len(self._answers.pop(key).tokens)
        if self._directory is not None:
            self._file(self._directory, key).unlink(missing_ok=True)

    def _file(self, directory: Path, key: tuple[str, str]) -> Path:
        name = hashlib.sha256("\0".join((self._fingerprint, *key)).encode()).hexdigest()
        return directory / f"{name}.json"

    def _touch(self, key: tuple[str, str]) -> None:
        if self._directory is not None:
            now = time.time_ns()
            with suppress(OSError):  # a directory that is only read is recalled from all the same
                os.utime(self._file(self._directory, key), ns=(now, now))

    def _write(self, directory: Path, key: tuple[str, str], stored: StoredAnswer) -> None:
        entry: dict[str, Any] = {
            "format": FORMAT,
            "tokenizer": self._fingerprint,
            "namespace": key[0],
            "key": key[1],
            "question": stored.question,
            "tokens": list(stored.tokens),
        }
        file = self._file(directory, key)
        aside = file.with_suffix(".partial")
        aside.write_text(json.dumps(entry | {"checksum": _checksum(entry)}), encoding="utf-8")
        os.replace(aside, file)

    def _read(self, directory: Path) -> None:
        for file in _own_files(directory):
            if file.suffix == ".partial":
                _remove(file)
                continue
            try:
                entry = _parse(file.read_bytes())
            except OSError:
                continue
            except (ValueError, RecursionError):
                self.dropped += 1
                _remove(file)
                continue
            if entry is not None and entry["tokenizer"] == self._fingerprint:
                self._put_once(entry)
        self._shrink()


def _check(namespace: str) -> None:
    if not isinstance(namespace, str) or not namespace:
        raise ValueError(
            f"`namespace` must be a text that is not empty, got {namespace!r}; answers of "
            "different users belong under different namespaces."
        )


def _checksum(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _own_files(directory: Path) -> list[Path]:
    """Return the files that a store wrote, those used longest ago first."""
    found: list[tuple[int, Path]] = []
    for file in directory.iterdir():
        with suppress(OSError):  # gone meanwhile
            if _OUR_NAMES.fullmatch(file.name):
                found.append((file.stat().st_mtime_ns, file))
    return [file for _, file in sorted(found)]


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return the entry of a file; None where it is of another format.

    Raises:
        ValueError: If it is not what `_write` completed.
    """
    entry = json.loads(content)
    if not isinstance(entry, dict) or entry.get("format") != FORMAT:
        return None
    checksum = entry.pop("checksum", None)
    if checksum != _checksum(entry) or not _is_complete(entry):
        raise ValueError("damaged")
    return entry


def _is_complete(entry: dict[str, Any]) -> bool:
    """Whether an entry has all its fields, each of its kind."""
    tokens = entry.get("tokens")
    return (
        all(isinstance(entry.get(name), str) for name in _TEXTS)
        and isinstance(tokens, list)
        and all(type(token) is int and 0 <= token <= _MAX_TOKEN for token in tokens)
    )
