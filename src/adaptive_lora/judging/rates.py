"""Which learning rate an arm is judged at, and how a study stands by that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptive_lora.record.ledger import Ledger
from adaptive_lora.record.protocol import arms_on_budgets
from adaptive_lora.record.runs import Phase, Status, count_runs, evaluation_runs, single_rate
from adaptive_lora.record.spec import StudySpec


@dataclass(frozen=True)
class Outcome:
    """How a study stands after `run_study`."""

    completed: int
    diverged: int
    failed: int
    total: int

    @property
    def whole(self) -> bool:
        """Whether every run gave a result (a divergence is one)."""
        return self.completed + self.diverged == self.total


def chosen_rates(spec: StudySpec, ledger: Ledger) -> dict[tuple[str, str], float]:
    """(arm, budget) -> the rate with the lowest mean validation loss over all tuning seeds.

    A rate that diverged with any seed is no candidate. An arm is left out while one of its tuning runs
    is missing, so that a choice once made stays, and for good where every rate diverged.
    """
    if fixed := single_rate(spec):
        return fixed
    chosen = {}
    for key, by_rate in tuning_losses(spec, ledger).items():
        means = {rate: sum(found) / len(found) for rate, found in by_rate.items() if None not in found}
        if means:
            chosen[key] = min(means, key=lambda rate: (means[rate], rate))
    return chosen


def tuning_losses(spec: StudySpec, ledger: Ledger) -> dict[tuple[str, str], dict[float, list[Any]]]:
    """(arm, budget) -> rate -> validation losses, nothing where it diverged; arms with all tuning runs finished."""
    totals = ledger.totals()
    losses: dict[tuple[str, str], dict[float, list[Any]]] = {}
    for run in own_runs(spec, ledger):
        if run["phase"] == Phase.TUNING and Status(run["status"]).is_finished:
            total = totals.get((run["run_id"], "validation"))
            by_rate = losses.setdefault((run["arm"], run["budget"]), {})
            by_rate.setdefault(run["learning_rate"], []).append(total["nll"] / total["tokens"] if total else None)
    wanted = len(spec.train.learning_rate) * len(spec.seeds.tuning)
    return {key: by_rate for key, by_rate in losses.items() if sum(map(len, by_rate.values())) == wanted}


def own_runs(spec: StudySpec, ledger: Ledger) -> list[dict[str, Any]]:
    """The ledger's runs that the study asks for now; after a deviation there can be others."""
    arms = {(arm.name, budget) for budget, arm in arms_on_budgets(spec)}
    tuned = {(rate, seed) for rate in spec.train.learning_rate for seed in spec.seeds.tuning}
    seeds = set(spec.seeds.evaluation)
    return [
        run
        for run in ledger.runs()
        if (run["arm"], run["budget"]) in arms
        and ((run["learning_rate"], run["seed"]) in tuned if run["phase"] == Phase.TUNING else run["seed"] in seeds)
    ]


def outcome_of(spec: StudySpec, ledger: Ledger) -> Outcome:
    """Counts of the ledger's runs against what the study asks for."""
    states = [Status(run["status"]) for run in own_runs(spec, ledger)]
    return Outcome(
        completed=states.count(Status.COMPLETED),
        diverged=states.count(Status.DIVERGED),
        failed=states.count(Status.FAILED),
        total=count_runs(spec)[Phase.TUNING] + evaluations_expected(spec, ledger),
    )


def evaluations_expected(spec: StudySpec, ledger: Ledger) -> int:
    """Evaluation runs there will be in the end: none for an arm whose every rate diverged."""
    hopeless = set() if single_rate(spec) else tuning_losses(spec, ledger).keys() - chosen_rates(spec, ledger).keys()
    hopeful = {(arm.name, budget): 1.0 for budget, arm in arms_on_budgets(spec) if (arm.name, budget) not in hopeless}
    return sum(1 for _ in evaluation_runs(spec, hopeful))
