"""The baseline's twin must come out as it did."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptive_lora.errors import TrainingError
from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.ledger import Ledger, SplitResult
from adaptive_lora.study.open_ledger import create_or_open
from adaptive_lora.study.study_file import load_study
from adaptive_lora.study.twins import check_twins


def result(nll: float) -> SplitResult:
    return SplitResult(np.array([1.0, nll]), np.array([2, 3]), np.array([True, False]))


@pytest.fixture
def ledger(study_file: Callable[..., Path], tmp_path: Path) -> Ledger:
    """A run of the baseline and its twin, registered."""
    matrix = load_study(study_file(("controls: none", "controls: [twin]"))).matrix
    runs = list(matrix.evaluation_runs({("uniform", "rank:2"): 1e-2}))
    own = next(run for run in runs if run.replica == 0)
    (tmp_path / "out").mkdir()
    opened = create_or_open(tmp_path / "out")
    opened.register({"own": own, "twin": next(run for run in runs if run.replica), "other": replace(own, seed=9)})
    return opened


def complete(ledger: Ledger, run_id: str, nll: float) -> None:
    ledger.begin(run_id, "bank", "cpu", 4)
    plan = {"trainable_parameters": 1}
    ledger.complete(run_id, plan, {"loss": [1.0]}, {"test": result(nll)}, {"plan": 0.0, "train": 1.0})


def test_equal_twins_are_counted(ledger: Ledger) -> None:
    with contextlib.closing(ledger):
        assert check_twins(ledger) == 0
        complete(ledger, "own", 2.0)
        complete(ledger, "other", 3.0)
        assert check_twins(ledger) == 0  # its twin is not through
        complete(ledger, "twin", 2.0)
        assert check_twins(ledger) == 1


def test_the_last_bit_is_enough_to_fail(ledger: Ledger) -> None:
    with contextlib.closing(ledger):
        complete(ledger, "own", 2.0)
        complete(ledger, "twin", float(np.nextafter(2.0, 3.0)))
        with pytest.raises(TrainingError, match=r"twin of uniform at rank:2, seed 0.*own and twin"):
            check_twins(ledger)


def test_a_twin_that_diverges_alone_fails_too(ledger: Ledger) -> None:
    with contextlib.closing(ledger):
        complete(ledger, "own", 2.0)
        ledger.fail("twin", Status.DIVERGED, "not finite", 3)
        with pytest.raises(TrainingError, match="differs"):
            check_twins(ledger)
        ledger.fail("own", Status.DIVERGED, "not finite", 3)
        assert check_twins(ledger) == 1
