"""Learning rates by `tune: baseline`: tuned on the baseline at each budget, then checked for every arm.

1. The baseline is tried at three rates a factor 1.8 apart around a first guess, or at the study file's list; rates are
   added one step at a time until the best has both its neighbours. The parabola in log rate through the three gives
   the rate. The study's first budget comes first; its rate is the first guess at all others.
2. At each budget with arms, the baseline and every arm of the study's own are tried at that rate and one step to
   either side. An arm gets another rate where it is better beyond the noise, which is pooled over arms and sides; then
   it too goes on step by step.
3. Random controls and those with more compute take the baseline's rate, a shuffled plan takes that of the arm whose
   plan it shuffles.

Everything follows from the finished tuning runs alone, whatever the order they finished in.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from adaptive_lora.stats.rate_choice import (
    Climb,
    Losses,
    Noise,
    around,
    beyond_cliff,
    climb,
    lowest,
    mean_loss,
    paired,
    pooled,
    preferred,
    refined,
    stepped,
)
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.matrix import Cell, CellKey, Rates, Role, StudyMatrix, first_rates
from adaptive_lora.study.schema import ArmPart
from adaptive_lora.study.tuning import Edge, TuningResult


class How(StrEnum):
    """Where a cell's rate comes from."""

    VERTEX = "vertex"
    """The parabola through the baseline's three best."""
    GRID = "grid"
    """The best rate that the baseline was tried at: the parabola has no place there."""
    BASELINE = "baseline's"
    """What the baseline has at this budget."""
    OWN = "own"
    """Another one, better for this arm beyond the noise."""
    SOURCE = "its arm's"
    """That of the arm which a control shuffles."""


@dataclass(frozen=True)
class RateChoice:
    """What has been found for a cell."""

    rate: float | None
    """None where every rate that was tried diverged."""
    how: How
    edge: bool = False
    """Whether a better rate may lie beyond those that were tried."""
    cliff: bool = False
    """Whether training breaks one step above; see `stats.rate_choice.beyond_cliff`."""


@dataclass(frozen=True)
class BaselineSearch:
    """How far a study's search has come: a pure function of its matrix and its finished tuning runs."""

    matrix: StudyMatrix
    finished: Sequence[TuningResult]
    frozen: float | None = None
    """The frozen model's validation loss, which says how deep a cliff is."""

    @functools.cached_property
    def losses(self) -> Mapping[CellKey, Losses]:
        """By cell, of the rates whose every tuning seed is finished."""
        found: dict[CellKey, dict[float, dict[int, float | None]]] = {}
        for key, rate, seed, loss in self.finished:
            found.setdefault(key, {}).setdefault(rate, {})[seed] = loss
        seeds = set(self.matrix.spec.seeds.tuning)
        return {
            key: {rate: own for rate, own in by_rate.items() if set(own) >= seeds} for key, by_rate in found.items()
        }

    @functools.cached_property
    def asked(self) -> dict[CellKey, tuple[float, ...]]:
        """Cell -> every rate that it has been asked for, rising; more follow once these are finished."""
        found = {(self.matrix.baseline.name, budget): own.asked for budget, own in self._baseline.items()}
        for budget, rates in self._checked.items():
            for cell in self._cells(budget, Role.BASELINE, Role.ARM):
                own = self._arms.get(cell.key)
                more = own.asked if own else rates
                found[cell.key] = tuple(sorted({*found.get(cell.key, ()), *more}))
        return found

    @functools.cached_property
    def choices(self) -> dict[CellKey, RateChoice]:
        """Of every cell that is decided; a choice once made stays."""
        found = {(self.matrix.baseline.name, budget): choice for budget, choice in self._rates.items()}
        for key, own in self._arms.items():
            if own.done:
                of_baseline = own.best == self._rates[key[1]].rate
                cliff = own.best is not None and beyond_cliff(own.best, self.losses[key], self.frozen)
                found[key] = RateChoice(own.best, How.BASELINE if of_baseline else How.OWN, own.edge, cliff)
        for budget, choice in self._rates.items():
            if choice.rate is None:
                found |= {cell.key: RateChoice(None, How.BASELINE) for cell in self._cells(budget, Role.ARM)}
        for cell in self.matrix.cells:
            source = _followed(self.matrix, cell)
            if source is not None and (source, cell.budget) in found:
                how = How.BASELINE if source == self.matrix.baseline.name else How.SOURCE
                found.setdefault(cell.key, RateChoice(found[source, cell.budget].rate, how))
        return found

    @property
    def chosen(self) -> Rates:
        """(arm, budget) -> the rate it is evaluated at; a cell is left out while it is open, or where none trains."""
        return {key: choice.rate for key, choice in self.choices.items() if choice.rate is not None}

    @property
    def untrainable(self) -> set[CellKey]:
        """Cells that diverged at every rate, or whose baseline did, and so are never evaluated."""
        return {key for key, choice in self.choices.items() if choice.rate is None}

    @property
    def edges(self) -> list[Edge]:
        """Best rates that lie at the end of what was tried."""
        found = []
        for key, choice in self.choices.items():
            if choice.edge:
                lowest_tried = min(self.asked[key])
                rate = choice.rate or lowest_tried
                beyond = stepped(rate, rate != lowest_tried)
                found.append(Edge(*key, rate, beyond, choice.rate is not None, by_steps=True))
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """How each rate was chosen, for the ledger: the reading wing has no matrix."""
        beyond = {(edge.arm, edge.budget): (edge.rate, edge.beyond) for edge in self.edges}
        rows = [
            {
                "arm": arm, "budget": budget, "rate": choice.rate, "how": choice.how.value, "cliff": choice.cliff,
                "edge": beyond.get((arm, budget)),
            }
            for (arm, budget), choice in self.choices.items()
        ]  # fmt: skip
        return {"rate_choices": rows}

    def expected_runs(self) -> dict[Phase, int]:
        """How many runs the study has in the end, by what is known now, and for the rest by `first_rates`.

        With looks, by the first of them.
        """
        first, asked = first_rates(self.matrix), self.asked
        rates = {**first, **asked}
        for budget, own in self._baseline.items():
            key = self.matrix.baseline.name, budget
            if not own.done:  # what follows once it is
                rates[key] = (*asked[key], *first[key][3:])
        for key in self.untrainable - set(asked):
            rates.pop(key, None)
        return self.matrix.counts(rates, self.untrainable, self.matrix.first_seeds)

    @functools.cached_property
    def _baseline(self) -> dict[str, Climb]:
        """Budget -> how far the baseline has come there; budgets that have not begun are left out."""
        first, *others = [c.budget for c in self.matrix.cells if c.role in (Role.BASELINE, Role.ASSAY)]
        found = {first: self._climbed(first, self.matrix.start)}
        if found[first].done:
            rate = self._choice(first, found[first]).rate
            start = self.matrix.start if rate is None else around(rate)
            found |= {budget: self._climbed(budget, start) for budget in others}
        return found

    def _climbed(self, budget: str, start: Sequence[float]) -> Climb:
        losses = self.losses.get((self.matrix.baseline.name, budget), {})
        return climb(start, losses, functools.partial(lowest, losses))

    @functools.cached_property
    def _rates(self) -> dict[str, RateChoice]:
        """Budget -> the baseline's rate, where it is decided."""
        return {budget: self._choice(budget, own) for budget, own in self._baseline.items() if own.done}

    def _choice(self, budget: str, own: Climb) -> RateChoice:
        if own.best is None:
            return RateChoice(None, How.GRID, own.edge)
        # Rates that were added later, to check the arms at, have no part in what was chosen before them.
        every = self.losses[self.matrix.baseline.name, budget]
        losses = {rate: by_seed for rate, by_seed in every.items() if rate in own.asked}
        cliff = beyond_cliff(own.best, losses, self.frozen)
        found = None if own.edge else refined(own.best, losses, cliff)
        return RateChoice(found or own.best, How.VERTEX if found else How.GRID, own.edge, cliff)

    @functools.cached_property
    def _checked(self) -> dict[str, tuple[float, float, float]]:
        """Budget with arms -> the rates that every arm is tried at, where the baseline's is known."""
        found = {}
        for budget, choice in self._rates.items():
            if choice.rate is not None and self._cells(budget, Role.ARM):
                found[budget] = around(choice.rate, self._baseline[budget].asked)
        return found

    @functools.cached_property
    def _arms(self) -> dict[CellKey, Climb]:
        """How far each arm has come at the budgets where all are finished at the three rates."""
        found = {}
        for budget, rates in self._checked.items():
            cells = self._cells(budget, Role.BASELINE, Role.ARM)
            if all(rate in self.losses.get(cell.key, {}) for cell in cells for rate in rates):
                noise = self._noise(cells, rates)
                for cell in self._cells(budget, Role.ARM):
                    found[cell.key] = self._checked_arm(cell, rates, noise)
        return found

    def _checked_arm(self, cell: Cell, rates: tuple[float, float, float], noise: Noise | None) -> Climb:
        losses = self.losses[cell.key]
        return climb(rates, losses, lambda among: preferred(losses, among, rates[1], noise))

    def _noise(self, cells: Sequence[Cell], rates: tuple[float, float, float]) -> Noise | None:
        """Of a step's difference, over cells and both sides; a side that diverged with some seed has no part in it."""
        low, centre, high = rates
        every = [self.losses[cell.key] for cell in cells]
        trained = [own for own in every if mean_loss(own[centre]) is not None]
        return pooled(paired(own[centre], own[side]) for own in trained for side in (low, high) if mean_loss(own[side]))

    def _cells(self, budget: str, *roles: Role) -> list[Cell]:
        return [cell for cell in self.matrix.cells if cell.budget == budget and cell.role in roles]


def _followed(matrix: StudyMatrix, cell: Cell) -> str | None:
    """The arm whose rate a control takes; None for what is tuned itself."""
    if cell.role in (Role.BASELINE, Role.ARM, Role.ASSAY):
        return None
    if cell.arm.name in matrix.shadow_of:
        return matrix.shadow_of[cell.arm.name]
    options = cell.arm.options
    arms = [other.arm for other in matrix.cells if other.role is Role.ARM and other.budget == cell.budget]
    same = [arm for arm in arms if arm.strategy is not None and arm.strategy == options.get("source")]

    def differs(arm: ArmPart) -> bool:
        """Whether it has other options; bounds stand with the control itself."""
        return bool({k: v for k, v in arm.options.items() if k not in options} != options.get("source_options", {}))

    return min(same, key=differs).name if same else matrix.baseline.name
