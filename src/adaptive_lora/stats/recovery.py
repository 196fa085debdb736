"""How much of the right plan's gain a strategy recovers, from divergences of students of a planted model.

On one planted model, at equal trainable parameters and the same rate, data, order and beginning,

    share = (d_uniform - d_strategy) / (d_uniform - d_oracle),   d = KL(planted || student) on held-out texts

summed over seeds above and below, with the oracle trained at the planted ranks themselves. `floor` is the oracle with
rank 1 left in every module, the most that a strategy which leaves none out can recover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptive_lora.stats.estimators import mean_interval

CONCENTRATED = ("last-mlp", "two-blocks", "few-modules")
"""Truths that lie in few layers."""

CONTROLS = ("random", "shuffled", "inverted")
"""Strategies without a reason: what they recover, chance recovers."""

CLEAR = 5
"""Standard errors that the oracle's mean gain must exceed for a truth to count."""


def summary(results: Sequence[Mapping[str, Any]], concentrated: Sequence[str]) -> dict[str, Any]:
    """Per truth and strategy: share of the oracle's gain, its 95 % t interval over seeds, correlation.

    A truth counts if the oracle's gain exceeds `CLEAR` standard errors, which one seed does not have. On the uniform
    truth, where there is no gain, the figure is the excess over uniform in units of the median gain of the
    concentrated truths.
    """
    truths = list(dict.fromkeys(r["truth"] for r in results))
    gains = {
        t: [r["divergence"]["uniform"] - r["divergence"]["oracle"] for r in results if r["truth"] == t] for t in truths
    }
    typical = [float(np.mean(gains[t])) for t in truths if t in concentrated]
    unit = float(np.median(typical)) if typical else None
    return {truth: _of_truth([r for r in results if r["truth"] == truth], gains[truth], unit) for truth in truths}


def _of_truth(own: Sequence[Mapping[str, Any]], gains: Sequence[float], unit: float | None) -> dict[str, Any]:
    table = {}
    for name in own[0]["divergence"]:
        differences = [r["divergence"]["uniform"] - r["divergence"][name] for r in own]
        if own[0]["truth"] == "uniform":
            # Not -d: what equals uniform has an excess of 0, not of -0.
            figure = {"excess": _interval([(0.0 - d) / unit for d in differences] if unit else [])}
        else:
            figure = {"share_of_oracle_gain": _interval(shares_by_seed(differences, gains))}
        known = [r["correlation"][name] for r in own if r["correlation"][name] is not None]
        table[name] = {
            **figure,
            "correlation": float(np.mean(known)) if known else None,
            "divergence": float(np.mean([r["divergence"][name] for r in own])),
            "plan_seconds": float(np.median([r["plan_seconds"].get(name, 0.0) for r in own])),
        }
    error = float(np.std(gains, ddof=1) / len(own) ** 0.5) if len(own) > 1 else None
    gain = float(np.mean(gains))
    return {
        "oracle_gain": gain,
        "standard_error": error,
        "counts": error is not None and gain > CLEAR * error,
        "seeds": len(own),
        "strategies": table,
    }


def shares_by_seed(differences: Sequence[float], gains: Sequence[float]) -> list[float]:
    """The share by seed, Σ differences / Σ gains: values whose mean is the share, whose spread is its error.

    share + (difference_i - share · gain_i) / mean gain, the linearised ratio (Cochran 1977, section 2.11). The mean of
    the seeds' own ratios would be led by the seed on which the oracle gains nearly nothing.

    >>> shares_by_seed([1.0, 3.0], [2.0, 2.0])
    [0.5, 1.5]
    """
    gain = sum(gains) / len(gains)
    if not gain:
        return []
    share = sum(differences) / sum(gains)
    return [share + (a - share * g) / gain for a, g in zip(differences, gains, strict=True)]


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % t interval; None without values, or where a student diverged."""
    if not values or not all(map(math.isfinite, values)):
        return {"mean": None, "low": None, "high": None}
    found = mean_interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high}
