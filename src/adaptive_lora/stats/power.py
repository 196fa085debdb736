"""Power: which difference a number of seeds detects, and how many seeds a difference or an equivalence takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.estimators import Floats, sign_patterns
from adaptive_lora.stats.seeds import smallest_p
from adaptive_lora.streams import numpy_stream

POWER = 0.8
"""Chance of showing what is there: a difference, or that there is none beyond the margin."""
LAST_SIMULATED = 12
"""Up to so many seeds the test's steps show, and power is simulated; above, it is a t test's."""
FINEST = 50
"""With so many seeds the steps of the test's level are finer than floats can distinguish."""
DRAWS = 20_000
"""Simulated studies: a standard error of 0.003 at a power of 0.8."""
NODES = 400
"""Points of the t power's integral: right to about 0.0001."""
MOST = 1000
"""Seeds beyond which no number is given."""


@dataclass(frozen=True)
class Design:
    """What a study asks of its seeds."""

    seeds: int
    alpha: float
    comparisons: int
    """How many share alpha; Holm's first step."""
    margin: float


@dataclass(frozen=True)
class ArmPower:
    """Of one arm's comparison with the baseline, were its differences spread as in the pilot."""

    arm: str
    budget: str
    sd: float
    """Of the paired differences by seed, nats per token."""
    detectable: float | None
    """The smallest difference found with a power of `POWER`; None where the seeds can decide nothing."""
    seeds_for_margin: int | None
    """Seeds that find a difference as large as the margin with that power."""
    seeds_for_equivalence: int | None
    """Seeds that show equivalence with that power, were there no difference."""


def power_by_arm(pilot: Sequence[ArmSummary], design: Design) -> list[ArmPower]:
    """One for each arm of the pilot that has differences of two seeds or more."""
    alpha, comparisons, found = design.alpha, max(1, design.comparisons), []
    for arm in pilot:
        if len(arm.differences) < 2:
            continue
        sd = float(np.std([difference for _, difference in arm.differences], ddof=1))
        detectable = smallest_detectable(sd, design.seeds, alpha, comparisons)
        for_margin = seeds_to_detect(design.margin, sd, alpha, comparisons)
        for_equivalence = seeds_to_call_equivalent(0.0, sd, design.margin, alpha)
        found.append(ArmPower(arm.arm, arm.budget, sd, detectable, for_margin, for_equivalence))
    return found


def power_of(difference: float, sd: float, seeds: int, level: float) -> float:
    """Chance that the exact two-sided sign-flip test at `level` rejects, for normal paired differences.

    The test rejects where at most k = floor(level · 2^(n - 1)) of its pairs of sign patterns are as far out, so its
    true level is 2k / 2^n: none below 2 / 2^n. Simulated for few seeds with the same normal draws at every
    difference; for more, the noncentral t's power at that true level.

    >>> power_of(1.0, 1.0, seeds=5, level=0.05)
    0.0
    """
    extreme = _extreme_patterns(seeds, level)
    if extreme == 0 or difference == 0 == sd:
        return 0.0
    if sd == 0:
        return 1.0
    shift = difference / sd
    if seeds <= LAST_SIMULATED:
        limits = _critical_shifts(seeds, extreme)
        return float(np.searchsorted(limits, shift) + np.searchsorted(limits, -shift)) / len(limits)
    return _t_power(shift, seeds, math.ldexp(extreme, 1 - min(seeds, FINEST)))


def smallest_detectable(sd: float, seeds: int, alpha: float, comparisons: int, power: float = POWER) -> float | None:
    """The difference found with that power at alpha / comparisons, Holm's first step; None where 2 / 2^n exceeds it.

    >>> smallest_detectable(0.01, seeds=7, alpha=0.05, comparisons=5) is None
    True
    """
    level = alpha / comparisons
    return None if smallest_p(seeds) > level else sd * _detectable_shift(seeds, level, power)


def seeds_to_detect(
    difference: float, sd: float, alpha: float, comparisons: int, power: float = POWER, most: int = MOST
) -> int | None:
    """The fewest seeds that find the difference with that power at alpha / comparisons; None beyond `most`.

    >>> seeds_to_detect(0.0, 0.01, alpha=0.05, comparisons=1) is None
    True
    """
    level = alpha / comparisons
    return _fewest(lambda seeds: power_of(difference, sd, seeds, level) >= power, 1, most)


def equivalence_power(mean: float, sd: float, seeds: int, margin: float, alpha: float = 0.05) -> float:
    """Chance that the t interval of level 1 - 2 alpha lies within ±margin, for normal differences of this true mean and
    deviation.

    With e = sd / sqrt(n), t = t(1 - alpha, n - 1) and s the estimated over the true deviation, the mean over s of
    Phi((margin - mean) / e - t · s) - Phi(-(margin + mean) / e + t · s), where that is above zero: an interval can be
    wider than the margins, however near its middle is.

    >>> equivalence_power(0.0, 0.0, seeds=2, margin=0.01), equivalence_power(0.02, 0.0, seeds=2, margin=0.01)
    (1.0, 0.0)
    """
    if sd == 0:
        return float(abs(mean) <= margin)
    error = sd / math.sqrt(seeds)
    half_widths = special.stdtrit(seeds - 1, 1 - alpha) * _spreads(seeds)
    below = special.ndtr((margin - mean) / error - half_widths)
    return float(np.mean(np.maximum(below - special.ndtr(half_widths - (margin + mean) / error), 0.0)))


def seeds_to_call_equivalent(
    mean: float, sd: float, margin: float, alpha: float = 0.05, power: float = POWER, most: int = MOST
) -> int | None:
    """The fewest seeds that show an equivalence at alpha with that power, for this true mean; None beyond `most`.

    >>> seeds_to_call_equivalent(0.0, 0.01, 0.01), seeds_to_call_equivalent(0.02, 0.01, 0.01)
    (11, None)
    """
    return _fewest(lambda seeds: equivalence_power(mean, sd, seeds, margin, alpha) >= power, 2, most)


def _extreme_patterns(seeds: int, level: float) -> int:
    """Pairs of opposite sign patterns, the observed one among them, that a rejection at `level` allows."""
    return math.floor(math.ldexp(level, min(seeds, FINEST) - 1)) if seeds > 0 else 0


@functools.cache
def _critical_shifts(seeds: int, extreme: int) -> Floats:
    """For each draw z of n standard normals, the shift above which z + shift is called positive; sorted.

    A pattern's sum is s·z + shift · sum(s), so it stays as far out as the observed one up to a shift of
    (s·z - sum z) / (n - sum s). Called positive is a draw shifted beyond the k-th largest of these. -z is as likely
    as z, so the same numbers say how often it is called negative.
    """
    half = sign_patterns(seeds)
    patterns = np.concatenate([half[1:], -half])  # (P, n): all but the observed
    draws = numpy_stream(0, "power", seeds).standard_normal((DRAWS, seeds))
    slopes = seeds - patterns.sum(axis=1)
    limits = np.empty(DRAWS)
    for start in range(0, DRAWS, 1000):
        z = draws[start : start + 1000]
        bounds = (z @ patterns.T - z.sum(axis=1, keepdims=True)) / slopes  # (draws, P)
        limits[start : start + 1000] = np.partition(bounds, -extreme, axis=1)[:, -extreme]
    limits.sort()
    limits.flags.writeable = False
    return limits


def _t_power(shift: float, seeds: int, level: float) -> float:
    """P(|T| > t(1 - level / 2)) of a noncentral t with n - 1 degrees of freedom, centred at shift · sqrt(n).

    T is (normal + centre) / spread, so this is the mean of a normal probability over the spread's distribution.
    `scipy.special.nctdtr` has no answer for some far centres.
    """
    bounds = -special.stdtrit(seeds - 1, level / 2) * _spreads(seeds)
    centre = shift * math.sqrt(seeds)
    return float(np.mean(special.ndtr(centre - bounds) + special.ndtr(-centre - bounds)))


@functools.lru_cache(maxsize=1024)
def _spreads(seeds: int) -> Floats:
    """sqrt(chi² / (n - 1)), the estimated over the true standard deviation, in the middles of equal probabilities."""
    middles = (np.arange(NODES) + 0.5) / NODES
    return np.asarray(np.sqrt(special.chdtri(seeds - 1, middles) / (seeds - 1)), dtype=np.float64)


@functools.lru_cache(maxsize=1024)
def _detectable_shift(seeds: int, level: float, power: float) -> float:
    """By bisection, in standard deviations."""
    if not 0 < power < 1:
        raise ValueError(f"`power` must lie between 0 and 1, got {power}.")
    low, high = 0.0, 1.0
    while power_of(high, 1.0, seeds, level) < power:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle, 1.0, seeds, level) >= power else (middle, high)
    return high


def _fewest(enough: Callable[[int], bool], least: int, most: int) -> int | None:
    """The fewest seeds that are enough, where more never are too few; by bisection."""
    if most < least or not enough(most):
        return None
    low, high = least, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
