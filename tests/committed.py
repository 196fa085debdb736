"""Where the committed results lie."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def superseded(name: str) -> Path:
    """The export of a study as it was before new trainings took its place; where none did, the one that stands."""
    before = RESULTS / "superseded" / name
    return before if before.is_dir() else RESULTS / name
