"""Power over new seeds and new records: what a size of study shows, and how wide its intervals are.

All of it follows from the components of a difference's variance (`stats.crossed.Components`), known from a pilot or
from tuning runs. With S seeds and R records the estimate's variance is seeds / S + records / R + both / (S R), and the
test's statistic close to a noncentral t. A family of comparisons is judged by step-down max-T; power here is that of
its first step, where every comparison is still in the family, so that it promises too little rather than too much.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from adaptive_lora.stats.crossed import Components
from adaptive_lora.stats.estimators import Floats
from adaptive_lora.stats.looks import decided_at
from adaptive_lora.stats.metrics import TEST_LOSS
from adaptive_lora.stats.spreads import Spread
from adaptive_lora.stats.step_down import Family
from adaptive_lora.stats.verdicts import Judgement

POWER = 0.8
"""Chance of showing what is there: a difference, or that there is none beyond the margin."""
NODES = 400
"""Points of the t power's integral: right to about 0.0001."""
MOST = 1000
"""Seeds beyond which no number is given."""


@dataclass(frozen=True)
class Design:
    """What a study asks of its seeds and its records."""

    seeds: int
    """At most, where there are looks."""
    alpha: float
    comparisons: int
    """How many share alpha."""
    margin: float | None
    """In that `unit`; None for a share of what half the budget costs."""
    records: int = 1
    """Of the test split, or of a study's own command; 1 where values by record are not known, so that all is about
    these records alone."""
    looks: tuple[int, ...] = ()
    """After how many seeds it is judged; empty: once, after all."""
    correlation: float = 0.0
    """Between two comparisons, which share a baseline."""
    unit: str = TEST_LOSS.unit
    """Of differences and the margin."""
    own_records: bool = False
    """Whether the records are a command's or a task's, of which the study's test split says nothing."""

    @property
    def final_alpha(self) -> float:
        """What the looks before leave for the last one, at which nearly all of the power lies; alpha without looks."""
        return decided_at(self.looks or (self.seeds,), self.alpha)[-1]


@dataclass(frozen=True)
class ArmPower:
    """Of one arm's comparison with the baseline, were it to vary as in the pilot."""

    arm: str
    budget: str
    sd: float
    """Of the paired differences by seed, on so many records as the design has, nats per token."""
    half_width: float
    """Of the interval over new seeds and new records, either side of the difference."""
    detectable: float
    """The smallest difference found with a power of `POWER`, by the last look where there are several."""
    margin: float | None
    """The design's, or measured; None where it is to be measured and was not."""
    seeds_for_margin: int | None
    """Seeds that find a difference as large as the margin with that power; None beyond `MOST`, which is so where the
    records are too few for any number of seeds."""
    seeds_for_equivalence: int | None
    """Seeds that show equivalence with that power, were there no difference."""
    by_record: bool
    """Whether losses by record are known; without, all of this is about the records that were tested."""


def power_by_arm(spreads: Sequence[Spread], design: Design) -> list[ArmPower]:
    """One for each comparison of a pilot, or of the study itself."""
    return [_arm_power(spread, design) for spread in spreads] if design.seeds > 1 else []


def _arm_power(spread: Spread, design: Design) -> ArmPower:
    own, records = spread.difference, design.records if spread.by_record else 1
    family = Family(design.final_alpha, max(1, design.comparisons), design.correlation)
    factor, for_margin, for_equivalence = spread.freedom_factor, None, None
    if (found := spread.margin) is not None:
        for_margin = fewest(lambda n: power_of(found, own, n, records, family, factor(n)) >= POWER)
        for_equivalence = fewest(
            lambda n: equivalence_power(found, spread.contrast, n, records, family, factor(n)) >= POWER
        )
    return ArmPower(
        arm=spread.arm,
        budget=spread.budget,
        sd=math.sqrt(own.seeds + own.both / records),
        half_width=half_width(own, design.seeds, records, 1 - design.alpha, factor(design.seeds)),
        detectable=smallest_detectable(own, design.seeds, records, family, freedom_factor=factor(design.seeds)),
        margin=found,
        seeds_for_margin=for_margin,
        seeds_for_equivalence=for_equivalence,
        by_record=spread.by_record,
    )


def error_of(components: Components, seeds: int, records: int, freedom_factor: float = 1.0) -> tuple[float, float]:
    """Standard error of a difference over so many seeds and records, and its degrees of freedom as `Crossed.error` has
    them: those of the seeds, or of the records where these are fewer.

    `freedom_factor`: degrees of freedom of the seeds' variance, per (seeds - 1); `stats.moderation` makes it larger.

    >>> error_of(Components(seeds=4.0, records=0.0, both=0.0), seeds=4, records=100)
    (1.0, 3.0)
    """
    parts = _parts(components, seeds, records)
    freedom = freedom_factor * (seeds - 1)
    return math.sqrt(sum(parts)), min(freedom, records - 1) if records > 1 else freedom


def _parts(components: Components, seeds: int, records: int) -> tuple[float, float]:
    """Of the difference's variance, what seeds add and what records add."""
    if seeds < 2 or records < (2 if components.records else 1):
        raise ValueError(f"An error takes two seeds, and two records where they vary; got {seeds} and {records}.")
    return (components.seeds + components.both / records) / seeds, components.records / records


def _spread_of_error(components: Components, seeds: int, records: int, freedom_factor: float) -> Floats:
    """The estimated over the true standard error, in the middles of equal probabilities.

    What varies is the variance of seeds, by its chi²; that of records rests on hundreds of them.
    """
    by_seed, by_record = _parts(components, seeds, records)
    share = by_seed / (by_seed + by_record)
    return np.asarray(np.sqrt(share * _chi2(freedom_factor * (seeds - 1)) + 1 - share), dtype=np.float64)


def half_width(
    components: Components, seeds: int, records: int, level: float = 0.95, freedom_factor: float = 1.0
) -> float:
    """How far the interval over new seeds and new records reaches to either side.

    >>> round(half_width(Components(seeds=4.0, records=0.0, both=0.0), seeds=4, records=100), 3)
    3.182
    """
    error, freedom = error_of(components, seeds, records, freedom_factor)
    return float(special.stdtrit(freedom, 0.5 + level / 2)) * error


def width_with(judgement: Judgement, seeds: int) -> float | None:
    """Half width of a comparison's interval, had it so many seeds and the records that it has; None where it has fewer
    than two seeds, of which nothing can be reckoned.

    With the seeds that it has it is the half width of its own interval.
    """
    found = judgement.interval
    if judgement.n < 2 or seeds < 2 or found is None or found.low is None or found.high is None:
        return None
    own, level = (found.high - found.low) / 2, found.level
    if judgement.components is None or judgement.records is None:
        error = own / float(special.stdtrit(judgement.n - 1, 0.5 + level / 2))
        return half_width(Components(error**2 * judgement.n, 0.0, 0.0), seeds, 1, level)
    parts, records = judgement.components, judgement.records
    reckoned = half_width(parts, judgement.n, records, level)
    # Its variance may have been drawn towards others', with more degrees of freedom than its own seeds give: they are
    # those that make its interval what it is.
    low, high = 1.0, 4.0
    for _ in range(40):
        factor = (low + high) / 2
        low, high = (factor, high) if half_width(parts, judgement.n, records, level, factor) > own else (low, factor)
    return half_width(parts, seeds, records, level, high if own < reckoned else 1.0)


def power_of(
    difference: float,
    components: Components,
    seeds: int,
    records: int,
    family: Family,
    freedom_factor: float = 1.0,
) -> float:
    """Chance that a comparison with this true difference is shown to differ, at the first step of the family.

    P(|T| > t(1 - level / 2)), with the degrees of freedom of `error_of`: of a noncentral t, centred at the difference
    over its standard error, where records do not vary; where they do, less of the error is estimated from few seeds.

    >>> round(power_of(1.0, Components(1.0, 0.0, 0.0), seeds=10, records=100, family=Family(0.05)), 2)
    0.8
    """
    error, freedom = error_of(components, seeds, records, freedom_factor)
    if error == 0:
        return float(difference != 0)
    quantile = -special.stdtrit(freedom, family.first_level() / 2)
    return _t_power(difference / error, quantile * _spread_of_error(components, seeds, records, freedom_factor))


def smallest_detectable(
    components: Components,
    seeds: int,
    records: int,
    family: Family,
    power: float = POWER,
    freedom_factor: float = 1.0,
) -> float:
    """The difference that is found with that power; the same units as the components' square roots.

    >>> round(smallest_detectable(Components(1.0, 0.0, 0.0), seeds=10, records=100, family=Family(0.05)), 2)
    1.0
    """
    error, freedom = error_of(components, seeds, records, freedom_factor)
    if error == 0:
        return 0.0
    quantile = -special.stdtrit(freedom, family.first_level() / 2)
    bounds = quantile * _spread_of_error(components, seeds, records, freedom_factor)
    return error * _detectable_centre(bounds, power)


def equivalence_power(
    margin: float,
    components: Components,
    seeds: int,
    records: int,
    family: Family,
    freedom_factor: float = 1.0,
) -> float:
    """Chance that a comparison without any true difference is shown to be equivalent, by two one-sided t tests.

    With e the standard error, t the level's quantile and s the estimated over the true deviation, the mean over s of
    2 Phi(margin / e - t s) - 1, where that is above zero. With a measured margin `components` are those of
    arm - base -/+ margin, so that its error counts; then a study that misses on both sides is counted twice, and the
    power is rather more than this.

    >>> round(equivalence_power(1.0, Components(1.0, 0.0, 0.0), seeds=11, records=100, family=Family(0.05)), 2)
    0.85
    """
    error, freedom = error_of(components, seeds, records, freedom_factor)
    if error == 0:
        return float(margin > 0)
    level = family.first_level(sided=1)
    bounds = special.stdtrit(freedom, 1 - level) * _spread_of_error(components, seeds, records, freedom_factor)
    return float(np.mean(np.maximum(2 * special.ndtr(margin / error - bounds) - 1, 0.0)))


def fewest(enough: Callable[[int], bool], least: int = 2, most: int = MOST) -> int | None:
    """The fewest that are enough, where more never are too few; by bisection. None where `most` are not.

    >>> fewest(lambda n: n * n >= 50), fewest(lambda n: False)
    (8, None)
    """
    if most < least or not enough(most):
        return None
    low, high = least, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _t_power(centre: float, bounds: Floats) -> float:
    """The mean, over what the error may be estimated as, of the chance that a score of this mean is out of bounds.

    `scipy.special.nctdtr` has no answer for some far centres.
    """
    return float(np.mean(special.ndtr(centre - bounds) + special.ndtr(-centre - bounds)))


@functools.lru_cache(maxsize=1024)
def _chi2(freedom: float) -> Floats:
    """chi² / freedom, in the middles of equal probabilities."""
    middles = (np.arange(NODES) + 0.5) / NODES
    return np.asarray(special.chdtri(freedom, middles) / freedom, dtype=np.float64)


def _detectable_centre(bounds: Floats, power: float) -> float:
    """By bisection, in standard errors."""
    if not 0 < power < 1:
        raise ValueError(f"`power` must lie between 0 and 1, got {power}.")
    low, high = 0.0, 1.0
    while _t_power(high, bounds) < power:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _t_power(middle, bounds) >= power else (middle, high)
    return high
