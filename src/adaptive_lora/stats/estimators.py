"""Statistics over paired differences: intervals, exact tests, equivalence, sizes of effects.

A difference is an arm's loss less the baseline's at the same seed, in nats per token: negative is better.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from adaptive_lora.streams import numpy_stream

Floats = NDArray[np.float64]

FIRST_BOOTSTRAP = 20
"""From so many values on a BCa bootstrap covers as it says; with fewer it is too narrow."""
LAST_EXACT = 14
"""Up to so many differences all sign patterns are held at once; above, scipy draws them."""
RESAMPLES = 9_999
FLIPS = 99_999
TIE = 1e-12
"""Two sums of differences are one where they differ by less than this share of the sum of sizes."""


def perplexity(loss: float | None) -> float | None:
    """exp(loss); None where there is no loss, or one too large for its exp to be a float.

    >>> perplexity(0.0), perplexity(None), perplexity(1e4)
    (1.0, None, None)
    """
    return math.exp(loss) if loss is not None and loss < 700 else None


@dataclass(frozen=True)
class Interval:
    """A mean with a two-sided interval, and what was resampled for it."""

    mean: float
    low: float | None
    """None with fewer than two values."""
    high: float | None
    n: int
    level: float
    over: str = "seeds"

    def turned(self) -> Interval:
        """Of the opposite.

        >>> Interval(1.0, 0.5, 3.0, 4, 0.95).turned().low
        -3.0
        """
        low, high = (None if end is None else 0.0 - end for end in (self.high, self.low))  # no zero with a minus
        return replace(self, mean=0.0 - self.mean, low=low, high=high)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean ± t(n - 1) · s / sqrt(n).

    >>> mean_interval([1.0, 2.0, 3.0]).mean
    2.0
    """
    array = _finite(values)
    n, mean, error = _mean_and_error(array)
    if n < 2:
        return Interval(mean, None, None, n, level)
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * error
    return Interval(mean, mean - half, mean + half, n, level)


def interval_of(values: Sequence[float], level: float = 0.95) -> Interval:
    """The t interval of a few values, the BCa bootstrap interval of many (Efron 1987; `scipy.stats.bootstrap`).

    The resamples come from one fixed stream, so that the same values always have the same interval.

    >>> interval_of([0.5] * 30)
    Interval(mean=0.5, low=0.5, high=0.5, n=30, level=0.95, over='seeds')
    """
    array = _finite(values)
    n, mean, error = _mean_and_error(array)
    if n < FIRST_BOOTSTRAP or error == 0:
        return mean_interval(values, level)
    from scipy import stats  # takes as long to import as everything else in a report together

    # BCa moves and stretches with its values; in units of the error neither tiny nor huge ones overflow.
    found = stats.bootstrap(
        ((array - mean) / error,), np.mean, confidence_level=level, method="BCa", vectorized=True,
        n_resamples=RESAMPLES, batch=1000, random_state=numpy_stream(0, "bootstrap"),
    ).confidence_interval  # fmt: skip
    return Interval(mean, mean + float(found.low) * error, mean + float(found.high) * error, n, level)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided paired sign-flip test of the mean: the share of the 2^n sign patterns with |sum| >= the observed.

    Exact under the hypothesis that each difference was as likely to come with the other sign (Fisher 1935).
    The few values for which all patterns are not held here go to `scipy.stats.permutation_test`, which is exact
    while they number no more than its draws.

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    array = _finite(differences)
    scale = float(np.abs(array).sum())
    if scale == 0:
        return 1.0
    if len(array) > LAST_EXACT:
        from scipy import stats

        return float(
            stats.permutation_test(
                (array / scale,), np.sum, permutation_type="samples", vectorized=True, n_resamples=FLIPS,
                batch=5000, random_state=numpy_stream(0, "sign-flip"),
            ).pvalue
        )  # fmt: skip
    # A pattern and its opposite are equally far out, so half of them say all.
    sums = np.abs(sign_patterns(len(array)) @ (array / scale))
    return float(np.mean(sums >= sums[0] - TIE))


@functools.cache
def sign_patterns(n: int) -> Floats:
    """The sign patterns of n values whose first sign is plus, (2^(n - 1), n); all pluses come first.

    >>> sign_patterns(2).tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    flipped = np.arange(2 ** max(n - 1, 0))[:, None] >> np.arange(n - 1, -1, -1) & 1
    patterns: Floats = np.where(flipped, -1.0, 1.0)
    patterns.flags.writeable = False
    return patterns


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the given order: the i-th smallest is max over j <= i of (m - j + 1) · p_(j), at most 1.

    Rejecting where they are at most alpha holds the family-wise error (Holm 1979).

    >>> holm([0.03, 0.01])
    [0.03, 0.02]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def equivalence_interval(differences: Sequence[float], alpha: float = 0.05) -> Interval:
    """The t interval of level 1 - 2 alpha: it lies within ±margin just where two one-sided tests at alpha both reject.

    >>> equivalence_interval([1.0, 2.0, 3.0], alpha=0.05).level
    0.9
    """
    return mean_interval(differences, 1 - 2 * alpha)


def improvement_probability(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Share of seeds on which the arm is lower, ties counting half, with a Clopper-Pearson interval.

    Half a win more or less is no binomial count: the interval then runs from the lower end for the whole wins
    below to the upper end for those above.

    >>> improvement_probability([-1.0, -2.0, 0.0, 3.0]).mean
    0.625
    """
    array = _finite(differences)
    n = len(array)
    wins = int((array < 0).sum()) + int((array == 0).sum()) / 2
    low, high = _clopper_pearson(math.floor(wins), n, level)[0], _clopper_pearson(math.ceil(wins), n, level)[1]
    return Interval(wins / n, low, high, n, level)


@functools.lru_cache(maxsize=4096)
def _clopper_pearson(wins: int, n: int, level: float) -> tuple[float, float]:
    low = special.betaincinv(wins, n - wins + 1, (1 - level) / 2) if wins else 0.0
    high = special.betaincinv(wins + 1, n - wins, (1 + level) / 2) if wins < n else 1.0
    return float(low), float(high)


@dataclass(frozen=True)
class Effect:
    """One difference in the units that different readers think in; negative is better but for `share_of_gain`."""

    nats_per_token: float
    perplexity_percent: float | None
    """None where it is too large for a number."""
    share_of_gain: float | None
    """Of what the baseline gains over the frozen model; positive is better; None without a gain."""
    bits_per_byte: float | None
    """None where the bytes are not known."""


def effects(
    difference: float,
    baseline_loss: float,
    frozen_loss: float | None,
    tokens: int | None,
    bytes: int | None,
) -> Effect:
    """The difference d in nats per token, and what follows from it.

    Percent of perplexity 100 (exp(d) - 1); share of the gain -d / (frozen - baseline); bits per byte
    d / ln 2 · tokens / bytes, for the text of those tokens.

    >>> effects(-0.1, baseline_loss=2.0, frozen_loss=4.0, tokens=None, bytes=None).share_of_gain
    0.05
    """
    gain = None if frozen_loss is None else frozen_loss - baseline_loss
    return Effect(
        nats_per_token=difference,
        perplexity_percent=None if perplexity(difference) is None else 100 * math.expm1(difference),
        share_of_gain=-difference / gain if gain is not None and gain > 0 else None,
        bits_per_byte=difference / math.log(2) * tokens / bytes if tokens and bytes else None,
    )


def record_interval(nll_differences: Floats, tokens: Floats, level: float = 0.95) -> Interval:
    """Mean difference per token, with an interval over test records at the given seeds.

    S seeds, R records. With D_r the mean over seeds of the summed loss's difference on record r and t_r its
    tokens, the mean is the ratio sum D / sum t. Its linearised variance is R / (R - 1) · sum e² / (sum t)², where
    e_r = D_r - mean · t_r (Cochran 1977, section 6); t with R - 1 degrees of freedom.
    """
    losses, lengths = _finite(nll_differences), _finite(tokens)  # (S, R), (R,)
    if losses.ndim != 2 or losses.shape[1:] != lengths.shape:
        raise ValueError(f"`nll_differences` must be (seeds, {lengths.size} records), got {losses.shape}.")
    by_record = losses.mean(axis=0)  # (R,)
    n, total = len(lengths), lengths.sum()
    mean = float(by_record.sum() / total)
    if n < 2:
        return Interval(mean, None, None, n, level, "test records")
    error = math.sqrt(n / (n - 1) * float(((by_record - mean * lengths) ** 2).sum())) / total
    half = float(special.stdtrit(n - 1, 0.5 + level / 2) * error)
    return Interval(mean, mean - half, mean + half, n, level, "test records")


def _finite(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"Statistics need finite numbers, and at least one; got {array}. Leave missing runs out.")
    return array


def _mean_and_error(array: Floats) -> tuple[int, float, float]:
    """n, the mean and its standard error s / sqrt(n): none for equal values, whatever rounding makes of their mean."""
    n = len(array)
    if (array == array[0]).all():
        return n, float(array[0]), 0.0
    return n, float(array.mean()), float(array.std(ddof=1)) / math.sqrt(n)
