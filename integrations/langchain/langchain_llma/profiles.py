"""Say what a model can do, from files beside its weights and without loading them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import ModelProfile

from langchain_llma.prompts import knows_tools

if TYPE_CHECKING:
    from llma_rag import Decoder


def profile_of(
    model: str, chat_template: str | None = None, decoder: "Decoder | None" = None
) -> ModelProfile:
    """Return the profile of a loaded or local model, or of one already in the hub's local cache.

    Reads `config.json` and the chat template; asks no network. What cannot be known is left out.
    Tool choice and structured output need no help from the template: decoding is constrained.

    Args:
        model: Folder or hub name.
        chat_template: A template that is used instead of the model's.
        decoder: The loaded model, which knows more than its files.
    """
    context = _context(model) if decoder is None else decoder.context_length
    profile: ModelProfile = {
        "open_weights": True,
        "text_inputs": True,
        "text_outputs": True,
        "image_inputs": False,
        "audio_inputs": False,
        "video_inputs": False,
        "tool_choice": True,
        "structured_output": True,
        "temperature": True,
    }
    if isinstance(context, int):
        profile["max_input_tokens"] = context
    own = _template(model) if decoder is None else getattr(decoder.tokenizer, "chat_template", None)
    template = chat_template or own
    if template is not None:
        profile["tool_calling"] = knows_tools(template)
    return profile


def _context(model: str) -> object:
    config = _json(model, "config.json")
    config = config.get("text_config") or config
    return config.get("max_position_embeddings") or config.get("n_positions")


def _template(model: str) -> str | None:
    """Return the chat template, which stands in a file of its own or with the tokenizer."""
    file = _find(model, "chat_template.jinja")
    if file is not None:
        return _read(file)
    named = _json(model, "tokenizer_config.json").get("chat_template")
    return str(named) if named else None


def _json(model: str, name: str) -> dict[str, Any]:
    path = _find(model, name)
    try:
        read = json.loads(_read(path) or "{}") if path is not None else {}
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _find(model: str, name: str) -> Path | None:
    local = Path(model) / name
    if local.is_file():
        return local
    if Path(model).exists() or model.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache  # slow to import, and seldom needed
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
