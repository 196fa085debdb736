"""Output of lm-evaluation-harness 0.4.13, unpacked once (see data/README.md)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def lm_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of the harness's output folders for each of four adapters."""
    folder = tmp_path_factory.mktemp("lm_eval")
    with tarfile.open(DATA / "lm_eval.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def peft() -> list[Path]:
    """Two results of PEFT's method comparison: rank 32, and rank 64 with rsLoRA."""
    return sorted((DATA / "peft").glob("*.json"))
