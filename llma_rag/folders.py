"""Name the folder for what can be made again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Return the folder `name` in `$XDG_CACHE_HOME/llma-rag`, else `~/.cache/llma-rag`.

    None where the user has no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "llma-rag" / name
