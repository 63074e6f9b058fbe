"""Resolve what a request may set, as transformers does: model, then decoder, then call."""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import GenerationConfig

from llma_rag.result import GenerationOptions

DEFAULT_MAX_NEW_TOKENS = 256
"""Tokens of an answer where neither the model, the decoder nor the call says how many."""

DEFAULT_TOP_K = 50
"""Tokens that sampling chooses from where nobody says how many; as in transformers."""

OURS = (
    "stop", "max_new_tokens", "seed", "presence_penalty", "frequency_penalty",
    "logits_processor", "stopping_criteria", "json_schema", "regex", "grammar",
)  # fmt: skip
"""Options that transformers' configuration does not hold, or not with the same range."""


class Structure(NamedTuple):
    """A form that the answer must have.

    Attributes:
        kind: The option that asks for it: `"json_schema"`, `"regex"` or `"grammar"`.
        source: The schema, expression or grammar.
    """

    kind: str
    source: str | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one request, resolved.

    Attributes:
        config: The resolved generation configuration, for all that has no field here.
        max_new_tokens: Most tokens to generate.
        stop: Strings that end the answer and are not part of it.
        end_tokens: Token ids that end the answer.
        sample: Whether tokens are drawn; False takes the likeliest.
        seed: What fixes the draws; None draws a fresh one.
        presence_penalty: Taken from the score of each token that the answer holds.
        frequency_penalty: Taken from it for each time that the answer holds it.
        processors: The caller's logits processors.
        criteria: The caller's stopping criteria.
        structure: The form that the answer must have.
    """

    config: GenerationConfig
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = ()
    sample: bool = False
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    processors: tuple[Any, ...] = ()
    criteria: tuple[Any, ...] = ()
    structure: Structure | None = None


def resolve(
    model_config: GenerationConfig,
    defaults: GenerationOptions,
    call: GenerationOptions,
    prompt_length: int,
) -> Settings:
    """Merge three layers of options; the call wins over the defaults, they over the model.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of range or not supported.
    """
    merged = check_names(defaults) | check_names(call)
    ours = {name: merged.pop(name) for name in OURS if name in merged}
    _refuse_unsupported(model_config)
    config = _merged(model_config, merged)
    stop = ours.get("stop")
    return Settings(
        config=config,
        max_new_tokens=_max_new_tokens(ours.get("max_new_tokens"), config, prompt_length),
        stop=_stop_strings(stop if stop is not None else config.stop_strings),
        end_tokens=tuple(_as_list(config.eos_token_id)),
        sample=bool(config.do_sample),
        seed=_seed(ours.get("seed")),
        presence_penalty=float(ours.get("presence_penalty", 0.0)),
        frequency_penalty=float(ours.get("frequency_penalty", 0.0)),
        processors=tuple(ours.get("logits_processor", ())),
        criteria=tuple(ours.get("stopping_criteria", ())),
        structure=_structure(ours),
    )


def check_names(options: Mapping[str, Any] | GenerationOptions) -> dict[str, Any]:
    """Return the options that are set.

    Raises:
        TypeError: If a name is no generation option.
    """
    known = GenerationOptions.__annotations__
    unknown = sorted(set(options) - set(known))
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        raise TypeError(f"Unknown generation option {names}; known are {', '.join(sorted(known))}.")
    return {name: value for name, value in options.items() if value is not None}


def _merged(model_config: GenerationConfig, options: dict[str, Any]) -> GenerationConfig:
    """Return a copy of the model's configuration with `options` and transformers' defaults."""
    config = copy.deepcopy(model_config)
    temperature = options.get("temperature", config.temperature)
    if temperature is not None and temperature == 0:
        options = {name: value for name, value in options.items() if name != "temperature"}
        config.temperature = None
        options["do_sample"] = False
    config.update(**options)  # type: ignore[no-untyped-call]  # untyped in transformers
    if config.top_k is None:
        config.top_k = DEFAULT_TOP_K
    return config


_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_beams": (lambda value: value > 1, "beam search is not decoded here; set it to 1"),
    "num_beam_groups": (lambda value: value > 1, "beam search is not decoded here; set it to 1"),
    "num_return_sequences": (lambda value: value > 1, "ask once per answer, with other seeds"),
    "constraints": (bool, "beam search is not decoded here; use `grammar`"),
    "force_words_ids": (bool, "beam search is not decoded here; use `grammar`"),
    "penalty_alpha": (lambda value: value > 0, "contrastive search is not decoded here"),
    "dola_layers": (bool, "DoLa decoding is not done here"),
    "cache_implementation": (
        lambda value: value == "quantized",
        "keys and values are kept as they are computed",
    ),
    "token_healing": (bool, "a prompt is used as it is"),
    "encoder_repetition_penalty": (lambda value: value != 1, "it needs an encoder"),
    "encoder_no_repeat_ngram_size": (lambda value: value > 0, "it needs an encoder"),
    "output_scores": (bool, "the result holds tokens and text only"),
    "output_logits": (bool, "the result holds tokens and text only"),
    "output_attentions": (bool, "the result holds tokens and text only"),
    "output_hidden_states": (bool, "the result holds tokens and text only"),
}
"""What only a model's own configuration can ask for: when it does, and what to do instead."""


def _refuse_unsupported(config: GenerationConfig) -> None:
    for name, (asks, remedy) in _UNSUPPORTED.items():
        value = getattr(config, name, None)
        if value is not None and asks(value):
            raise ValueError(
                f"The model's `generation_config` sets `{name}`={value!r}, which is not supported: "
                f"{remedy}. Set `model.generation_config.{name} = None`, or use `model.generate`."
            )


def _max_new_tokens(count: int | None, config: GenerationConfig, prompt_length: int) -> int:
    if count is None:
        count = config.max_new_tokens
    if count is None and config.max_length is not None:
        count = config.max_length - prompt_length
        if count <= 0:
            raise ValueError(
                f"The model's `generation_config` sets `max_length`={config.max_length} for prompt "
                f"and answer, and the prompt has {prompt_length} tokens; pass `max_new_tokens`."
            )
    if count is None:
        count = DEFAULT_MAX_NEW_TOKENS
    try:
        number = operator.index(count)
    except TypeError as error:
        raise TypeError(f"`max_new_tokens` must be an integer, got {count!r}.") from error
    if number < 0:
        raise ValueError(f"`max_new_tokens` must be at least 0, got {number}.")
    return number


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    strings = stop or ()
    if isinstance(strings, str):
        return (strings,)
    if not isinstance(strings, Iterable):
        raise TypeError(f"`stop` must be a string or a list of strings, got {stop!r}.")
    strings = tuple(strings)
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"`stop` must hold non-empty strings, got {strings!r}.")
    return strings


def _seed(seed: object) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise ValueError(f"`seed` must be an integer, got {seed!r}.")
    return int(seed.__index__())


def _structure(options: Mapping[str, Any]) -> Structure | None:
    asked = [name for name in ("json_schema", "regex", "grammar") if name in options]
    if len(asked) > 1:
        raise ValueError(f"`{asked[0]}` and `{asked[1]}` exclude each other; pass one of them.")
    return Structure(asked[0], _source(asked[0], options[asked[0]])) if asked else None


def _source(kind: str, source: object) -> str | Mapping[str, Any]:
    if isinstance(source, str) or (kind == "json_schema" and isinstance(source, Mapping)):
        return source
    if kind != "json_schema":
        raise TypeError(f"`{kind}` must be a string, got {source!r}.")
    raise TypeError(
        f"`json_schema` must be a mapping or its JSON text, got {source!r}; of a Pydantic class "
        "pass what `model_json_schema()` returns."
    )


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    try:
        return [operator.index(ids)]  # type: ignore[arg-type]  # numbers of other libraries too
    except TypeError:
        pass
    if isinstance(ids, Iterable) and not isinstance(ids, str | bytes):
        with suppress(TypeError):
            return [operator.index(one) for one in ids]
    raise TypeError(
        f"`eos_token_id` must be a token id or a list of them, got {ids!r}; "
        "pass a text that ends the answer as `stop`."
    )
