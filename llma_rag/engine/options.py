"""Resolve what a request may set, as transformers does: model, then decoder, then call."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from llma_rag.result import GenerationOptions

DEFAULT_MAX_NEW_TOKENS = 256
"""Tokens of an answer where neither the model, the decoder nor the call says how many."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of one request, resolved.

    Attributes:
        max_new_tokens: Most tokens to generate.
        stop: Strings that end the answer and are not part of it.
        end_tokens: Token ids that end the answer.
        config: The full generation configuration, for what is read from it elsewhere.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    end_tokens: frozenset[int]
    config: GenerationConfig


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
    merged = {**check_names(defaults), **check_names(call)}
    stop = merged.pop("stop", None)
    config = copy.deepcopy(model_config)
    config.update(**merged)  # type: ignore[no-untyped-call]  # untyped in transformers
    if config.do_sample:
        raise ValueError(
            "`do_sample` must be False: sampling is not supported yet; pass `do_sample=False`."
        )
    return Settings(
        max_new_tokens=_max_new_tokens(config, prompt_length),
        stop=_stop_strings(stop if stop is not None else config.stop_strings),
        end_tokens=frozenset(_as_list(config.eos_token_id)),
        config=config,
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


def _max_new_tokens(config: GenerationConfig, prompt_length: int) -> int:
    count = config.max_new_tokens
    if count is None and config.max_length is not None and config.max_length > prompt_length:
        count = config.max_length - prompt_length
    if count is None:
        count = DEFAULT_MAX_NEW_TOKENS
    if count < 0:
        raise ValueError(f"`max_new_tokens` must be at least 0, got {count}.")
    return int(count)


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"`stop` must hold non-empty strings, got {strings!r}.")
    return strings


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else [int(one) for one in ids]
