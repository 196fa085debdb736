"""Which learning rate an arm is judged at, and how a study stands by that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.protocol import arms_on_budgets
from adaptive_lora.study.runs import count_runs, evaluation_runs, single_rate
from adaptive_lora.study.schema import StudySpec

TuningLosses = dict[tuple[str, str], dict[float, list[float | None]]]
"""(arm, budget) -> rate -> validation loss of each tuning seed, nothing where the run diverged."""

MOST_WIDENED = 4
"""How often `auto` adds rates at the edges of a grid."""


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


@dataclass(frozen=True)
class Edge:
    """A best rate that lies at the end of its grid, so that a better one may lie beyond."""

    arm: str
    budget: str
    rate: float
    beyond: float
    """The next value to try."""
    trained: bool = True
    """Whether any rate of the grid is a candidate; where every one diverged, `rate` is the smallest."""


def grid_of(spec: StudySpec, ledger: Ledger) -> tuple[float, ...]:
    """The rates that are tried: those of the study file and, where it says `auto`, those beyond its edges.

    The grid grows while the best rate of an arm lies at an edge, at most `MOST_WIDENED` times, for all arms alike.
    It follows from the tuning runs alone.
    """
    grid = tuple(sorted(spec.train.learning_rate))
    for _ in range(MOST_WIDENED if spec.train.widen else 0):
        beyond = {edge.beyond for edge in edges(tuning_losses(spec, ledger, grid), grid)}
        if not beyond:
            break
        grid = tuple(sorted({*grid, *beyond}))
    return grid


def edges(losses: TuningLosses, grid: Sequence[float]) -> list[Edge]:
    """Arms whose best rate is the smallest or the largest of the grid; where every rate diverged, the smallest is."""
    found = []
    for (arm, budget), by_rate in losses.items():
        own = best_rate(by_rate)
        best = own or min(grid)
        if best in (min(grid), max(grid)):
            beyond = next_rate(grid, up=best == max(grid) and len(grid) > 1)
            found.append(Edge(arm, budget, best, beyond, trained=own is not None))
    return found


def next_rate(grid: Sequence[float], up: bool) -> float:
    """One step beyond the grid: along 1, 3, 10 where all of it lies on those; else by the ratio of its last step.

    >>> next_rate([3e-4, 1e-3], up=True), next_rate([3e-4, 1e-3], up=False), next_rate([2e-3, 4e-3], up=True)
    (0.003, 0.0001, 0.008)
    """
    values = sorted(grid)
    if all(f"{rate:.0e}"[0] in "13" and math.isclose(rate, float(f"{rate:.0e}")) for rate in values):
        leading, exponent = f"{values[-1 if up else 0]:.0e}".split("e")
        step = int(exponent) + (1 if up and leading == "3" else -1 if not up and leading == "1" else 0)
        return float(f"{3 if leading == '1' else 1}e{step}")
    ratio = (values[-1] / values[-2] if up else values[1] / values[0]) if len(values) > 1 else 10**0.5
    return float(f"{values[-1] * ratio if up else values[0] / ratio:.2g}")


def chosen_rates(spec: StudySpec, ledger: Ledger) -> dict[tuple[str, str], float]:
    """(arm, budget) -> the rate with the lowest mean validation loss over all tuning seeds.

    A rate that diverged with any seed is no candidate. An arm is left out while one of its tuning runs
    is missing, so that a choice once made stays, and for good where every rate diverged.
    """
    if fixed := single_rate(spec):
        return fixed
    losses = tuning_losses(spec, ledger, grid_of(spec, ledger))
    return {key: best for key, by_rate in losses.items() if (best := best_rate(by_rate)) is not None}


def best_rate(by_rate: Mapping[float, Sequence[float | None]]) -> float | None:
    """The rate with the lowest mean of those that never diverged; of equals the smallest, nothing if none is left."""
    means = {rate: sum(found) / len(found) for rate, losses in by_rate.items() if (found := _whole(losses))}
    return min(means, key=lambda rate: (means[rate], rate)) if means else None


def _whole(losses: Sequence[float | None]) -> list[float]:
    found = [loss for loss in losses if loss is not None]
    return found if len(found) == len(losses) else []


def tuning_losses(spec: StudySpec, ledger: Ledger, grid: Sequence[float]) -> TuningLosses:
    """(arm, budget) -> rate -> validation losses, nothing where it diverged; arms with all tuning runs finished."""
    totals = ledger.totals()
    losses: TuningLosses = {}
    for run in own_runs(ledger, grid):
        if run["phase"] == Phase.TUNING and Status(run["status"]).is_finished:
            total = totals.get((run["run_id"], "validation"))
            by_rate = losses.setdefault((run["arm"], run["budget"]), {})
            by_rate.setdefault(run["learning_rate"], []).append(total["nll"] / total["tokens"] if total else None)
    wanted = len(grid) * len(spec.seeds.tuning)
    return {key: by_rate for key, by_rate in losses.items() if sum(map(len, by_rate.values())) == wanted}


def own_runs(ledger: Ledger, grid: Sequence[float]) -> list[dict[str, Any]]:
    """The ledger's runs, of tuning those at the rates of a grid."""
    return [run for run in ledger.runs() if run["phase"] != Phase.TUNING or run["learning_rate"] in grid]


def outcome_of(spec: StudySpec, ledger: Ledger) -> Outcome:
    """Counts of the ledger's runs against what the study asks for."""
    grid = grid_of(spec, ledger)
    states = [Status(run["status"]) for run in own_runs(ledger, grid)]
    return Outcome(
        completed=states.count(Status.COMPLETED),
        diverged=states.count(Status.DIVERGED),
        failed=states.count(Status.FAILED),
        total=count_runs(spec, grid)[Phase.TUNING] + evaluations_expected(spec, ledger),
    )


def evaluations_expected(spec: StudySpec, ledger: Ledger) -> int:
    """Evaluation runs there will be in the end: none for an arm whose every rate diverged."""
    hopeless = set() if single_rate(spec) else _tuned(spec, ledger) - chosen_rates(spec, ledger).keys()
    hopeful = {(arm.name, budget): 1.0 for budget, arm in arms_on_budgets(spec) if (arm.name, budget) not in hopeless}
    return sum(1 for _ in evaluation_runs(spec, hopeful))


def _tuned(spec: StudySpec, ledger: Ledger) -> set[tuple[str, str]]:
    return set(tuning_losses(spec, ledger, grid_of(spec, ledger)))
