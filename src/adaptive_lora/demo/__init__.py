"""The embedded default: a small pretrained model and a generator of instruction tasks."""

from __future__ import annotations

from pathlib import Path

MODEL = "demo"
"""What a study file calls the embedded model."""
SOURCE_PREFIX = "demo:"
"""What begins the name of a generated data set: `demo:fine-tuning`, `demo:pretraining`, `demo:all`."""


def model_folder() -> Path:
    """Where the embedded model lies in the installed package."""
    return Path(__file__).parent / "model"
