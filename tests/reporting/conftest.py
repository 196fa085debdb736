"""What tests of reports share."""

from __future__ import annotations

import pytest

from adaptive_lora.reporting.figures import making
from adaptive_lora.reporting.figures.theme import save


@pytest.fixture
def all_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """PDF, SVG and PNG, as for everyone else."""
    monkeypatch.setattr(making, "save", save)
