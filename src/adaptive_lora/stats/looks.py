"""Looking at a study before it is done, at a price: alpha is spent over the looks by a plan made beforehand.

Of alpha, 2 (1 - Φ(z(alpha/2) / √t)) is spent when a share t of the seeds is in (Lan and DeMets 1983, in the manner of
O'Brien and Fleming 1979): almost nothing at first. The scores of successive looks are those of a sum of independent
steps, so the level that each look may use follows by recursion (Armitage, McPherson and Rowe 1969). A t test's p is
held against the level of a normal one (Jennison and Turnbull 2000, section 4.4). With few seeds the variance changes
from look to look as well, and by that alone studies err a tenth more often (`STEPS_OF_T`): that tenth is paid for.

`spent(p, ...)` is the smallest alpha at which a comparison with this p at this look would be decided. It is a p value
like any other, so a family's step-down is done on it.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import special

from adaptive_lora.stats.estimators import Floats

GRID = 301
"""Points of the recursion: levels right to 0.1 %."""
STEPS_OF_T = 1.1
"""By what t tests at a normal score's levels exceed alpha: 1.05 to 1.14 for looks from 4 to 12 seeds, by simulation."""
ALPHAS = np.geomspace(1e-7, 0.6, 61)


def spending(alpha: float, share: float) -> float:
    """Of alpha, what is spent when this share of the seeds is in.

    >>> round(spending(0.05, 0.5), 5), round(spending(0.05, 1.0), 5)
    (0.00557, 0.05)
    """
    return float(2 * special.ndtr(special.ndtri(alpha / 2) / np.sqrt(share)))


@functools.lru_cache(maxsize=4096)
def levels(seeds: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """The two-sided level of each look, so that a true null hypothesis crosses one of them with probability alpha.

    >>> [round(level, 4) for level in levels((5, 10), 0.05)]
    [0.0056, 0.0478]
    """
    spent = [spending(alpha, n / seeds[-1]) for n in seeds]
    bound = -float(special.ndtri(spent[0] / 2))
    found = [spent[0]]
    points = np.linspace(-bound, bound, GRID) * np.sqrt(seeds[0])
    inside = np.exp(-(points**2) / 2 / seeds[0]) / np.sqrt(2 * np.pi * seeds[0]) * _trapezes(points)
    for before, n, new, old in zip(seeds, seeds[1:], spent[1:], spent, strict=False):
        step = np.sqrt(n - before)
        limit = _bound(points, inside, step, new - old)
        found.append(float(2 * special.ndtr(-limit / np.sqrt(n))))
        following = np.linspace(-limit, limit, GRID)
        kernel = np.exp(-((following[:, None] - points) ** 2) / 2 / step**2) / np.sqrt(2 * np.pi) / step
        inside = (kernel @ inside) * _trapezes(following)
        points = following
    return tuple(found)


def decided_at(seeds: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """The p of a t test at which each look decides a lone comparison: that at which `spent` is alpha.

    >>> [round(p, 4) for p in decided_at((5, 10), 0.05)], decided_at((10,), 0.05)
    ([0.0047, 0.0436], (0.05,))
    """
    return levels(seeds, alpha / STEPS_OF_T) if len(seeds) > 1 else (alpha,)


def _trapezes(points: Floats) -> Floats:
    weights = np.full(len(points), points[1] - points[0])
    weights[[0, -1]] /= 2
    return weights


def _bound(points: Floats, inside: Floats, step: float, wanted: float) -> float:
    """Beyond which, on either side, `wanted` of all paths go at this look and at none before."""
    low, high = 0.0, float(points[-1]) + 40 * step
    for _ in range(50):
        middle = (low + high) / 2
        beyond = inside @ (special.ndtr((points - middle) / step) + special.ndtr((-points - middle) / step))
        low, high = (middle, high) if beyond > wanted else (low, middle)
    return (low + high) / 2


@functools.cache
def _curve(seeds: tuple[int, ...], look: int) -> tuple[Floats, Floats]:
    """log level of a look against log alpha, both rising."""
    at = np.array([levels(seeds, float(alpha))[look] for alpha in ALPHAS])
    return np.log(np.maximum(at, 1e-300)), np.log(ALPHAS)


def spent(p: float, seeds: tuple[int, ...], look: int, sided: int = 2) -> float:
    """The smallest alpha at which a comparison with this p at this look (from 0) would be decided.

    A one-sided test at alpha is one side of a two-sided one at 2 alpha.

    >>> spent(0.03, (10,), 0)
    0.03
    >>> round(spent(0.005, (5, 10), 0), 3)
    0.052
    """
    if len(seeds) == 1:
        return p
    if p <= 0:
        return 0.0
    at, alphas = _curve(seeds, look)
    two_sided = p if sided == 2 else 2 * p
    found = float(np.exp(np.interp(np.log(two_sided), at, alphas, left=-np.inf, right=0.0)))
    return min(1.0, max(p, STEPS_OF_T * (found if sided == 2 else found / 2)))
