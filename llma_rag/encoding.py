"""Turn prompts and references into token ids; knows the tokenizer only."""

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llma_rag.reference import AcceptedReferences
from llma_rag.result import Prompt

MAX_CHARACTERS_PER_TOKEN = 8
"""A reference is cut to this many characters per token that may be indexed, before tokenising."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of a character, which broken documents hold and no tokenizer takes."""


@dataclass(frozen=True, slots=True)
class EncodedReferences:
    """Token ids of references, without special tokens.

    Attributes:
        token_ids: Ids of each reference, 4 bytes each.
        offsets: For each token of each reference, its first character; likewise.
        cut: Indices of references of which only the beginning was tokenised.
    """

    token_ids: tuple[Sequence[int], ...]
    offsets: tuple[Sequence[int], ...]
    cut: frozenset[int]


def encode_prompt(tokenizer: Any, prompt: Prompt, vocab_size: int) -> list[int]:
    """Return the ids of a prompt; text gets the tokenizer's special tokens, ids stay as they are.

    Raises:
        TypeError: If the prompt is neither text nor a sequence of integers.
        ValueError: If it is empty, or an id is not in the vocabulary.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(_encodable(prompt), verbose=False)["input_ids"])
    elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray | Mapping):
        ids = [_token_id(one) for one in prompt]
    else:
        raise TypeError(
            f"`prompt` must be text or a flat sequence of token ids, got a "
            f"`{type(prompt).__name__}`; decode bytes, and pass the `input_ids` of an encoding."
        )
    if not ids:
        raise ValueError("`prompt` must hold at least one token, got none; pass some text.")
    wrong = next((one for one in ids if not 0 <= one < vocab_size), None)
    if wrong is not None:
        raise ValueError(
            f"`prompt` must hold ids from 0 to {vocab_size - 1}, got {wrong}; encode it with the "
            "model's own tokenizer."
        )
    return ids


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the ids of tokens that stand for no text; some have no role that would name them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    unnamed = (token for token, one in added.items() if one.special)
    return frozenset(map(int, (*tokenizer.all_special_ids, *unnamed)))


def spelled(tokenizer: Any, special: Iterable[int]) -> dict[int, str]:
    """Return how special tokens are spelled, of those that decoding leaves out."""
    return {
        token: str(tokenizer.convert_ids_to_tokens(token))
        for token in special
        if not tokenizer.decode([token], skip_special_tokens=True)
    }


def encode_references(
    tokenizer: Any, accepted: AcceptedReferences, max_tokens: int
) -> EncodedReferences:
    """Tokenise each reference on its own; very long ones are cut before it."""
    room = max_tokens * MAX_CHARACTERS_PER_TOKEN
    texts, cut = [], []
    for number, reference in enumerate(accepted.references):
        texts.append(reference.text[:room])
        if len(reference.text) > room:
            cut.append(number)
        room -= len(texts[-1])
    pairs = [_encode(tokenizer, text) for text in texts]
    return EncodedReferences(
        token_ids=tuple(ids for ids, _ in pairs),
        offsets=tuple(offsets for _, offsets in pairs),
        cut=frozenset(cut),
    )


def _encode(tokenizer: Any, text: str) -> tuple[Sequence[int], Sequence[int]]:
    if not text:
        return (), ()
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(
        _encodable(text), add_special_tokens=False, return_offsets_mapping=fast, verbose=False
    )
    ids = array("i", encoded["input_ids"])
    if fast:
        return ids, array("i", (start for start, _ in encoded["offset_mapping"]))
    return ids, array("i", (len(text) * place // len(ids) for place in range(len(ids))))


def _encodable(text: str) -> str:
    """Return the text with each lone surrogate replaced, so that characters keep their places."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _token_id(one: Any) -> int:
    try:
        if isinstance(one, bool):
            raise TypeError
        return int(one.__index__())
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"`prompt` must be text or a flat sequence of token ids, got an entry {one!r}."
        ) from error
