"""Hold an answer to a schema, an expression or a grammar, and draft what it leaves no choice in."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llma_rag.drafting import Draft
from llma_rag.engine.options import Structure
from llma_rag.verification import ROOT

FIXED_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written: as `json.dumps` does. A schema's own `x-guidance` entry overrides it."""

MAX_TABLES = 4
"""Tables of a tokenizer that are kept, one for each choice of end tokens; some megabytes each."""


class GrammarCompiler:
    """Compiles what requests ask for; tables of a tokenizer are kept, for they take long."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._tables: dict[tuple[int, ...], Any] = {}

    def end_tokens(self, end_tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens that end a structured answer; the tokenizer's where there are none.

        Raises:
            ValueError: If the tokenizer has none either.
        """
        ends = tuple(end_tokens) or (self._tokenizer.eos_token_id,)
        if None in ends:
            raise ValueError("A structured answer needs an end token; pass `eos_token_id`.")
        return ends

    def start(
        self, structure: Structure, end_tokens: tuple[int, ...], prompt_length: int
    ) -> "Grammar":
        """Return the state of one answer before its first token.

        Raises:
            ImportError: If llguidance is not installed.
            ValueError: If the schema, expression or grammar is not valid.
        """
        library = _library(structure.kind)
        table = self._tables.pop(end_tokens, None)
        if table is None:
            table = self._table(library, structure.kind, end_tokens)
        self._tables[end_tokens] = table
        while len(self._tables) > MAX_TABLES:
            del self._tables[next(iter(self._tables))]
        matcher = library.LLMatcher(table, _source(library, structure), log_level=0)
        if matcher.is_error():
            raise ValueError(f"`{structure.kind}` is not valid: {matcher.get_error().strip()}")
        return Grammar(matcher, table, prompt_length, self._vocab_size)

    def _table(self, library: Any, kind: str, end_tokens: tuple[int, ...]) -> Any:
        if not getattr(self._tokenizer, "is_fast", False):
            raise ValueError(
                f"`{kind}` needs a fast tokenizer, got {type(self._tokenizer).__name__}; "
                "load the model's tokenizer with `use_fast=True`."
            )
        written = _as_written(self._tokenizer, self._vocab_size)
        if len(written) > self._vocab_size:
            raise ValueError(
                f"`{kind}` needs a model that knows all {len(written)} tokens of its tokenizer, "
                f"got one with {self._vocab_size}; call `model.resize_token_embeddings`."
            )
        return library.hf.from_tokenizer(
            written,
            n_vocab=self._vocab_size,
            eos_token=list(end_tokens),
        )


def _as_written(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer for llguidance, which tokenises pieces of a text with it.

    It strips nothing, and has no added tokens that the model does not know.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer, added = described["normalizer"] or {}, described["added_tokens"]
    parts = normalizer.get("normalizers", [normalizer])
    kept = [part for part in parts if part.get("type") != "Strip"]
    known = [one for one in added if one["id"] < vocab_size]
    if len(kept) == len(parts) and len(known) == len(added):
        return tokenizer
    if len(kept) < len(parts):
        described["normalizer"] = {"type": "Sequence", "normalizers": kept}
    described["added_tokens"] = known
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    return cast(
        PreTrainedTokenizerFast, fast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))
    )


class Grammar:
    """Where one answer stands in its grammar; a logits processor and a source of drafts."""

    def __init__(self, matcher: Any, table: Any, prompt_length: int, vocab_size: int) -> None:
        self._matcher = matcher
        self._table = table
        self._seen = prompt_length
        self._vocab_size = vocab_size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [1, vocabulary] in which forbidden tokens have minus infinity."""
        self._follow(input_ids[0, self._seen :].tolist())
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
        forbidden = torch.ones(scores.shape[-1], dtype=torch.bool)
        forbidden[: self._vocab_size] = torch.from_numpy(allowed == 0)
        return scores.masked_fill(forbidden.to(scores.device), -torch.inf)

    def draft(self, context: Sequence[int], copied: Callable[[], Draft], budget: int) -> Draft:
        """Return the forced continuation; where there is none, a copy as far as it is allowed.

        Args:
            context: Token ids of the prompt and of the answer so far.
            copied: Gives a draft of what may be copied here.
            budget: Most tokens of the draft.
        """
        self._follow(context[self._seen :])
        forced = self._forced(budget)
        if forced:
            return Draft.chain(forced)
        draft = self._allowed(copied())
        if not draft.is_chain or not self._matcher.consume_tokens(list(draft.tokens)):
            return draft
        forced = self._forced(budget - len(draft))
        self._matcher.rollback(len(draft))
        return Draft.chain((*draft.tokens, *forced), (*draft.places, *[None] * len(forced)))

    def is_complete(self, context: Sequence[int]) -> bool:
        """Whether the answer, which holds no end token yet, may end behind `context`."""
        self._follow(context[self._seen :])
        return bool(self._matcher.is_accepting())

    def _follow(self, tokens: Sequence[int]) -> None:
        self._seen += len(tokens)
        if tokens and not self._matcher.consume_tokens(list(tokens)):
            raise ValueError(f"The grammar cannot go on: {self._matcher.get_error().strip()}")

    def _forced(self, budget: int) -> list[int]:
        """Return tokens of the text that must follow; one way to write it, not the only one."""
        text = self._matcher.compute_ff_bytes()
        if not text or budget < 1:
            return []
        tokens = self._table.tokenize_bytes(text)
        return list(tokens[: min(budget, self._matcher.validate_tokens(tokens))])

    def _allowed(self, draft: Draft) -> Draft:
        """Return the nodes of a draft whose whole path the grammar allows."""
        paths: dict[int, list[int]] = {ROOT: []}
        for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
            path = [*paths.get(parent, ()), token]
            known = parent in paths
            if known and self._matcher.validate_tokens(path) == len(path):
                paths[node] = path
        kept = [node for node in paths if node != ROOT]
        number = {ROOT: ROOT, **{node: place for place, node in enumerate(kept)}}
        return Draft(
            tokens=tuple(draft.tokens[node] for node in kept),
            parents=tuple(number[draft.parents[node]] for node in kept),
            places=tuple(draft.places[node] for node in kept),
        )


def _from_schema(library: Any, structure: Structure) -> str:
    schema = structure.source
    text = json.dumps(dict(schema)) if isinstance(schema, Mapping) else schema
    return str(library.LLMatcher.grammar_from_json_schema(text, defaults=FIXED_FORM))


_SOURCES: dict[str, Callable[[Any, Structure], str]] = {
    "json_schema": _from_schema,
    "regex": lambda library, structure: str(library.grammar_from("regex", structure.source)),
    "grammar": lambda library, structure: str(library.grammar_from("grammar", structure.source)),
}


def _source(library: Any, structure: Structure) -> str:
    try:
        return _SOURCES[structure.kind](library, structure)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{structure.kind}` is not valid: {error}") from error


def _library(kind: str) -> Any:
    try:
        import llguidance
        import llguidance.hf
    except ImportError as error:
        raise ImportError(
            f"`{kind}` needs llguidance; install it with `pip install 'llma-rag[structured]'`."
        ) from error
    return llguidance
