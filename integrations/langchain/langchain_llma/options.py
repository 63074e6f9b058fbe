"""Translate the names of LangChain and of transformers' pipelines into ours."""

from collections.abc import Mapping
from typing import Any, cast

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


def generation_options(*layers: Mapping[str, Any]) -> GenerationOptions:
    """Merge layers of options, later ones first; what no layer sets stays unset.

    A temperature of 0 means greedy decoding, a higher one sampling. Without a temperature the
    model's own `generation_config` decides. Unknown names pass through: the decoder refuses them.

    >>> generation_options({"max_tokens": 5, "temperature": 0.7}, {"temperature": 0})
    {'max_new_tokens': 5, 'do_sample': False}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= {
            _DECODER_NAMES.get(name, name): value
            for name, value in layer.items()
            if value is not None
        }
    if not merged.get("stop", True):
        del merged["stop"]
    if merged.get("temperature") == 0:
        merged["do_sample"] = False
    elif "temperature" in merged:
        merged.setdefault("do_sample", True)
    if merged.get("do_sample") is False:
        for name in _ONLY_WHEN_SAMPLING:
            merged.pop(name, None)
    return cast("GenerationOptions", merged)


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
    """Return the `pipeline_kwargs` of `HuggingFacePipeline` as fields of our classes."""
    options = from_pipeline_kwargs(pipeline_kwargs)
    limit = options.pop("max_new_tokens", None)
    return {"options": options} | ({} if limit is None else {"max_tokens": limit})


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
