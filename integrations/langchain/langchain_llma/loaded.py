"""Take over what Hugging Face classes have loaded and what they were told."""

from typing import TYPE_CHECKING, Any

import llma_rag
from langchain_llma.options import fields_of_pipeline

if TYPE_CHECKING:
    from llma_rag import Decoder

_CHAT_FIELDS = ("temperature", "top_p", "max_tokens", "seed", "stop")


def decoder_of(loaded: Any) -> "Decoder":
    """Return the one decoder over a model that is loaded already.

    Args:
        loaded: A `ChatHuggingFace`, a `HuggingFacePipeline`, or a transformers pipeline.

    Raises:
        ValueError: If `loaded` holds no local model, for example an endpoint.
    """
    outer = getattr(loaded, "llm", loaded)
    pipeline = getattr(outer, "pipeline", outer)
    model: Any = getattr(pipeline, "model", None)
    tokenizer = getattr(loaded, "tokenizer", None) or getattr(pipeline, "tokenizer", None)
    if not hasattr(model, "forward") or tokenizer is None:
        msg = (
            "`loaded` must hold a local model and its tokenizer, got "
            f"`{type(loaded).__name__}`. Pass a transformers text-generation pipeline, or a "
            "`HuggingFacePipeline` or `ChatHuggingFace` over one."
        )
        raise ValueError(msg)
    return llma_rag.Decoder.shared_over(model, tokenizer)


def fields_of(loaded: Any) -> dict[str, Any]:
    """Return what `pipeline_kwargs` and a chat model's own fields say, as fields of our classes."""
    outer = getattr(loaded, "llm", None)
    source = loaded if outer is None else outer
    fields = fields_of_pipeline(getattr(source, "pipeline_kwargs", None) or {})
    if outer is None:
        return fields
    given = {name: getattr(loaded, name, None) for name in _CHAT_FIELDS}
    return fields | {name: value for name, value in given.items() if value is not None}
