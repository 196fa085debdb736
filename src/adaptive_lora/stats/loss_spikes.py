"""Loss spikes: sudden rises of a training loss that the batch does not explain."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptive_lora.stats.estimators import Floats

WINDOW = 15
"""Steps whose median is the level that a loss rises above."""
LATELY = 3
"""And those whose median it rises above too: a run at a low rate drifts away from the others, and is not spiking."""
LEAST = 5
"""A step with fewer recorded steps before it has no level and is not judged."""
SPREADS = 7.0
"""A spike stands out by so many robust standard deviations of its run."""
FLOOR = 0.1
"""And by so many nats per token: a smaller rise is none, however quiet the run."""
NORMAL = 1.4826
"""A normal variable's standard deviation over its median absolute deviation."""


def rises(losses: Floats, batches: NDArray[np.int64]) -> Floats:
    """By how much each step's loss stands above the recorded steps before it, the batch's own difficulty taken out.

    `losses` is (runs, steps), missing or not finite where there is none; runs with the same entry of `batches` saw the
    same batches. With x = loss - median of the losses of all other runs on the same batches, or x = loss where a run
    shares its batches with none,

        rise_t = x_t - max(median(x_(t-15), ..., x_(t-1)), median(x_(t-3), ..., x_(t-1))).

    A hard batch is hard for every run and leaves x; so does a fall that all share. The median of the others, whatever
    their arm, budget and rate, rather than the baseline's loss at the same rate: it is there for the baseline too, so
    that all arms are measured alike; one bad run does not move it; and it does not vanish, nor jump along, at rates
    where the baseline breaks. The price: a rise that most runs of a seed share at one step counts as the batch's.

    >>> shared = np.random.default_rng(0).normal(2, 0.3, (3, 40))[[0, 0, 0]]
    >>> float(abs(rises(shared, np.zeros(3, dtype=np.int64)))[:, 5:].max())
    0.0
    """
    finite = np.where(np.isfinite(losses), losses, np.nan)
    cleared = finite.copy()
    for group in np.unique(batches):
        members = np.flatnonzero(batches == group)
        cleared[members] = _without_batches(finite[members])
    before = pd.DataFrame(cleared.T).shift(1)
    level = before.rolling(WINDOW, min_periods=LEAST).median()
    lately = before.rolling(LATELY, min_periods=1).median()
    # Where one of the two is missing, so is the level.
    found: Floats = cleared - np.maximum(level.to_numpy(), lately.to_numpy()).T
    return found


def spikes(rise: Floats) -> NDArray[np.bool_]:
    """Which steps belong to a spike: rise > max(7 s, 0.1 nats), (runs, steps).

    s = 1.4826 median(|rise - median(rise)|) over the run, the robust counterpart of a standard deviation. Seven of
    them is the distance of OLMo 2's spike score (arXiv 2501.00656), whose plain mean and deviation over 1,000 steps
    would let a spike in a run of 150 hide itself. Each run is measured by its own noise: one that is wild throughout
    has few spikes, and shows in its loss.
    """
    spread = NORMAL * row_medians(np.abs(rise - row_medians(rise)[:, None]))
    with np.errstate(invalid="ignore"):
        found: NDArray[np.bool_] = rise > np.maximum(SPREADS * spread, FLOOR)[:, None]
    return found


def count_spikes(spiking: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Spikes by run; one that lasts several steps in a row is one.

    >>> count_spikes(np.array([[True, True, False, True]])).tolist()
    [2]
    """
    begins = spiking.copy()
    begins[:, 1:] &= ~spiking[:, :-1]
    found: NDArray[np.int64] = begins.sum(axis=1, dtype=np.int64)
    return found


def row_medians(values: Floats) -> Floats:
    """Medians of the rows over what is there; NaN for a row without values.

    >>> row_medians(np.array([[3.0, np.nan, 1.0], [np.nan] * 3])).tolist()
    [2.0, nan]
    """
    return pd.DataFrame(values).median(axis=1).to_numpy(dtype=np.float64)


def _without_batches(losses: Floats) -> Floats:
    """Each run's losses less the median of the others'; as they are for a run that no other run overlaps."""
    others = _medians_of_others(losses)
    shared = np.asarray(np.isfinite(losses - others).any(axis=1))
    return np.where(shared[:, None], losses - others, losses)


def _medians_of_others(losses: Floats) -> Floats:
    """For every run and step the median over the other runs (runs, steps): from one sorting of the column, in which
    a run's own place is skipped."""
    n = len(losses)
    order = np.argsort(losses, axis=0, kind="stable")
    ordered = np.take_along_axis(losses, order, axis=0)
    place = np.argsort(order, axis=0, kind="stable")
    there: NDArray[np.int64] = np.isfinite(losses).astype(np.int64)
    others = there.sum(axis=0) - there  # (runs, steps)
    low, high = np.maximum(others - 1, 0) // 2, others // 2
    ends = [np.take_along_axis(ordered, np.minimum(at + (at >= place), n - 1), axis=0) for at in (low, high)]
    return np.where(others > 0, (ends[0] + ends[1]) / 2, np.nan)
