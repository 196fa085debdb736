"""Planning as a phase: each distinct measurement once a study, kept at once, shared by all that need it."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from adaptive_lora.measures import measuring
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.checkpoint import StepRecord

WriteStudy = Callable[..., Path]
ARMS = "[uniform, linear-decay, empirical, random]"
GRADIENTS = (ARMS, "[uniform, empirical, gora, fim]")
SHORT = (ARMS, "[uniform, {strategy: posthoc-svd, options: {short_run_steps: 5}}, "
               "{strategy: lora-drop, options: {short_run_steps: 5}}]")  # fmt: skip
GRID = (
    ("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2]"),
    ("{evaluation: 2}", "{evaluation: 2, tuning: 1}"),
    ('budgets: ["rank:2"]', 'budgets: ["rank:2", "rank:4"]'),
    ("steps: 6", "steps: 2"),
)


def measured(folder: Path) -> Counter[str]:
    """How many measurements of each kind a study took."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return Counter(str(found["measure"]) for found in ledger.planning.measurements())


def taken(folder: Path) -> dict[str, Any]:
    with contextlib.closing(open_to_read(folder)) as ledger:
        return dict(ledger.facts()["planning"])


class StopAt(Silent):
    """SIGINT at the first update, or at the n-th report of planning."""

    def __init__(self, step: bool = False, planning: int = 0) -> None:
        self.at_step, self.planned, self.at_planning = step, 0, planning

    def step(self, record: StepRecord) -> None:
        if self.at_step:
            signal.raise_signal(signal.SIGINT)

    def planning(self, text: str, done: int, total: int) -> None:
        self.planned += 1
        if self.planned == self.at_planning:
            signal.raise_signal(signal.SIGINT)


def test_gradients_are_taken_once_a_seed_whatever_the_rates_and_budgets(study_file: WriteStudy, tmp_path: Path) -> None:
    """Three arms, two budgets, two rates: gradients of the frozen weights know nothing of these."""
    assert run_study(load_study(study_file(GRADIENTS, *GRID)), tmp_path / "out").finished
    counts = measured(tmp_path / "out")
    # One tuning and two evaluation seeds; the gradient of B depends on its rank, and so on the budget.
    assert counts == {"weight-gradient": 3, "b-gradient": 6}
    assert taken(tmp_path / "out")["gradient_passes"] == 3  # all measures of a seed come from one pass


def test_short_runs_are_shared_by_strategies_and_made_anew_for_another_rate(
    study_file: WriteStudy, tmp_path: Path
) -> None:
    assert run_study(load_study(study_file(SHORT, *GRID)), tmp_path / "out").finished
    table = load_results(tmp_path / "out").query("arm in ['posthoc-svd', 'lora-drop']")
    needed = {tuple(row) for row in table[["budget", "learning_rate", "seed"]].itertuples(index=False)}
    assert taken(tmp_path / "out")["short_runs"] == len(needed)


def test_a_study_cut_after_planning_measures_and_plans_nothing_again(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(study_file(GRADIENTS))
    run_study(study, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "cut", StopAt(step=True))
    before = taken(tmp_path / "cut")

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("what the ledger has was made again")

    monkeypatch.setattr("adaptive_lora.study.planning_phase.take", refuse)
    monkeypatch.setattr("adaptive_lora.study.plan_task.PlanTask.plan", refuse)
    assert run_study(study, tmp_path / "cut").finished
    assert taken(tmp_path / "cut") == before
    whole, cut = (load_results(tmp_path / name)[["run_id", "test_loss"]] for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(whole, cut)


def test_ctrl_c_inside_a_short_run_stops_at_once_and_keeps_what_was_measured(
    study_file: WriteStudy, tmp_path: Path
) -> None:
    arms = (ARMS, "[uniform, empirical, {strategy: posthoc-svd, options: {short_run_steps: 50}}]")
    study = load_study(study_file(arms))
    listener = StopAt(planning=30)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", listener)
    assert listener.planned < 34  # of 50 updates, and no result of a run
    kept = measured(tmp_path / "out")
    assert kept["weight-gradient"] == 2 and "update-spectrum" not in kept
    assert run_study(study, tmp_path / "out").finished
    assert measured(tmp_path / "out")["weight-gradient"] == 2


def test_a_plan_of_the_phase_is_the_plan_made_alone(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file(GRADIENTS))
    run_study(study, tmp_path / "out")
    prepared = prepare(study)
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        plans = {run_id: RankPlan.from_json(plan) for run_id, plan in ledger.plans()}
    for run in study.matrix.evaluation_runs(study.matrix.fixed_rates):
        own = plans[run.run_id(prepared.context)]
        examples, budget = prepared.training_examples(run.seed), prepared.budgets[run.budget]
        made = make_plan(prepared.base, prepared.modules, run.arm, budget, run.cell.scaling, run.seed, examples)
        assert (own.ranks, own.scores) == (made.ranks, made.scores)


def test_a_measurement_that_fails_costs_those_that_need_it_alone(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measuring.collect

    def failing(needs: Any, request: Any, stored: Any) -> Any:
        if "weight-gradient" in needs and request.seed == 1:
            raise OSError("the scores could not be taken")
        return real(needs, request, stored)

    study = load_study(study_file())
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "collect", failing)
        status = run_study(study, tmp_path / "out")
    assert (status.completed, status.failed, status.finished) == (7, 1, False)
    assert "the scores could not be taken" in status.troubles[0]["error"]
    assert run_study(study, tmp_path / "out").finished
