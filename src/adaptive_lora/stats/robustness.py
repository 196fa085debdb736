"""Does a verdict hang on the learning rate? The same comparison on the tuning runs, one rate lower and one higher.

Each side is taken at the rate next to the one that it is evaluated at (`rate_choice.next_tried`), arm less baseline,
paired by tuning seed, on validation. With the two or three seeds that there are, one comparison says little of its own
noise: variances are pooled over all comparisons at a budget, of each side by itself, as higher rates are noisier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.rate_choice import Losses, Noise, next_tried, paired, pooled
from adaptive_lora.stats.run_table import Comparison, Phase, Status

LEVEL = 0.95
NEARLY_ALL = 0.95
"""From this share of clipped steps on, every step counts as clipped."""

Cell = tuple[str, str]
"""(arm, budget)."""


@dataclass(frozen=True)
class AtRate:
    """An arm against the baseline on the tuning runs, each at a rate."""

    rate: float
    baseline_rate: float
    difference: Interval | None
    """Arm less baseline, nats per token, with the pooled noise; None where no seed completed both."""
    diverged: tuple[int, int]
    """Runs of the arm and of the baseline."""
    seeds: int

    @property
    def direction(self) -> int:
        """-1 where the arm is shown to be better, 1 worse, 0 neither.

        One that diverges with every seed, where the other never does, is worse.
        """
        if self.seeds and self.seeds in self.diverged and 0 in self.diverged:
            return 1 if self.diverged[0] else -1
        found = self.difference
        if found is None or found.low is None or found.high is None:
            return 0
        return int(found.low > 0) - int(found.high < 0)


@dataclass(frozen=True)
class RateLine:
    """A comparison at the rates that it is judged at and at those beside them."""

    comparison: Comparison
    difference: float | None
    """As it is judged, on test."""
    lower: AtRate | None
    chosen: AtRate | None
    higher: AtRate | None
    """None where the arm or the baseline was not tried there."""

    @property
    def changes_sign(self) -> bool:
        """Whether at a neighbouring rate the difference is shown to have the other sign than where it is judged."""
        if not self.difference:
            return False
        sign = 1 if self.difference > 0 else -1
        return any(side is not None and side.direction == -sign for side in (self.lower, self.higher))


def rate_lines(
    runs: pd.DataFrame, differences: Mapping[Comparison, float | None], chosen: Mapping[Cell, float], baseline: str
) -> dict[Comparison, RateLine]:
    """Of the comparisons whose arm and baseline were tuned; `chosen`: (arm, budget) -> the rate it is evaluated at.

    `runs` is a `runs_table`; `differences` has the difference of each comparison as it is judged.
    """
    losses = tuning_losses(runs)
    found: dict[str, dict[Comparison, AtRate]] = {"lower": {}, "chosen": {}, "higher": {}}
    wanted = [c for c in differences if {(c.arm, c.budget), (baseline, c.budget)} <= losses.keys() & chosen.keys()]
    for side, at in found.items():
        for budget in dict.fromkeys(c.budget for c in wanted):
            own = [c for c in wanted if c.budget == budget]
            at |= _at_side(own, side, (losses, chosen), baseline)
    return {c: RateLine(c, differences[c], *(at.get(c) for at in found.values())) for c in wanted}


def tuning_losses(runs: pd.DataFrame) -> dict[Cell, Losses]:
    """(arm, budget) -> rate -> tuning seed -> validation loss, None where the run diverged."""
    ended = runs["status"].isin([Status.COMPLETED, Status.DIVERGED])
    found: dict[Cell, dict[float, dict[int, float | None]]] = {}
    for run in runs[(runs["phase"] == Phase.TUNING) & ended].to_dict("records"):
        lost = run["status"] == Status.DIVERGED or pd.isna(run["validation_loss"])
        at = found.setdefault((run["arm"], run["budget"]), {}).setdefault(float(run["learning_rate"]), {})
        at[int(run["seed"])] = None if lost else float(run["validation_loss"])
    return dict(found)


def _at_side(
    family: Sequence[Comparison],
    side: str,
    known: tuple[Mapping[Cell, Losses], Mapping[Cell, float]],
    baseline: str,
) -> dict[Comparison, AtRate]:
    losses, chosen = known
    pairs = {}
    for c in family:
        cells = [(c.arm, c.budget), (baseline, c.budget)]
        rates = _rates([(losses[cell], chosen[cell]) for cell in cells], side)
        if rates is not None:
            pairs[c] = rates, [losses[cell][rate] for cell, rate in zip(cells, rates, strict=True)]
    noise = pooled(paired(*both) for _, both in pairs.values())
    return {
        c: AtRate(
            *rates,
            difference=_interval(paired(*both), noise),
            diverged=(_diverged(both[0]), _diverged(both[1])),
            seeds=len(both[0].keys() & both[1].keys()),
        )
        for c, (rates, both) in pairs.items()
    }


def _rates(pair: Sequence[tuple[Losses, float]], side: str) -> tuple[float, float] | None:
    """The rates of arm and baseline on a side; the same one where both are evaluated at the same."""
    (arm, arm_rate), (base, base_rate) = pair
    if side == "chosen":
        return (arm_rate, base_rate) if arm_rate in arm and base_rate in base else None
    both = set(arm) & set(base) if arm_rate == base_rate else None
    beside: Callable[[Losses, float], float | None] = lambda own, rate: next_tried(  # noqa: E731
        rate, own if both is None else both, up=side == "higher"
    )
    first, second = beside(arm, arm_rate), beside(base, base_rate)
    return None if first is None or second is None else (first, second)


def _diverged(by_seed: Mapping[int, float | None]) -> int:
    return sum(loss is None for loss in by_seed.values())


def _interval(differences: Sequence[float], noise: Noise | None) -> Interval | None:
    if not differences:
        return None
    n, mean = len(differences), math.fsum(differences) / len(differences)
    if noise is None:
        return Interval(mean, None, None, n, LEVEL)
    half = noise.half_width(n, (1 - LEVEL) / 2)
    return Interval(mean, mean - half, mean + half, n, LEVEL)


def rate_cautions(
    lines: Mapping[Comparison, RateLine],
    family: Collection[Comparison],
    baseline: str,
    at_edge: Collection[Cell] = (),
    clipped: Mapping[Cell, float] | None = None,
) -> dict[Comparison, tuple[Caution, ...]]:
    """What the rates give cause for, by comparison of a family, the empty ones too.

    `at_edge`: cells whose best rate lies at the end of what was tried; `clipped`: the share of clipped steps at the
    rate that each cell is evaluated at. Either counts for the arm as for the baseline.

    >>> rate_cautions({}, [Comparison("a", "rank:8")], "uniform", at_edge=[("uniform", "rank:8")])
    {Comparison(arm='a', budget='rank:8'): (<Caution.EDGE: 'rate at edge of grid'>,)}
    """
    shares = clipped or {}
    found = {}
    for c in family:
        cells = [(c.arm, c.budget), (baseline, c.budget)]
        causes = {
            Caution.EDGE: any(cell in at_edge for cell in cells),
            Caution.RATE: c in lines and lines[c].changes_sign,
            Caution.CLIPPED: any(shares.get(cell, 0.0) >= NEARLY_ALL for cell in cells),
        }
        found[c] = tuple(caution for caution, there in causes.items() if there)
    return found
