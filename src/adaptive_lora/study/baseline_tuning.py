"""Learning rates by `tune: baseline`: tuned on the baseline at each budget, then checked for every arm.

1. The baseline is tried at three rates a factor 1.8 apart around a first guess, or at the study file's list; rates are
   added one step at a time until the best has both its neighbours. The parabola in log rate through the three gives
   the rate. The study's first budget comes first; its rate is the first guess at all others.
2. At each budget with arms, every arm of the study's own is tried one step to either side of that rate, where the
   baseline has been. How much more the arm gains from the lower to the higher than the baseline does tells where its
   own best lies: within half a step beyond the noise, which is pooled over arms, it takes the baseline's rate. One that
   does not is tried at that rate too, gets another where that is better beyond the noise, and goes on step by step. So
   are all where the baseline has no parabola, or something diverged.
3. Random controls and those with more compute take the baseline's rate, a shuffled plan takes that of the arm whose
   plan it shuffles.

Everything follows from the finished tuning runs alone, whatever the order they finished in.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from adaptive_lora.stats.rate_choice import (
    Climb,
    Losses,
    Noise,
    Parabola,
    agrees,
    around,
    beyond_cliff,
    bowl_around,
    climb,
    falls_off,
    lowest,
    mean_loss,
    paired,
    pooled,
    preferred,
    rounded,
    stepped,
    tilts,
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
    """Whether training breaks one step above; see `stats.rate_choice.falls_off`."""


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
        for budget, sides in self._sides.items():
            key = self.matrix.baseline.name, budget
            found[key] = tuple(sorted({*found[key], *sides}))
            for cell in self._cells(budget, Role.ARM):
                own = self._arms.get(cell.key)
                found[cell.key] = own.asked if own else sides
        return found

    @functools.cached_property
    def choices(self) -> dict[CellKey, RateChoice]:
        """Of every cell that is decided; a choice once made stays."""
        found = {(self.matrix.baseline.name, budget): choice for budget, choice in self._rates.items()}
        for key, own in self._arms.items():
            if own.done:
                of_baseline = own.best == self._rates[key[1]].rate
                cliff = own.best is not None and self._breaks_above(key, own.best)
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
        asked = self.asked
        rates = {**first_rates(self.matrix), **asked}
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
        cliff = beyond_cliff(own.best, self._searched(budget, own), self.frozen)
        bowl = self._bowl(budget, own)
        rate, how = (rounded(bowl.lowest), How.VERTEX) if bowl else (own.best, How.GRID)
        return RateChoice(rate, how, own.edge, cliff)

    def _searched(self, budget: str, own: Climb) -> Losses:
        """The baseline's, at the rates of its own search: those that arms are checked at have no part in its choice."""
        every = self.losses[self.matrix.baseline.name, budget]
        return {rate: by_seed for rate, by_seed in every.items() if rate in own.asked}

    def _bowl(self, budget: str, own: Climb) -> Parabola | None:
        """Of a finished search: what its rate comes from; None where the best that was tried is kept."""
        if own.best is None or own.edge:
            return None
        losses = self._searched(budget, own)
        return bowl_around(own.best, losses, beyond_cliff(own.best, losses, self.frozen))

    @functools.cached_property
    def _sides(self) -> dict[str, tuple[float, float]]:
        """Budget with arms -> the rates one step below and above the baseline's, where that is known."""
        found = {}
        for budget, choice in self._rates.items():
            if choice.rate is not None and self._cells(budget, Role.ARM):
                low, _, high = around(choice.rate, self._baseline[budget].asked)
                found[budget] = low, high
        return found

    @functools.cached_property
    def _arms(self) -> dict[CellKey, Climb]:
        """How far each arm has come, at the budgets where all are finished on both sides."""
        found: dict[CellKey, Climb] = {}
        for budget, sides in self._sides.items():
            cells = self._cells(budget, Role.BASELINE, Role.ARM)
            if all(side in self.losses.get(cell.key, {}) for cell in cells for side in sides):
                found |= self._checked(budget, sides)
        return found

    def _checked(self, budget: str, sides: tuple[float, float]) -> dict[CellKey, Climb]:
        """The arms that agree with the baseline's rate are done; the others are tried there too, and decided as one."""
        centre, agreed = self._rates[budget].rate, self._agreed(budget, sides)
        assert centre is not None
        rates = tuple(sorted({sides[0], centre, sides[1]}))
        doubted = [cell.key for cell in self._cells(budget, Role.ARM) if cell.key not in agreed]
        found = {key: Climb(sides, centre, done=True) for key in agreed}
        if not all(centre in self.losses[key] for key in doubted):
            return found | {key: Climb(rates) for key in doubted}
        noise = self._noise(budget, rates)
        for key in doubted:
            prefer = functools.partial(preferred, self.losses[key], centre=centre, noise=noise)
            found[key] = climb(rates, self.losses[key], prefer)
        return found

    def _agreed(self, budget: str, sides: tuple[float, float]) -> set[CellKey]:
        """Arms whose own best is not shown to lie further than half a step from the baseline's rate."""
        bowl = self._bowl(budget, self._baseline[budget])
        if bowl is None:
            return set()
        base = self.losses[self.matrix.baseline.name, budget]
        every = {cell.key: tilts(self.losses[cell.key], base, *sides) for cell in self._cells(budget, Role.ARM)}
        trained = {key: tilt for key, tilt in every.items() if tilt is not None}
        noise, allowed = pooled(trained.values()), bowl.tilt_of_half_a_step(*sides)
        return {key for key, tilt in trained.items() if agrees(tilt, noise, allowed)}

    def _noise(self, budget: str, rates: Sequence[float]) -> Noise | None:
        """Of a step's difference, over cells and steps; without rates that a cell was not tried at, or diverged at."""
        steps = []
        for cell in self._cells(budget, Role.BASELINE, Role.ARM):
            own = self.losses[cell.key]
            trained = [own[rate] for rate in rates if rate in own and mean_loss(own[rate]) is not None]
            steps += [paired(below, above) for below, above in itertools.pairwise(trained)]
        return pooled(steps)

    def _breaks_above(self, key: CellKey, rate: float) -> bool:
        """Whether training breaks one step above an arm's rate; where it was not tried there, by the rate below."""
        losses = self.losses[key]
        below, _, above = around(rate, losses)
        here = rate if rate in losses else below
        return above in losses and falls_off(mean_loss(losses[here]), mean_loss(losses[above]), self.frozen)

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
