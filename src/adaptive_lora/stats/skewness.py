"""Whether differences by seed lie to one side, told from all comparisons of a family together.

Eight seeds say next to nothing of their own skew, and least of all where it does harm: a mean is wrongly called better
where the long tail happens to be missing from its sample, which then looks symmetric. The comparisons with one baseline
share what skews them, so their skewnesses are pooled, with their signs: arms that are skewed to opposite sides cancel,
and each can be found by itself alone. With k3 the unbiased third central moment of a comparison's n seeds and s̃² their
variance, drawn towards the others' as that of its verdict is (`stats.moderation`), with d degrees of freedom,

    g = k3 / s̃³,        v = 6 n / ((n - 1) (n - 2)) · d² / ((d + 2) (d + 4)),

v being the variance of g for normal seeds: g does not depend on s̃ (Fisher 1930), nor where equal variances are pooled.
Where d = n - 1, g is `scipy.stats.skew(bias=False)`. Third moments of two normal variables correlate by the cube of
their correlation; with c its mean over the pairs

    z = Σ g / v / √((1 - c) Σ 1 / v + c (Σ 1 / √v)²)

has a variance of at most one for normal seeds (few seeds overstate c) and is larger, on either side, for skewed ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from adaptive_lora.stats.cautions import FEW_SEEDS
from adaptive_lora.stats.crossed import Crossed, PairedTable, crossed, of_seed_means
from adaptive_lora.stats.estimators import Floats
from adaptive_lora.stats.moderation import moderated
from adaptive_lora.stats.step_down import pairwise_correlations

Key = TypeVar("Key", bound=Hashable)
POOLED, ALONE = 1.4, 2.2
"""Standard errors beyond which a family, and a comparison by itself, is called skewed.

In `bench/calibration.py`, where seeds are exponential, the caution stands beside 0.84 of what is wrongly called
different in families of five and 0.94 of ten, and beside 0.82 and 0.92 of intervals that miss; of a comparison that is
alone, which shows no skew where it errs, beside a third. Where seeds are normal it stands beside 0.13 to 0.16 of
comparisons, with heavy tails beside 0.4."""


def skewed_among(family: Mapping[Key, PairedTable], beside: Sequence[PairedTable] = ()) -> set[Key]:
    """Comparisons to be cautious of: all, where together they are skewed by `POOLED`, else those skewed by `ALONE`.

    `beside`: other differences from the same baseline. Tables with fewer than `FEW_SEEDS` seeds have no say.
    """
    pooled = pooled_skewness([*family.values(), *beside])
    if abs(pooled) > POOLED:
        return set(family)
    return {key for key, table in family.items() if abs(pooled_skewness([table])) > ALONE}


def pooled_skewness(tables: Sequence[PairedTable]) -> float:
    """z, in standard errors of normal seeds; zero where nothing varies, and positive for long tails above."""
    rows = _rows(tables)
    if not rows:
        return 0.0
    found = zip(rows, moderated([crossed(row) for row in rows]), strict=True)
    g, v = np.array([_of_one(row.by_seed, own) for row, own in found]).T
    cubes = [r**3 for r in pairwise_correlations(rows)]
    c = max(0.0, sum(cubes) / len(cubes)) if cubes else 0.0
    variance = (1 - c) * (1 / v).sum() + c * (1 / np.sqrt(v)).sum() ** 2
    return float((g / v).sum() / math.sqrt(variance))


def _rows(tables: Sequence[PairedTable]) -> list[PairedTable]:
    """Means by seed of those that say something, each once: arms of a budget have what half of it costs in common."""
    rows = [of_seed_means(dict(zip(t.seeds, t.by_seed.tolist(), strict=True))) for t in tables]
    told = [row for row in rows if len(row.seeds) >= FEW_SEEDS and crossed(row).seed_variance]
    return list({(row.seeds, row.by_seed.tobytes()): row for row in told}.values())


def _of_one(values: Floats, found: Crossed) -> tuple[float, float]:
    """(g, v) of a comparison with the variance of its verdict."""
    n, d = len(values), found.seed_freedom
    centred = (values - values.mean()) / math.sqrt(found.seed_variance or 1.0)
    third = float((centred**3).sum()) * n / ((n - 1) * (n - 2))
    return third, 6 * n / ((n - 1) * (n - 2)) * d**2 / ((d + 2) * (d + 4))
