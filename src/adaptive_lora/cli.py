"""The console script: all verbs, gathered."""

from __future__ import annotations

import os

from adaptive_lora.verbs import doing, reading
from adaptive_lora.verbs.speaking import app

__all__ = ["app", "doing", "main", "reading"]


def main() -> None:
    """The console script."""
    # Progress is ours to show; what the libraries say of themselves on loading is noise here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


if __name__ == "__main__":
    main()
