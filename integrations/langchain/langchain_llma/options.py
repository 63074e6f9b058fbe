"""Translate the names of LangChain and of transformers' pipelines into ours."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import SecretStr

from llma_rag import GenerationOptions

PROVIDER = "llma"
"""Our name in messages and traces."""

_DECODER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "timeout": "max_time",
}
_ONLY_WHEN_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "seed",
)  # fmt: skip

_FIELDS = {
    "max_new_tokens": "max_tokens",
    "max_time": "timeout",
    **{name: name for name in ("seed", "stop", "temperature", "top_k", "top_p")},
}
"""The decoder's options that are fields here."""

_LOADING_FIELDS = {
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "quantization_config": "quantization_config",
    "revision": "revision",
    "token": "hf_token",
    "torch_dtype": "dtype",
    "trust_remote_code": "trust_remote_code",
}
"""Arguments of `from_pretrained` that are fields here."""
_TOKENS = ("token", "use_auth_token")
"""Arguments of `from_pretrained` that may be an access token; dumps and traces show all others."""
_SECRET = (str, SecretStr)


def generation_options(*layers: Mapping[str, Any]) -> GenerationOptions:
    """Merge layers of options, later ones first; what no layer sets stays unset.

    A layer with a temperature of 0 means greedy decoding, one with a higher temperature sampling,
    unless it says `do_sample=False` itself. Without a temperature the model's own
    `generation_config` decides. Unknown names pass through: the decoder refuses them.

    >>> generation_options({"max_tokens": 5, "temperature": 0.7}, {"temperature": 0})
    {'max_new_tokens': 5, 'do_sample': False}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= _named_for_decoder(layer)
    if not merged.get("stop", True):
        del merged["stop"]
    if merged.get("do_sample") is False:
        for name in _ONLY_WHEN_SAMPLING:
            merged.pop(name, None)
    return cast("GenerationOptions", merged)


def _named_for_decoder(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a layer sets, in the decoder's names and with `do_sample` decided."""
    named = {
        _DECODER_NAMES.get(name, name): value for name, value in layer.items() if value is not None
    }
    if named.get("temperature") == 0:
        del named["temperature"]
        named["do_sample"] = False
    elif "temperature" in named:
        named.setdefault("do_sample", True)
    return named


def from_pipeline_kwargs(pipeline_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the `pipeline_kwargs` of `HuggingFacePipeline`.

    `pad_token_id` is dropped: nothing is padded here.

    Raises:
        ValueError: For `return_full_text=True` or `skip_prompt=False`: the prompt is never repeated
            here.
    """
    options = dict(pipeline_kwargs)
    options.pop("pad_token_id", None)
    for name, only in (("return_full_text", False), ("skip_prompt", True)):
        if options.pop(name, only) != only:
            msg = (
                f"`{name}` must be {only} or unset, got {not only}. "
                "Only the answer is returned; put the prompt before it yourself."
            )
            raise ValueError(msg)
    stop = options.pop("stop_sequence", None)
    return options if stop is None else {"stop": stop, **options}


def fields_of_pipeline(pipeline_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `pipeline_kwargs` of `HuggingFacePipeline` as fields of our classes.

    What a field can say does not stay in `options`, so that another value of the field replaces it.

    >>> fields_of_pipeline({"do_sample": True, "temperature": 0.7, "min_p": 0.1})
    {'options': {'min_p': 0.1}, 'temperature': 0.7}
    >>> fields_of_pipeline({"do_sample": False, "max_new_tokens": 5})
    {'options': {}, 'max_tokens': 5, 'temperature': 0}
    """
    options = _named_for_decoder(from_pipeline_kwargs(pipeline_kwargs))
    fields = {field: options.pop(name) for name, field in _FIELDS.items() if name in options}
    if options.get("do_sample") is False:
        fields["temperature"] = 0
    if "temperature" in fields:
        del options["do_sample"]
    return {"options": options, **fields}


def over_pipeline(taken: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Put a caller's own fields over those of a pipeline; `options` of both add up."""
    options = own.get("options") or {}
    fields = {**taken, **own, "options": {**taken["options"], **options}}
    if options.get("do_sample") and "temperature" not in own and fields.get("temperature") == 0:
        del fields["temperature"]
    return fields


def fields_of_loading(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `from_pretrained` as fields of our classes.

    >>> fields_of_loading({"torch_dtype": "bfloat16", "low_cpu_mem_usage": True})
    {'dtype': 'bfloat16', 'model_kwargs': {'low_cpu_mem_usage': True}}
    """
    fields = {
        _LOADING_FIELDS[name]: value
        for name, value in model_kwargs.items()
        if name in _LOADING_FIELDS
    }
    rest = {name: value for name, value in model_kwargs.items() if name not in _LOADING_FIELDS}
    return fields | {"model_kwargs": rest}


def with_token_apart(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Move an access token out of the arguments of `from_pretrained` into `hf_token`.

    >>> with_token_apart({"model_kwargs": {"token": "t", "variant": "fp16"}})
    {'model_kwargs': {'variant': 'fp16'}, 'hf_token': 't'}

    Raises:
        TypeError: If there are two of them. A `ValueError` would show both.
    """
    moved = dict(fields)
    found = [moved.get("hf_token"), moved.get("api_key")]
    for name in ("model_kwargs", "tokenizer_kwargs"):
        if isinstance(given := moved.get(name), Mapping):
            tokens = {key: given[key] for key in _TOKENS if isinstance(given.get(key), _SECRET)}
            moved[name] = {key: value for key, value in given.items() if key not in tokens}
            found += tokens.values()
    told = {each.get_secret_value() if isinstance(each, SecretStr) else each for each in found}
    told.discard(None)
    if len(told) > 1:
        msg = (
            "`hf_token` must be one token, got different ones, some of them in `model_kwargs` or "
            "`tokenizer_kwargs`. Pass it once, as `hf_token`."
        )
        raise TypeError(msg)
    if told and found[:2] == [None, None]:
        moved["hf_token"] = told.pop()
    return moved
