"""Make the decoder that HuggingFaceLLM's constructor arguments describe."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from llma_rag import Decoder

_NAMED = (
    "dtype",
    "revision",
    "quantization_config",
    "attn_implementation",
    "trust_remote_code",
    "token",
)


def make_decoder(
    model_name: str | None,
    tokenizer_name: str | None,
    model: Any,
    tokenizer: Any,
    device_map: Any,
    model_kwargs: Mapping[str, Any],
    tokenizer_kwargs: Mapping[str, Any],
) -> Decoder:
    """Return the decoder of given objects, or the shared one of a name; it loads nothing twice."""
    if model is not None:
        return Decoder.shared_over(
            model, tokenizer or _load_tokenizer(tokenizer_name or _name(model))
        )
    if not model_name:
        raise ValueError(
            "`model_name` or `model` must be given: a folder, the name of a model on the Hugging "
            "Face Hub, or a loaded `transformers` model."
        )
    arguments = dict(model_kwargs)
    if "torch_dtype" in arguments:
        arguments["dtype"] = arguments.pop("torch_dtype")
    named = {name: arguments.pop(name) for name in _NAMED if name in arguments}
    if tokenizer_name and tokenizer_name != model_name:
        named["tokenizer"] = tokenizer_name
    placed = arguments.pop("device_map", device_map)
    if placed is not None and find_spec("accelerate"):
        named["device_map"] = placed
    decoder = Decoder.shared(
        model_name, model_kwargs=arguments, tokenizer_kwargs=dict(tokenizer_kwargs), **named
    )
    return decoder if tokenizer is None else Decoder.shared_over(decoder.model, tokenizer)


def model_name_of(model: Any) -> str:
    """Return the name a loaded model goes by: where it came from, else its architecture."""
    return _name(model) or str(model.config.model_type)


def _name(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or "")


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    if not name:
        raise ValueError("`tokenizer` or `tokenizer_name` must be given with this `model`.")
    return AutoTokenizer.from_pretrained(name)
