"""Reports of tests write their figures as SVG alone, which is what a page holds: the other forms cost twice as much."""

from __future__ import annotations

import functools

import pytest

from adaptive_lora.reporting.figures import making
from adaptive_lora.reporting.figures.theme import save


@pytest.fixture(autouse=True, scope="package")
def only_svg() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "save", functools.partial(save, kinds=("svg",)))
        yield


@pytest.fixture
def all_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """PDF, SVG and PNG, as everywhere else."""
    monkeypatch.setattr(making, "save", save)
