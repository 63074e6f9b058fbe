"""Find and load models and tokenizers; the only place that resolves names and paths."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llma_rag.engine.cpu.prepack import can_multiply, prepack_in_place
from llma_rag.engine.rope import UNBOUNDED

logger = logging.getLogger(__name__)

_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
"""Names under which configurations give the most positions."""


class LoadOptions(TypedDict, total=False):
    """How a model is loaded; names and meaning are those of transformers' `from_pretrained`.

    The linear layers of a model on the CPU are laid out anew, in place of their parameters: passes
    become quicker, but the model can no longer be trained, saved or given adapters.
    `prepack=False` leaves them as they are. `device` is a torch device for models that
    fit one; None takes CUDA or MPS where there is one. `device_map` spreads a model over several.
    `dtype` left out, or `"auto"`, is that of the checkpoint; on a processor that computes 16-bit
    numbers in software it is float32, see `_computable`.
    """

    tokenizer: str | os.PathLike[str]
    revision: str
    dtype: str | torch.dtype
    device: str | torch.device
    device_map: Any
    quantization_config: Any
    attn_implementation: str
    trust_remote_code: bool
    token: str
    cache_dir: str | os.PathLike[str]
    local_files_only: bool
    model_kwargs: Mapping[str, Any]
    tokenizer_kwargs: Mapping[str, Any]
    prepack: bool


def load(
    name: str | os.PathLike[str], options: LoadOptions
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in evaluation mode and its tokenizer.

    Raises:
        FileNotFoundError: If `name` is a path at which there is no model.
        OSError: If the model cannot be had from the hub.
        TypeError: If an option is unknown.
    """
    unknown = sorted(set(options) - set(LoadOptions.__annotations__))
    if unknown:
        raise TypeError(f"Unknown loading option `{unknown[0]}`.")
    source = _checked(name)
    shared = {
        key: options[key]
        for key in ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")
        if options.get(key) is not None
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(options.get("tokenizer") or source), **shared, **options.get("tokenizer_kwargs", {})
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, **shared, **_model_arguments(options)
        )
    except OSError as error:
        raise OSError(
            f"`{name}` could not be loaded: there is no such folder, and the model hub could not "
            "be reached or does not have it. Check the name, download the model first, or pass "
            f"the path of a local folder. ({_first_line(error)})"
        ) from error
    model.eval()
    placed = _computable(_placed(model, options), options)
    return _prepacked(placed, options), tokenizer


def context_length(config: PretrainedConfig) -> int | None:
    """Return the most positions the model can tell apart; None where it has no such limit."""
    text = config.get_text_config(decoder=True)
    limit = next((limit for name in _LIMITS if (limit := getattr(text, name, None))), None)
    return int(limit * _stretch(text)) if limit else None


def most_positions(config: PretrainedConfig) -> int:
    """Return `context_length`, or `UNBOUNDED` where there is no limit."""
    return context_length(config) or UNBOUNDED


def most_selected(config: PretrainedConfig) -> int:
    """Return the tokens up to which a model looks at all of them, and selects none.

    Which tokens an indexer selects (DeepSeek V3.2 and others) hangs on ties and roundings that are
    others in passes of another width: drafts could change an answer there.
    """
    text = config.get_text_config(decoder=True)
    selected = getattr(text, "index_topk", None)
    rates = getattr(text, "compress_rates", None) or {}  # tokens that stand for one (DeepSeek V4)
    return int(selected * rates.get("compressed_sparse_attention", 1)) if selected else UNBOUNDED


def _stretch(config: PretrainedConfig) -> float:
    """Return how much further than its positions dynamic rotary embeddings carry a model."""
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("factor") or 1.0) if rope.get("rope_type") == "dynamic" else 1.0


def _checked(name: str | os.PathLike[str]) -> str:
    path = Path(name)
    looks_local = isinstance(name, os.PathLike) or path.is_absolute() or str(name).startswith(".")
    if path.is_dir() and not (path / "config.json").exists():
        raise FileNotFoundError(
            f"`{name}` holds no model: `config.json` is missing; pass a folder saved by "
            "`save_pretrained`."
        )
    if looks_local and not path.is_dir():
        raise FileNotFoundError(f"There is no model folder at `{name}`; check the path.")
    return str(name)


def _model_arguments(options: LoadOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {"dtype": options.get("dtype") or "auto"}
    for key in ("device_map", "quantization_config", "attn_implementation"):
        if options.get(key) is not None:
            arguments[key] = options[key]
    return arguments | dict(options.get("model_kwargs") or {})


def _placed(model: Any, options: LoadOptions) -> PreTrainedModel:
    """Move a model to its device, unless accelerate or a quantiser has placed it already."""
    placed: PreTrainedModel = model
    if options.get("device_map") is None and options.get("quantization_config") is None:
        placed = model.to(options.get("device") or default_device())
    return placed


def default_device() -> str:
    """Return the device on which a model is placed where nobody chose one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _computable(model: PreTrainedModel, options: LoadOptions) -> PreTrainedModel:
    """Turn 16-bit weights into float32 on a processor that has no products of theirs.

    There they are computed in float32 anyway, and torch's own way is slow. Only where nobody chose
    the dtype.
    """
    asked = {"dtype": options.get("dtype"), **options.get("model_kwargs", {})}
    chosen = {asked.get("dtype"), asked.get("torch_dtype")} - {None, "auto"}
    quantised = getattr(model.config, "quantization_config", None) is not None
    if chosen or quantised or options.get("device_map") is not None or model.dtype.itemsize != 2:
        return model
    if model.device.type != "cpu" or can_multiply(model.dtype) or not can_multiply(torch.float32):
        return model
    logger.info("float32 is used: this processor computes %s in software.", model.dtype)
    if options.get("prepack", True):  # first, so that no weight is ever held in float32
        prepack_in_place(model, torch.float32)
    converted: Any = model
    return cast("PreTrainedModel", converted.float())


def _prepacked(model: PreTrainedModel, options: LoadOptions) -> PreTrainedModel:
    if options.get("prepack", True):
        prepack_in_place(model)
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
