"""How a learning rate is chosen from losses at a few: constant steps, a parabola, preferences beyond the noise.

Rates are compared by mean validation loss over tuning seeds; one that diverged with any seed is no candidate. All of it
is pure, and the same whatever the order in which runs finished.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

STEP = 1.8
"""Factor between neighbouring rates."""
MOST_STEPS = 4
"""How often rates are added to those that are tried first."""
CLIFF = 0.5
"""A rate that loses more than this share of what the best gains on the frozen model lies beyond a cliff."""
ALPHA = 0.05
"""One-sided level at which an arm prefers another rate than the baseline's."""
_SAME = STEP**0.55
"""A rate within this factor of the one a step away stands for it: half a step, and what rounding to two digits adds."""

Losses = Mapping[float, Mapping[int, float | None]]
"""Rate -> tuning seed -> validation loss, None where the run diverged; of rates whose every seed is finished."""


def rounded(rate: float) -> float:
    """To two significant digits.

    >>> rounded(0.0018181)
    0.0018
    """
    return float(f"{rate:.2g}")


def stepped(rate: float, up: bool, tried: Iterable[float] = ()) -> float:
    """The rate one step above or below: one that was tried there, within about half a step, else rounded.

    So a rate that lies between two of a grid has a neighbour of that grid on either side.

    >>> stepped(1e-3, up=True), stepped(1e-3, up=True, tried=[1.7e-3]), stepped(1e-3, up=False)
    (0.0018, 0.0017, 0.00056)
    """
    wanted = rate * STEP if up else rate / STEP
    near = [other for other in sorted(tried) if max(other / wanted, wanted / other) <= _SAME]
    return min(near, key=lambda other: abs(math.log(other / wanted))) if near else rounded(wanted)


def around(rate: float, tried: Iterable[float] = ()) -> tuple[float, float, float]:
    """A rate between its neighbours one step below and above."""
    known = tuple(tried)
    return stepped(rate, False, known), rate, stepped(rate, True, known)


def next_tried(rate: float, tried: Iterable[float], up: bool) -> float | None:
    """The nearest of the rates that were tried which lies about half a step or more away; None where none does.

    >>> next_tried(1e-3, [1e-3, 1.2e-3, 1.8e-3, 3e-3], up=True)
    0.0018
    """
    least = STEP / _SAME * (1 - 1e-9)
    found = [other for other in tried if (other / rate if up else rate / other) >= least]
    return (min if up else max)(found) if found else None


def mean_loss(by_seed: Mapping[int, float | None]) -> float | None:
    """Over all seeds; None where one diverged, or where there is none."""
    values = [loss for _, loss in sorted(by_seed.items()) if loss is not None]
    return math.fsum(values) / len(values) if values and len(values) == len(by_seed) else None


def lowest(losses: Losses, among: Iterable[float]) -> float | None:
    """The rate with the lowest mean loss; of equals the smallest; None where every one diverged."""
    means = {rate: mean for rate in among if rate in losses and (mean := mean_loss(losses[rate])) is not None}
    return min(means, key=lambda rate: (means[rate], rate)) if means else None


@dataclass(frozen=True)
class Parabola:
    """Loss over log rate near its lowest point: L = L0 + curvature (log rate - log lowest)^2."""

    lowest: float
    """A rate, never outside of those it was drawn through."""
    curvature: float
    """Nats per token; positive."""

    def tilt_of_half_a_step(self, low: float, high: float) -> float:
        """What `tilts` come to where another curve of this shape has its lowest point half a step away."""
        return self.curvature * math.log(STEP) * math.log(high / low)


def parabola(points: Sequence[tuple[float, float]]) -> Parabola | None:
    """Through three (rate, loss); None where it has no lowest point.

    >>> three = [(rate, 2 + math.log(rate / 1.3e-3) ** 2) for rate in (5.6e-4, 1e-3, 1.8e-3)]
    >>> found = parabola(three)
    >>> round(found.lowest, 6), round(found.curvature, 6)
    (0.0013, 1.0)
    """
    (x0, y0), (x1, y1), (x2, y2) = sorted((math.log(rate), loss) for rate, loss in points)
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    if not curvature > 0:
        return None
    return Parabola(math.exp(min(max((x0 + x1) / 2 - left / (2 * curvature), x0), x2)), curvature)


@dataclass(frozen=True)
class Climb:
    """The rates that have been asked for on the way to the best, and how far the way has come."""

    asked: tuple[float, ...]
    """Rising."""
    best: float | None = None
    """None while a run is missing, and where every rate diverged."""
    done: bool = False
    """Whether all that was asked for is finished and no more is asked."""
    edge: bool = False
    """Whether the best, or the lowest where none trains, was still at the end of what was tried when it had to stop."""


def climb(start: Iterable[float], losses: Losses, prefer: Callable[[Sequence[float]], float | None]) -> Climb:
    """Adds rates one step at a time until the preferred one has both its neighbours, at most `MOST_STEPS` times.

    `prefer`: the best of some rates that are finished, None where none trains; then a lower one is added.

    >>> losses = {rate: {0: abs(math.log(rate / 2e-3))} for rate in (5.6e-4, 1e-3, 1.8e-3)}
    >>> climb((5.6e-4, 1e-3, 1.8e-3), losses, lambda rates: lowest(losses, rates)).asked
    (0.00056, 0.001, 0.0018, 0.0032)
    """
    asked = tuple(sorted(start))
    for added in range(MOST_STEPS + 1):
        if any(rate not in losses for rate in asked):
            return Climb(asked)
        best = prefer(asked)
        wanted = {stepped(asked[0], False)} if best is None else set(around(best, asked))
        if wanted <= set(asked):
            return Climb(asked, best, done=True)
        if added < MOST_STEPS:
            asked = tuple(sorted({*asked, *wanted}))
    return Climb(asked, best, done=True, edge=True)


def beyond_cliff(best: float, losses: Losses, frozen: float | None) -> bool:
    """Whether the rate one step above the best lies beyond a cliff.

    >>> beyond_cliff(1e-3, {1e-3: {0: 2.0}, 1.8e-3: {0: 2.6}}, frozen=3.0)
    True
    """
    above = stepped(best, True, losses)
    return above in losses and falls_off(mean_loss(losses[best]), mean_loss(losses[above]), frozen)


def falls_off(here: float | None, above: float | None, frozen: float | None) -> bool:
    """Whether training breaks between two rates of these mean losses, None where a run diverged.

    It does where one diverged, and where the upper one gives up more than `CLIFF` of what the lower one gains on the
    frozen model: L(above) - L(here) > CLIFF (L(frozen) - L(here)).
    """
    if here is None or above is None:
        return True
    return frozen is not None and frozen > here and above - here > CLIFF * (frozen - here)


def bowl_around(best: float, losses: Losses, cliff: bool) -> Parabola | None:
    """The parabola through the best rate and its neighbours; None where the best itself is to be kept.

    That is so where a neighbour is missing or diverged, and below a cliff where the lowest point lies above the best.
    """
    means = [(rate, mean_loss(losses.get(rate, {}))) for rate in around(best, losses)]
    points = [(rate, loss) for rate, loss in means if loss is not None]
    found = parabola(points) if len(points) == 3 else None
    return None if found is None or (cliff and found.lowest > best) else found


@dataclass(frozen=True)
class Noise:
    """The variance of a difference between two paired runs, pooled over many pairs of cells."""

    variance: float
    freedom: int

    def half_width(self, n: int, one_sided: float) -> float:
        """t sqrt(variance / n): how far a mean of n differences reaches from none by chance."""
        from scipy import special  # a study file is read, and its errors told, without it

        return float(special.stdtrit(self.freedom, 1 - one_sided)) * math.sqrt(self.variance / n)


def pooled(differences: Iterable[Sequence[float]]) -> Noise | None:
    """Within sets of differences by seed, each about its own mean; None where no set has two.

    >>> pooled([[1.0, 3.0], [10.0, 12.0]])
    Noise(variance=2.0, freedom=2)
    """
    sets = [own for own in differences if len(own) > 1]
    freedom = sum(len(own) - 1 for own in sets)
    squares = math.fsum((value - math.fsum(own) / len(own)) ** 2 for own in sets for value in own)
    return Noise(squares / freedom, freedom) if freedom else None


def paired(first: Mapping[int, float | None], second: Mapping[int, float | None]) -> list[float]:
    """First less second on the seeds that completed both, by seed."""
    both = [(first[seed], second[seed]) for seed in sorted(first) if seed in second]
    return [one - two for one, two in both if one is not None and two is not None]


def tilts(arm: Losses, baseline: Losses, low: float, high: float) -> list[float] | None:
    """By seed, how much more an arm loses from the low rate to the high one than the baseline does.

    (arm(high) - arm(low)) - (baseline(high) - baseline(low)): for two parabolas of one curvature c in log rate it is
    -2 c d log(high / low), where d is how much higher the arm's lowest point lies, so that two rates tell what takes
    three of one curve alone. None where a run diverged.

    >>> tilts({1: {0: 2.5}, 2: {0: 2.0}}, {1: {0: 2.25}, 2: {0: 2.0}}, 1, 2)
    [-0.25]
    """
    if any(mean_loss(losses[rate]) is None for losses in (arm, baseline) for rate in (low, high)):
        return None
    own, others = paired(arm[high], arm[low]), paired(baseline[high], baseline[low])
    return [one - two for one, two in zip(own, others, strict=True)]


def agrees(tilt: Sequence[float], noise: Noise | None, allowed: float) -> bool:
    """Whether a mean tilt is not shown to be larger than what is allowed, by its one-sided t bound at `ALPHA`."""
    mean = abs(math.fsum(tilt) / len(tilt))
    return noise is not None and mean - allowed <= noise.half_width(len(tilt), ALPHA)


def preferred(losses: Losses, among: Sequence[float], centre: float, noise: Noise | None) -> float | None:
    """The rate of an arm: the centre, unless another is better beyond the noise.

    Another counts where the mean over seeds of L(centre) - L(other) exceeds its one-sided t bound at `ALPHA`, with the
    pooled noise; of such the lowest. Where the centre diverged it is the lowest of those that train.
    """
    if centre not in losses or mean_loss(losses[centre]) is None:
        return lowest(losses, among)

    def better(rate: float) -> bool:
        gains = paired(losses[centre], losses[rate])
        return noise is not None and math.fsum(gains) / len(gains) > noise.half_width(len(gains), ALPHA)

    own = [rate for rate in among if rate != centre and mean_loss(losses[rate]) is not None and better(rate)]
    return lowest(losses, own) if own else centre
