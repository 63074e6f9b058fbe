"""Say what a caller asks of the decoder and what comes back; plain data, no tensors."""

from collections.abc import Mapping, MutableSequence, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast

from llma_rag.reference import References, listed

Prompt = str | Sequence[int]
"""Text, tokenised with the special tokens of the tokenizer, or token ids used as they are."""

FinishReason = Literal["stop", "length"]


class GenerationOptions(TypedDict, total=False):
    """What a call may set; names and meaning are those of transformers' `GenerationConfig`.

    Unset options come from the decoder's constructor, then from the model's `generation_config`.

    Attributes:
        stop: Texts that end the answer and are not part of it. They are looked for in what the
            tokens spell, special tokens included, and not in an answer that has a form.
        stopping_criteria: As in transformers; one that ends an answer before its form is complete
            makes it end with the reason `"length"`.
        json_schema: Form of the answer: a schema or its JSON text.
        regex: Form of the answer: an expression that it matches from its beginning to its end.
        grammar: Form of the answer: a grammar of Lark or GBNF.
    """

    max_new_tokens: int
    min_new_tokens: int
    max_time: float
    stop: str | Sequence[str]
    eos_token_id: int | Sequence[int]
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    epsilon_cutoff: float
    eta_cutoff: float
    renormalize_logits: bool
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: Sequence[Sequence[int]]
    sequence_bias: Any
    suppress_tokens: Sequence[int]
    begin_suppress_tokens: Sequence[int]
    forced_bos_token_id: int
    forced_eos_token_id: int | Sequence[int]
    exponential_decay_length_penalty: tuple[int, float]
    guidance_scale: float
    watermarking_config: Any
    logits_processor: Sequence[Any]
    stopping_criteria: Sequence[Any]
    json_schema: str | Mapping[str, Any]
    regex: str
    grammar: str


class RequestOptions(GenerationOptions, total=False):
    """What a call to a `Decoder` takes beside the prompt.

    Attributes:
        references: Texts that may be copied; they never change a token of the answer in float32 or
            where `Decoder.exactness` is "bitwise", and only near ties of two tokens elsewhere.
            Unusable entries are skipped and counted in the stats.
        history: Earlier turns of the conversation, needed only where the prompt does not hold them
            as they were (a chat template that drops or shortens them): they may be copied, and are
            never cited. Turns in the prompt are found there and need no second copy.
        draft: False decodes plainly, one token per forward pass, and leaves nothing to draft from;
            nothing is cited then.
        namespace: Whose request this is; nothing that outlives it crosses namespaces.
    """

    references: References
    history: Sequence[str]
    draft: bool
    namespace: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One answer to decode; attributes that are not listed mean what they mean in `RequestOptions`.

    Attributes:
        prompt: Text or token ids.
        options: What the call sets; see `GenerationOptions`.
    """

    prompt: Prompt
    references: References = ()
    history: Sequence[str] = ()
    options: GenerationOptions = field(default_factory=lambda: GenerationOptions())
    draft: bool = True
    namespace: str | None = None

    @classmethod
    def of(cls, prompt: Prompt, options: RequestOptions) -> "GenerationRequest":
        """Return the request of a call, which shares nothing that its caller may change.

        Values of options are checked where it is decoded.

        Raises:
            TypeError: If one text or object stands where a list of them belongs.
        """
        given = copied_options(options)
        own = {name: given.pop(name) for name in _OWN if name in given}
        own = {name: value for name, value in own.items() if value is not None}
        return cls(prompt=_copied(prompt), options=cast("GenerationOptions", given), **own)


_OWN = RequestOptions.__annotations__.keys() - GenerationOptions.__annotations__.keys()

_LISTS = {
    "references": "texts",
    "history": "texts",
    "logits_processor": "processors",
    "stopping_criteria": "criteria",
}
"""Options that are lists of objects, and what these are called."""


def copied_options(options: Mapping[str, Any] | RequestOptions) -> dict[str, Any]:
    """Return options whose lists, mappings and arrays are copies.

    Raises:
        TypeError: If one text or object stands where a list of them belongs.
    """
    return {
        name: listed(name, value, _LISTS[name])
        if name in _LISTS and value is not None
        else _copied(value)
        for name, value in options.items()
    }


def _copied(value: Any) -> Any:
    """Return a copy of a list, mapping or array and of what it holds; all else as it is."""
    if value is None or isinstance(value, int | str | float):  # quickly, as tokens of a prompt
        return value
    if hasattr(value, "tolist"):  # arrays and tensors
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    if isinstance(value, MutableSequence | Set) and not isinstance(value, bytearray):
        return list(map(_copied, value))
    return value


@dataclass(frozen=True, slots=True)
class CopiedSpan:
    """Characters of the answer that equal characters of a reference.

    Attributes:
        start: First character of the span in the answer.
        end: One past its last character in the answer.
        reference_id: The reference's id; None where the reference has none.
        reference_index: The reference's place in the list that the caller gave.
        reference_start: First character in the reference's text.
        reference_end: One past the last character in the reference's text.
        in_prompt: Whether that reference stands verbatim in the prompt.
        also_in: Indices of further references that hold the same characters.
    """

    start: int
    end: int
    reference_id: str | None
    reference_index: int
    reference_start: int
    reference_end: int
    in_prompt: bool = False
    also_in: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingStats:
    """What one answer cost; counts are stored, rates are derived.

    Times are seconds since the request was made, waiting included. A reference is *skipped* when it
    holds no usable text and *truncated* when only its first tokens were indexed.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    forward_passes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    references_used: int = 0
    references_skipped: int = 0
    references_truncated: int = 0
    reference_tokens: int = 0
    time_to_first_token: float = 0.0
    total_time: float = 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens per forward pass; the prefill counts as one pass."""
        return self.generated_tokens / self.forward_passes if self.forward_passes else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted drafted tokens over drafted tokens."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verification pass, the model's own token included."""
        steps = self.forward_passes - 1
        return (self.generated_tokens - 1) / steps if steps > 0 else 0.0

    @property
    def time_per_output_token(self) -> float:
        """Seconds per token after the first."""
        if self.generated_tokens < 2:
            return 0.0
        return (self.total_time - self.time_to_first_token) / (self.generated_tokens - 1)


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """What one accepted run adds to a streamed answer.

    Attributes:
        text: Characters to append; the join of all chunks is the answer. Text that may be the
            beginning of a stop string or of a character is held back until that is decided.
        token_ids: Tokens committed since the last chunk.
        copied_spans: Spans that end in this chunk, in the coordinates of the whole answer; they may
            still grow: the final ones stand in the result.
    """

    text: str
    token_ids: tuple[int, ...]
    copied_spans: tuple[CopiedSpan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """A finished answer.

    Attributes:
        text: The answer, without special tokens, cut before a stop string.
        token_ids: All generated tokens, the end token or the tokens of a stop string included, as
            `transformers` returns them.
        finish_reason: `"stop"` (end token, stop string or criterion) or `"length"`.
        copied_spans: Maximal runs of the answer that were copied from references, in order; none
            where nothing is drafted.
        stats: Counts and times.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    copied_spans: tuple[CopiedSpan, ...]
    stats: DecodingStats


class ContextOverflowError(ValueError):
    """The prompt leaves no room for an answer in the model's context."""


class NonFiniteLogitsError(ArithmeticError):
    """The model computed NaN or infinite logits; no token can be chosen from them."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"The model returned non-finite logits at position {position}; "
            "try another `dtype` (for example `float32`) or attention implementation."
        )
        self.position = position
