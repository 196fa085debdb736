"""Learning rate search: the grid that is tried, and the rate that each arm is evaluated at.

Rates are chosen on validation with the tuning seeds, for every cell of the study by itself, from a grid that is the
same for all. Everything here follows from the finished tuning runs alone, whatever the order they finished in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.baseline_tuning import BaselineSearch
from adaptive_lora.study.ledger import BASE, Ledger
from adaptive_lora.study.matrix import CellKey, Rates, StudyMatrix
from adaptive_lora.study.tuning import Edge, TuningResult

__all__ = [
    "BaselineSearch", "Edge", "LearningRateSearch", "Search", "SharedSearch", "TuningLosses", "edges", "search_of",
]  # fmt: skip

TuningLosses = dict[CellKey, dict[float, list[float | None]]]
"""(arm, budget) -> rate -> validation loss of each tuning seed, None where the run diverged."""

MOST_WIDENED = 4
"""How often `auto` adds rates at the edges of a grid."""


@dataclass(frozen=True)
class LearningRateSearch:
    """How far a search by `tune: every-arm` has come: a pure function of its matrix and its finished tuning runs."""

    matrix: StudyMatrix
    finished: Sequence[TuningResult]

    @functools.cached_property
    def grid(self) -> tuple[float, ...]:
        """The rates that are tried: the study file's and, where it says `auto`, those beyond its edges.

        The grid grows while the best rate of a cell lies at an edge, at most `MOST_WIDENED` times, for all alike.
        """
        grid = tuple(sorted(self.matrix.spec.train.learning_rate))
        for _ in range(MOST_WIDENED if self.matrix.spec.train.widen else 0):
            beyond = {edge.beyond for edge in edges(self.losses(grid), grid)}
            if not beyond:
                break
            grid = tuple(sorted({*grid, *beyond}))
        return grid

    def losses(self, grid: Sequence[float]) -> TuningLosses:
        """Losses at the rates of a grid, of the cells whose every tuning run at them is finished."""
        found: TuningLosses = {}
        for key, rate, _, loss in self.finished:
            if rate in grid:
                found.setdefault(key, {}).setdefault(rate, []).append(loss)
        wanted = len(grid) * len(self.matrix.spec.seeds.tuning)
        return {key: by_rate for key, by_rate in found.items() if sum(map(len, by_rate.values())) == wanted}

    @functools.cached_property
    def chosen(self) -> Rates:
        """(arm, budget) -> the rate with the lowest mean validation loss over all tuning seeds.

        A rate that diverged with any seed is no candidate. A cell is left out while one of its tuning runs is missing,
        so that a choice once made stays, and for good where every rate diverged.
        """
        if fixed := self.matrix.fixed_rates:
            return fixed
        best = {key: best_rate(by_rate) for key, by_rate in self.losses(self.grid).items()}
        return {key: rate for key, rate in best.items() if rate is not None}

    @property
    def untrainable(self) -> set[CellKey]:
        """Cells that diverged at every rate of the grid, and so are never evaluated."""
        return set() if self.matrix.fixed_rates else set(self.losses(self.grid)) - set(self.chosen)

    @property
    def edges(self) -> list[Edge]:
        """Best rates that lie at the edge of the grid."""
        return edges(self.losses(self.grid), self.grid)

    @property
    def asked(self) -> dict[CellKey, tuple[float, ...]]:
        """Cell -> the rates that it is tried at: for all the same."""
        return {cell.key: self.grid for cell in self.matrix.cells}

    @property
    def facts(self) -> dict[str, Any]:
        """Nothing beside the chosen rates, for the ledger: tuning runs tell the rest."""
        return {}

    def expected_runs(self) -> dict[Phase, int]:
        """How many runs the study has in the end, by what is known now; with looks, by the first of them."""
        return self.matrix.counts(self.grid, self.untrainable, self.matrix.first_seeds)


@dataclass(frozen=True)
class SharedSearch(LearningRateSearch):
    """A search by `tune: shared` or `shared-by-budget`: the grid for the baseline, at the first budget or at each,
    whose best rate every cell has."""

    @functools.cached_property
    def chosen(self) -> Rates:
        """Every cell's whose budget's is known; left out where every rate diverged."""
        if fixed := self.matrix.fixed_rates:
            return fixed
        best = {key: best_rate(by_rate) for key, by_rate in self.losses(self.grid).items()}
        of_cell = {cell.key: best.get(self.matrix.tuned_for_all[cell.budget]) for cell in self.matrix.cells}
        return {key: rate for key, rate in of_cell.items() if rate is not None}

    @property
    def untrainable(self) -> set[CellKey]:
        """All cells of a budget whose baseline diverged at every rate of the grid."""
        if self.matrix.fixed_rates:
            return set()
        known = self.losses(self.grid)
        done = {cell.key for cell in self.matrix.cells if self.matrix.tuned_for_all[cell.budget] in known}
        return done - set(self.chosen)

    @property
    def asked(self) -> dict[CellKey, tuple[float, ...]]:
        """The rates of the cells that are tuned."""
        return dict.fromkeys(self.matrix.tuned_for_all.values(), self.grid)

    def expected_runs(self) -> dict[Phase, int]:
        """As of every search."""
        return self.matrix.counts(self.asked, self.untrainable, self.matrix.first_seeds)


Search = LearningRateSearch | BaselineSearch


def search_of(matrix: StudyMatrix, ledger: Ledger) -> Search:
    """The search of a study as its ledger has it now, by the way of tuning that its file names."""
    if matrix.spec.train.tune != "baseline":
        kind = LearningRateSearch if matrix.spec.train.tune == "every-arm" else SharedSearch
        return kind(matrix, ledger.tuning_results())
    base = ledger.totals().get((BASE, "validation"))
    return BaselineSearch(matrix, ledger.tuning_results(), base["nll"] / base["tokens"] if base else None)


def edges(losses: TuningLosses, grid: Sequence[float]) -> list[Edge]:
    """Cells whose best rate is the smallest or the largest of the grid; where every rate diverged, the smallest is."""
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


def best_rate(by_rate: Mapping[float, Sequence[float | None]]) -> float | None:
    """The rate with the lowest mean loss among those that never diverged; of equals the smallest."""
    means = {
        rate: sum(loss for loss in losses if loss is not None) / len(losses)
        for rate, losses in by_rate.items()
        if losses and None not in losses
    }
    return min(means, key=lambda rate: (means[rate], rate)) if means else None
