"""What an estimate times: the first steps, and no more of them than there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.measuring import MeasuringProgress, in_goes
from adaptive_lora.measures.request import Measurement
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study import estimate as estimates
from adaptive_lora.study import pricing
from adaptive_lora.study.estimate import estimate
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.plan_task import needed
from adaptive_lora.study.prepare import PreparedStudy, prepare
from adaptive_lora.study.study_file import load_study

WriteStudy = Callable[..., Path]


@pytest.fixture
def prepared(study_file: WriteStudy) -> PreparedStudy:
    """One measured arm, eight calibration batches, runs of one update."""
    return prepare(load_study(study_file(("steps: 6", "steps: 1"))))


def goes(prepared: PreparedStudy) -> list[list[Measurement]]:
    runs = [Run(Phase.EVALUATION, cell, 1e-3, 0) for cell in prepared.study.matrix.cells]
    return in_goes(m for run in runs for m in needed(prepared.plan_task(run)))


@pytest.mark.parametrize("patience", [0.0, 1.5])
def test_a_study_of_one_update_has_an_estimate(
    prepared: PreparedStudy, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(estimates, "PATIENCE", patience)
    monkeypatch.setattr(pricing, "PATIENCE", patience)
    found = estimate(prepared)
    assert found.steps == 1 and found.seconds > found.planning_seconds > 0
    assert set(found.parameters.values()) == {found.parameters["uniform at rank:2"]}


def test_what_is_measured_ends_once_its_price_is_known(
    prepared: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (together,), seen = goes(prepared), list[MeasuringProgress]()
    whole = pricing.seconds_of(together, seen.append)
    steps = [now.step for now in seen if now.step]
    assert steps == list(range(1, seen[-1].steps + 1)) and whole > 0
    seen.clear()
    monkeypatch.setattr(pricing, "PATIENCE", 0.0)
    assert pricing.seconds_of(together, seen.append) > 0
    assert [now.step for now in seen if now.step] == [1, 2]


def test_an_error_that_is_met_is_told(prepared: PreparedStudy) -> None:
    (together,) = goes(prepared)
    prepared.base.model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        pricing.seconds_of(together, lambda now: None)
