"""Every run of a study as one value: which arms at which budgets, resolved once, and the runs that they make.

The matrix follows from the study file alone; runner, estimate, lock and status read it, and nobody derives it again.
Two inputs are known only during the study, so they are passed in: the grid of learning rates, which may grow, and the
rate chosen for each cell.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.rate_choice import around
from adaptive_lora.stats.run_table import Comparison, Phase
from adaptive_lora.study.protocol import (
    assay_budgets,
    baseline_of,
    compute_controls,
    control_arms,
    primary_comparisons,
    shadows,
    unclipped_controls,
)
from adaptive_lora.study.schema import ArmPart, ScalingPart, StudySpec
from adaptive_lora.study.schema_training import ONE_RATE_FOR_ALL, TrainPart
from adaptive_lora.study.settings import own_training, scaling_of, steps_of, training_of

CellKey = tuple[str, str]
"""(name of the arm, budget)."""
Rates = Mapping[CellKey, float]
"""The learning rate that each cell is evaluated at; cells without one are left out."""


class Role(StrEnum):
    """What a cell is for."""

    BASELINE = "baseline"
    ARM = "arm"
    CHANCE = "chance control"
    """Random ranks (`random`), or an arm's ranks on other modules (`shuffled`)."""
    COMPUTE = "compute control"
    """The baseline trained for as many updates as an arm that trains before it has a plan."""
    UNCLIPPED = "unclipped control"
    """The baseline without clipping of gradients."""
    ASSAY = "assay"
    """The baseline at half or twice a budget: can this task tell ranks apart?"""


@dataclass(frozen=True)
class Cell:
    """An arm at a budget, with everything that the study file leaves to defaults resolved."""

    arm: ArmPart
    budget: str
    role: Role
    scaling: ScalingPart
    training: TrainPart
    steps: int
    """Updates of a run."""

    @property
    def key(self) -> CellKey:
        """(name of the arm, budget)."""
        return self.arm.name, self.budget

    @property
    def label(self) -> str:
        """As it is written in sentences: `uniform at rank:8`."""
        return f"{self.arm.name} at {self.budget}"


@dataclass(frozen=True)
class Run:
    """One adapter to train: a cell with a learning rate and a seed."""

    phase: Phase
    cell: Cell
    learning_rate: float
    seed: int
    replica: int = 0
    """0 is the run, 1 its twin; it enters no random stream."""

    @property
    def arm(self) -> ArmPart:
        """The cell's arm."""
        return self.cell.arm

    @property
    def budget(self) -> str:
        """The cell's budget, as the study file writes it."""
        return self.cell.budget

    @property
    def label(self) -> str:
        """In a line: `evaluation uniform rank:8 seed 0 rate 0.001`."""
        return f"{self.phase} {self.arm.name} {self.budget} seed {self.seed} rate {self.learning_rate:g}"

    def run_id(self, context: Mapping[str, Any]) -> str:
        """Hash of what determines the result: the study's model, data and training (`context`) and this run.

        The arm's name and the phase are labels and do not enter.
        """
        identity = {
            "context": context,
            "arm": self.arm.model_dump(mode="json", exclude={"name", "scaling", "train"}),
            **({"train": own} if (own := own_training(self.arm)) else {}),
            "budget": self.budget,
            "scaling": self.cell.scaling.model_dump(mode="json"),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "replica": self.replica,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StudyMatrix:
    """Cells, comparisons and controls of a study, and the runs they make; see `matrix_of`."""

    spec: StudySpec
    cells: tuple[Cell, ...]
    """Budget by budget: arms, then controls; then the assay cells."""
    comparisons: tuple[Comparison, ...]
    """The primary ones, judged as one family."""
    compute_controls: Mapping[str, str]
    """Arm that trains before it has a plan -> the control at equal compute."""
    shadow_of: Mapping[str, str]
    """Control with an arm's own ranks at other places -> that arm; empty without the control `own-shuffled`."""

    @functools.cached_property
    def baseline(self) -> ArmPart:
        """The arm that all others are compared with."""
        return baseline_of(self.spec)

    @functools.cached_property
    def by_key(self) -> Mapping[CellKey, Cell]:
        """Every cell by (name of the arm, budget)."""
        return {cell.key: cell for cell in self.cells}

    @property
    def assay_budgets(self) -> tuple[str, ...]:
        """Budgets at which the baseline alone is trained."""
        return tuple(cell.budget for cell in self.cells if cell.role is Role.ASSAY)

    def arms_with_role(self, role: Role) -> tuple[ArmPart, ...]:
        """The arms with a role, each once."""
        return tuple({cell.arm.name: cell.arm for cell in self.cells if cell.role is role}.values())

    @functools.cached_property
    def fixed_rates(self) -> Rates:
        """The one learning rate of a study that tunes none; empty where there is a grid to choose from."""
        train = self.spec.train
        tuned = len(train.learning_rate) > 1 or train.widen or train.tune == "baseline"
        return {} if tuned else {cell.key: train.learning_rate[0] for cell in self.cells}

    @property
    def start(self) -> tuple[float, ...]:
        """The rates at which tuning begins: the study file's; by `tune: baseline` one alone stands amid two others."""
        rates = tuple(self.spec.train.learning_rate)
        return around(rates[0]) if len(rates) == 1 and self.spec.train.tune == "baseline" else rates

    @property
    def shares_rates(self) -> bool:
        """Whether what is tuned on the baseline alone holds for every arm."""
        return self.spec.train.tune in ONE_RATE_FOR_ALL

    @functools.cached_property
    def tuned_for_all(self) -> Mapping[str, CellKey]:
        """Budget -> the cell whose rate every arm has there, by `tune: shared` and `tune: shared-by-budget`."""
        budgets = tuple(dict.fromkeys(cell.budget for cell in self.cells))
        name, first = self.baseline.name, self.spec.budgets[0]
        return {budget: (name, first if self.spec.train.tune == "shared" else budget) for budget in budgets}

    def tuning_runs(self, grid: Sequence[float] | Mapping[CellKey, Collection[float]] | None = None) -> Iterator[Run]:
        """Every cell at every rate of the grid, or of its own, with every tuning seed; none where there is one rate and
        so no choice. By default the rates of the study file, or what its way of tuning asks for at least."""
        if not self.fixed_rates:
            by_cell = grid if isinstance(grid, Mapping) else None
            if grid is None and self.spec.train.tune != "every-arm":
                by_cell = first_rates(self)
            for cell in self.cells:
                same = self.start if grid is None or isinstance(grid, Mapping) else grid
                for rate in same if by_cell is None else by_cell.get(cell.key, ()):
                    for seed in self.spec.seeds.tuning:
                        yield Run(Phase.TUNING, cell, rate, seed)

    def evaluation_runs(
        self, rates: Rates, seeds: Sequence[int] | None = None, cells: Container[CellKey] | None = None
    ) -> Iterator[Run]:
        """Every cell that has a rate with every evaluation seed, seed by seed; twins of the baseline with the first.

        By default all that the study can ask for; `seeds` and `cells` narrow it down. Where there are looks, cells that
        no verdict needs have the seeds of the first alone.
        """
        for seed in self.spec.seeds.evaluation if seeds is None else seeds:
            for cell in self.cells if cells is None else (own for own in self.cells if own.key in cells):
                rate = rates.get(cell.key)
                if rate is not None and (seed in self.first_seeds or not self.is_brief(cell)):
                    yield Run(Phase.EVALUATION, cell, rate, seed)
                    if self._has_twin(cell, seed):
                        yield Run(Phase.EVALUATION, cell, rate, seed, replica=1)

    @functools.cached_property
    def first_seeds(self) -> tuple[int, ...]:
        """Evaluation seeds of the first look; all of them where there are no looks."""
        seeds, looks = self.spec.seeds.evaluation, self.spec.seeds.looks
        return tuple(seeds[: looks[0]] if looks else seeds)

    def is_brief(self, cell: Cell) -> bool:
        """Whether a cell describes and no verdict waits for it: controls of compute and clipping, and the baseline at a
        budget that is not half of one of the study's."""
        halves = map(halved, self.spec.budgets)
        return cell.role in (Role.COMPUTE, Role.UNCLIPPED) or (cell.role is Role.ASSAY and cell.budget not in halves)

    def _has_twin(self, cell: Cell, seed: int) -> bool:
        first = self.spec.seeds.evaluation[0]
        return "twin" in self.spec.controls and cell.role is Role.BASELINE and seed == first

    def possible_runs(self, rates: Iterable[float]) -> Iterator[Run]:
        """Every run that the study could ask for at some rates, twins of every evaluation run included."""
        seeds = {Phase.TUNING: self.spec.seeds.tuning, Phase.EVALUATION: self.spec.seeds.evaluation}
        for cell in self.cells:
            for rate in rates:
                for phase, own in seeds.items():
                    for seed in own:
                        yield Run(phase, cell, rate, seed)
                        if phase is Phase.EVALUATION:
                            yield Run(phase, cell, rate, seed, replica=1)

    def counts(
        self,
        grid: Sequence[float] | Mapping[CellKey, Collection[float]] | None = None,
        excluded: Container[CellKey] = (),
        seeds: Sequence[int] | None = None,
    ) -> dict[Phase, int]:
        """How many runs each phase can have, with this grid and, where not with all, with these evaluation `seeds`;
        `excluded`: cells that will have no rate."""
        # Any rate will do, as runs are only counted.
        rates = {cell.key: 1.0 for cell in self.cells if cell.key not in excluded}
        return {
            Phase.TUNING: sum(1 for _ in self.tuning_runs(grid)),
            Phase.EVALUATION: sum(1 for _ in self.evaluation_runs(rates, seeds)),
        }


def first_rates(matrix: StudyMatrix) -> dict[CellKey, tuple[float, ...]]:
    """Cell -> as many rates as are tried there where no first guess is far off; for counting.

    By `tune: shared` the grid for the baseline at the first budget, by `shared-by-budget` at each. By `tune: baseline`
    the baseline at the rates it starts from; every arm at the two beside the rate that is found; controls at none, as
    theirs follow from others.
    """
    start = matrix.start
    if matrix.shares_rates:
        return dict.fromkeys(matrix.tuned_for_all.values(), start)
    low, _, high = around(start[len(start) // 2])
    first = matrix.cells[0].budget
    found: dict[CellKey, tuple[float, ...]] = {}
    for cell in matrix.cells:
        begun = start if cell.budget == first else around(start[len(start) // 2])
        if cell.role in (Role.BASELINE, Role.ASSAY):
            found[cell.key] = tuple(begun)
        elif cell.role is Role.ARM:
            found[cell.key] = low, high
    return found


def matrix_of(spec: StudySpec) -> StudyMatrix:
    """The matrix of a study.

    Arms with fixed ranks ignore the budget, so they appear once, under the first.
    """
    longer = compute_controls(spec) if "compute" in spec.controls else {}
    roles = {arm.name: Role.COMPUTE for arm in longer.values()}
    roles |= {arm.name: Role.UNCLIPPED for arm in unclipped_controls(spec)}
    baseline = baseline_of(spec)
    cells = []
    for index, budget in enumerate(spec.budgets):
        for arm in spec.arms:
            if arm.ranks is None or index == 0:
                cells.append(_cell(spec, arm, budget, Role.BASELINE if arm == baseline else Role.ARM))
        for arm in control_arms(spec, budget):
            if arm.ranks is None or index == 0:
                cells.append(_cell(spec, arm, budget, roles.get(arm.name, Role.CHANCE)))
    cells += [_cell(spec, baseline, budget, Role.ASSAY) for budget in assay_budgets(spec)]
    names = {arm: control.name for arm, control in longer.items()}
    return StudyMatrix(spec, tuple(cells), primary_comparisons(spec), names, shadows(spec))


def _cell(spec: StudySpec, arm: ArmPart, budget: str, role: Role) -> Cell:
    return Cell(arm, budget, role, scaling_of(spec, arm), training_of(spec, arm), steps_of(spec, arm))
