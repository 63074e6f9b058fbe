"""Show the main job on documents and a model that come with the package."""

from pathlib import Path

DOCUMENTS = Path(__file__).parent / "documents"
"""Folder of the documents that the demo answers about."""

MODEL = Path(__file__).parent / "model"
"""Folder of the bundled model."""
