"""Turn the keyword arguments of a call into options of the decoder."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llma_rag import GenerationOptions

_logger = logging.getLogger(__name__)

_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "use_cache": True,
}
"""Arguments of `generate()` that mean nothing here at this value; at another they are refused."""


def decoding_options(
    standing: Mapping[str, Any], call: Mapping[str, Any], max_new_tokens: int
) -> dict[str, Any]:
    """Join what the constructor and the call set; the model's `generation_config` sets the rest.

    The call wins. Its temperature asks for sampling, as everywhere in LlamaIndex.

    >>> decoding_options({"max_tokens": 100, "temperature": 0}, {"max_new_tokens": 5}, 256)
    {'max_new_tokens': 5, 'do_sample': False}
    """
    nearer = _layer(call)
    if "temperature" in nearer:
        nearer.setdefault("do_sample", True)
    options = {"max_new_tokens": max_new_tokens, **_layer(standing), **nearer}
    if options.get("temperature") == 0:
        del options["temperature"]
    options.pop("pad_token_id", None)  # one prompt at a time needs no padding
    return {
        name: value
        for name, value in options.items()
        if not (name in _NEUTRAL and value == _NEUTRAL[name])
    }


def _layer(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one layer sets: None sets nothing, and a temperature of 0 means no sampling.

    `max_tokens` is another name of `max_new_tokens`.
    """
    layer = {name: value for name, value in given.items() if value is not None}
    if "max_tokens" in layer:
        layer["max_new_tokens"] = layer.pop("max_tokens")
    if layer.get("temperature") == 0:
        layer.setdefault("do_sample", False)
    return layer


def end_tokens(generation_config: Any, stopping_ids: Sequence[int]) -> list[int]:
    """Return the model's end tokens and the caller's."""
    ends = getattr(generation_config, "eos_token_id", None)
    own = [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]
    return list(dict.fromkeys([*own, *stopping_ids]))


def checked(standing: Mapping[str, Any], generation_config: Any) -> dict[str, Any]:
    """Return the options of every call, or refuse unknown ones before the first.

    Says that a temperature without sampling does nothing, as in `transformers`.
    """
    known = {*GenerationOptions.__annotations__, *_NEUTRAL, "max_tokens", "pad_token_id"}
    unknown = sorted(set(standing) - known)
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        raise TypeError(
            f"`generate_kwargs` holds unknown options: {names}; known are "
            f"{', '.join(sorted(known))}."
        )
    sampling = standing.get("do_sample", getattr(generation_config, "do_sample", None))
    if standing.get("temperature") and not sampling:
        _logger.warning(
            "`generate_kwargs` sets `temperature`, but nothing sets `do_sample`: as in "
            "transformers the likeliest tokens are chosen. Add `do_sample=True` to sample."
        )
    return dict(standing)
