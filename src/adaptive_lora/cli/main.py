"""The console script: all verbs, gathered."""

from __future__ import annotations

import os

from adaptive_lora.cli import data, doctor, init, plan, reading, run, strategies
from adaptive_lora.cli.app import app

__all__ = ["app", "data", "doctor", "init", "main", "plan", "reading", "run", "strategies"]


def main() -> None:
    """The console script."""
    # Progress is ours to show; what the libraries say of themselves on loading is noise here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


if __name__ == "__main__":
    main()
