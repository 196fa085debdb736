"""Studies whose arms train before they plan, from file to results: nothing nests wrongly inside the workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from adaptive_lora.measures import adalora
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
ARMS = (
    "arms: [uniform, linear-decay, empirical, random]",
    """\
arms:
  - uniform
  - {strategy: posthoc-svd, options: {short_run_steps: 3, calibration_batches: 2}}
  - {strategy: marginal-gain, options: {short_run_steps: 3, runs: 2, calibration_batches: 2}}
  - {strategy: adalora, options: {short_run_steps: 4}}""",
)
RUNS = {"posthoc-svd": 1, "marginal-gain": 4, "adalora": 1}


def plans_of(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    with contextlib.closing(open_to_read(folder)) as ledger:
        return {(run["arm"], run["seed"]): ledger.plan(run["run_id"]) for run in ledger.runs()}


def test_arms_that_train_before_they_plan_end_alike_in_both_engines(study_file: WriteStudy, tmp_path: Path) -> None:
    assert run_study(load_study(study_file(ARMS)), tmp_path / "bank").finished
    assert run_study(load_study(study_file(ARMS, REFERENCE)), tmp_path / "reference").finished
    bank, reference = (load_results(tmp_path / name) for name in ("bank", "reference"))
    assert list(bank["arm"]) == list(reference["arm"]) and set(bank["arm"]) == {"uniform", *RUNS}
    assert set(bank["status"]) == {"completed"} and bank["trainable_parameters"].nunique() == 1
    pd.testing.assert_series_equal(bank["test_loss"], reference["test_loss"], rtol=1e-4)

    plans, others = plans_of(tmp_path / "bank"), plans_of(tmp_path / "reference")
    assert {key: plan["ranks"] for key, plan in plans.items()} == {key: plan["ranks"] for key, plan in others.items()}
    for arm, runs in RUNS.items():
        first, second = (plans[arm, seed] for seed in (0, 1))
        assert first["provenance"]["measured"]["short_runs"] == runs
        assert first["ranks"] != second["ranks"] or arm == "marginal-gain"  # planned anew for every seed
    assert plans["marginal-gain", 0]["provenance"]["measured"]["race_runs"] == 3


def test_a_short_run_that_breaks_costs_its_own_run_alone(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is as it was for those after it."""
    run_study(load_study(study_file(ARMS)), tmp_path / "whole")
    real, calls = adalora.ranks_of, iter(range(100))

    def breaking(model: Any) -> Any:
        return 1 / 0 if next(calls) == 0 else real(model)

    monkeypatch.setattr(adalora, "ranks_of", breaking)
    run_study(load_study(study_file(ARMS)), tmp_path / "cut")
    whole, cut = (load_results(tmp_path / name).set_index(["arm", "seed"]) for name in ("whole", "cut"))
    failed = cut[cut["status"] != "completed"]
    assert len(failed) == 1 and failed.index[0][0] == "adalora"
    rest = cut.drop(failed.index)["test_loss"]
    pd.testing.assert_series_equal(rest, whole["test_loss"].loc[rest.index], rtol=1e-5)
