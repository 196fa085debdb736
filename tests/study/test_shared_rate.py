"""`tune: shared`: one rate, tuned on the baseline at the first budget, for all; and what a caller bounds of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.memory.memory_bank import memory_texts
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.learning_rate_search import SharedSearch, search_of
from adaptive_lora.study.ledger import Ledger, SplitResult
from adaptive_lora.study.matrix import StudyMatrix
from adaptive_lora.study.open_ledger import create_or_open
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Limits, Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import StepRecord

WriteStudy = Callable[..., Path]
SHARED = (
    ("learning_rate: 1e-2", "tune: shared, learning_rate: [1e-3, 3e-3, auto]"),
    ("{evaluation: 2}", "{evaluation: 2, tuning: 1}"),
    ("arms: [uniform, linear-decay, empirical, random]", "arms: [uniform, linear-decay]"),
    ("controls: none", "controls: [half]"),
)
FIRST = ("uniform", "rank:2")


def tuned(matrix: StudyMatrix, folder: Path, losses: Mapping[Any, float | None]) -> Ledger:
    """A ledger with all that the search asks for, at these validation losses: by rate, or by budget and rate."""
    folder.mkdir(exist_ok=True)
    ledger = create_or_open(folder)
    done: object = None
    while (asked := search_of(matrix, ledger).asked) != done:
        runs = {run.run_id({}): run for run in matrix.tuning_runs(asked)}
        ledger.register(runs)
        for run_id, run in runs.items():
            here = run.budget, run.learning_rate
            loss = losses[here if here in losses else run.learning_rate]
            if ledger.status_of(run_id).is_finished:
                continue
            if loss is None:
                ledger.fail(run_id, Status.DIVERGED, "loss", 1)
                continue
            result = {"validation": SplitResult(np.array([loss]), np.array([1]), np.array([False]))}
            ledger.complete(run_id, {"trainable_parameters": 1}, {"loss": [1.0]}, result, {"plan": 0.0, "train": 0.0})
        done = asked
    return ledger


def test_the_baseline_alone_is_tuned_and_the_grid_grows_for_it(study_file: WriteStudy, tmp_path: Path) -> None:
    matrix = load_study(study_file(*SHARED)).matrix
    assert matrix.counts() == {Phase.TUNING: 2, Phase.EVALUATION: 6}
    losses: dict[float, float | None] = {1e-3: 3.0, 3e-3: 2.0, 1e-2: 1.0, 3e-2: 1.5}
    with contextlib.closing(tuned(matrix, tmp_path / "a", losses)) as ledger:
        search = search_of(matrix, ledger)
        assert isinstance(search, SharedSearch)
        assert search.asked == {FIRST: (1e-3, 3e-3, 1e-2, 3e-2)} and search.edges == []
        assert search.chosen == {cell.key: 1e-2 for cell in matrix.cells} and len(search.chosen) == 3
        assert search.expected_runs() == {Phase.TUNING: 4, Phase.EVALUATION: 6}


def test_a_rate_that_nobody_can_train_at_leaves_nothing_to_evaluate(study_file: WriteStudy, tmp_path: Path) -> None:
    matrix = load_study(study_file(*SHARED, ("3e-3, auto]", "3e-3]"))).matrix
    with contextlib.closing(tuned(matrix, tmp_path / "a", {1e-3: None, 3e-3: None})) as ledger:
        search = search_of(matrix, ledger)
        assert search.chosen == {} and search.untrainable == {cell.key for cell in matrix.cells}
        assert search.expected_runs() == {Phase.TUNING: 2, Phase.EVALUATION: 0}


BY_BUDGET = (*SHARED, ("tune: shared,", "tune: shared-by-budget,"))


def test_by_budget_every_arm_has_the_rate_of_the_baseline_there(study_file: WriteStudy, tmp_path: Path) -> None:
    """The control at half of the budget is a budget of its own, whose grid is that of all."""
    matrix = load_study(study_file(*BY_BUDGET)).matrix
    half, arm = ("uniform", "rank:1"), ("linear-decay", "rank:2")
    assert {cell.key for cell in matrix.cells} == {FIRST, arm, half}
    assert matrix.counts() == {Phase.TUNING: 4, Phase.EVALUATION: 6}
    losses = {1e-3: 3.0, 3e-3: 1.0, 1e-2: 2.0} | {("rank:1", 1e-3): 3.0, ("rank:1", 3e-3): 2.0, ("rank:1", 1e-2): 1.0}
    with contextlib.closing(tuned(matrix, tmp_path / "a", losses | {3e-2: 2.0})) as ledger:
        search = search_of(matrix, ledger)
        assert isinstance(search, SharedSearch) and search.untrainable == set()
        assert search.asked == dict.fromkeys([FIRST, half], (1e-3, 3e-3, 1e-2, 3e-2))
        assert search.chosen == {FIRST: 3e-3, arm: 3e-3, half: 1e-2}
        assert search.expected_runs() == {Phase.TUNING: 8, Phase.EVALUATION: 6}


def test_by_budget_one_that_nobody_can_train_at_leaves_the_others(study_file: WriteStudy, tmp_path: Path) -> None:
    matrix = load_study(study_file(*BY_BUDGET, ("3e-3, auto]", "3e-3]"))).matrix
    losses = {1e-3: 1.0, 3e-3: 2.0, ("rank:2", 1e-3): None, ("rank:2", 3e-3): None}
    with contextlib.closing(tuned(matrix, tmp_path / "a", losses)) as ledger:
        search = search_of(matrix, ledger)
        assert search.chosen == {("uniform", "rank:1"): 1e-3}
        assert search.untrainable == {FIRST, ("linear-decay", "rank:2")}


@pytest.mark.parametrize("by_budget", [False, True])
def test_a_study_with_one_rate_for_all_says_so(study_file: WriteStudy, tmp_path: Path, by_budget: bool) -> None:
    study = load_study(study_file(*(BY_BUDGET if by_budget else SHARED), ("steps: 6", "steps: 2")))
    assert run_study(study, tmp_path / "out").finished
    runs = load_results(tmp_path / "out")
    tuning, evaluation = (runs[runs["phase"] == phase] for phase in (Phase.TUNING, Phase.EVALUATION))
    cells = {FIRST, ("uniform", "rank:1")} if by_budget else {FIRST}
    assert set(zip(tuning["arm"], tuning["budget"], strict=True)) == cells and len(tuning) >= 2 * len(cells)
    assert (evaluation.groupby("budget" if by_budget else "phase")["learning_rate"].nunique() == 1).all()
    assert set(evaluation["learning_rate"]) <= set(tuning["learning_rate"]) and len(evaluation) == 6
    with open_findings(tmp_path / "out") as found:
        assert found.tuning_is_shared and not found.tuned
        decisions = memory_texts(found)["decisionLog"]
    first = "for all; chosen on validation for the baseline at the first budget"
    assert (first in decisions) != by_budget
    assert ("for all; at each budget the one chosen on validation for the baseline" in decisions) == by_budget


class Counted(Silent):
    """How many updates there were, and when it is enough."""

    def __init__(self, enough: int) -> None:
        self.updates, self.enough = 0, enough

    def step(self, record: StepRecord) -> None:
        self.updates += 1

    def should_stop(self) -> bool:
        return self.updates >= self.enough


def test_a_caller_can_stop_a_study_and_go_on(study_file: WriteStudy, tmp_path: Path) -> None:
    study, whole, cut = load_study(study_file()), tmp_path / "whole", tmp_path / "cut"
    listener = Counted(3)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, cut, listener, limits=Limits(listener.should_stop))
    assert listener.updates == 3 and load_results(cut)["test_loss"].isna().all()
    listener.enough = 100
    assert run_study(study, cut, listener, limits=Limits(listener.should_stop)).finished
    assert listener.updates == 6  # none was lost or repeated
    assert run_study(study, whole).finished
    ends = [load_results(folder).set_index("run_id")["test_loss"].sort_index() for folder in (cut, whole)]
    assert ends[0].equals(ends[1])


def test_small_banks_leave_results_behind_and_change_none(study_file: WriteStudy, tmp_path: Path) -> None:
    study, small, large = load_study(study_file()), tmp_path / "small", tmp_path / "large"
    listener = Counted(10)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, small, listener, limits=Limits(listener.should_stop, largest_bank=4))
    assert load_results(small)["test_loss"].notna().sum() == 4  # the first seed of four arms
    assert run_study(study, small, limits=Limits(largest_bank=4)).finished
    assert run_study(study, large).finished
    runs = load_results(small)
    assert set(runs["engine"]) == {"bank of 4"}
    pairs = runs.merge(load_results(large), on="run_id")
    assert len(pairs) == 8 and np.allclose(pairs["test_loss_x"], pairs["test_loss_y"], atol=1e-6)
