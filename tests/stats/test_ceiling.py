"""The ceiling's rule: closed only where every arm is, paying where one is, and neither where the task is blind."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from adaptive_lora.stats.ceiling import Ceiling, ceilings
from adaptive_lora.streams import numpy_stream
from tests.stats.tables import BASE, by_record, by_seed, moved, table

BUDGETS = [("rank:8", "rank:4")]


def found_in(half: float = 0.02, records: bool = True, **gains: float) -> Ceiling:
    """Half the budget costs `half`; each arm gains so much."""
    losses = {("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(half, 0.5)}
    signs = dict(zip(gains, (-1.0, 0.3), strict=False))
    losses |= {(arm, "rank:8"): moved(-gain, signs[arm]) for arm, gain in gains.items()}
    runs = table(losses)
    tables = by_record(runs) if records else by_seed(runs)
    (found,) = ceilings(tables, "uniform", list(gains), BUDGETS, 0.05)
    return found


@pytest.mark.parametrize(
    ("half", "gains", "verdict"),
    [
        (0.02, {"hindsight": 0.0, "search": -0.01}, "closed"),
        (0.02, {"hindsight": 0.0, "search": 0.015}, "pays"),  # one arm is enough
        (0.02, {"hindsight": 0.005, "search": -0.01}, "open"),  # at the threshold itself
        (0.0, {"hindsight": -0.01, "search": -0.01}, "insensitive"),
    ],
)
def test_verdicts(half: float, gains: dict[str, float], verdict: str) -> None:
    assert str(found_in(half, **gains).verdict) == verdict


def test_one_arm_against_a_t_test_of_the_contrast() -> None:
    found = found_in(records=False, hindsight=0.004)
    runs = np.array([BASE, moved(0.02, 0.5), moved(-0.004, -1.0)])
    contrast = (runs[0] - runs[2]) - 0.25 * (runs[1] - runs[0])
    wanted = stats.ttest_1samp(contrast, 0, alternative="less")
    assert found.arms[0].p_closed == pytest.approx(wanted.pvalue)
    assert found.arms[0].beyond.high == pytest.approx(stats.ttest_1samp(contrast, 0).confidence_interval(0.9).high)
    assert found.threshold == pytest.approx(0.25 * (runs[1] - runs[0]).mean())
    assert found.best.gain.mean == pytest.approx(0.004, abs=1e-3)


def test_without_one_of_its_arms_nothing_is_closed() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(0.02, 0.5), ("a", "rank:8"): moved(0.0)})
    (found,) = ceilings(by_record(runs), "uniform", ["a", "not-run"], BUDGETS, 0.05)
    assert str(found.verdict) == "open"
    assert ceilings(by_record(runs), "uniform", ["not-run"], BUDGETS, 0.05) == []
    assert ceilings(by_record(runs), "uniform", ["a"], [("rank:8", "rank:2")], 0.05) == []


def test_it_is_closed_in_error_as_seldom_as_it_says() -> None:
    """One arm, at the threshold exactly: with more of them it is rarer still."""
    closed = 0
    for study in range(400):
        noise = numpy_stream(7, "ceiling", study).normal(size=(3, 8)) * 0.004
        whole = 2.0 + noise[0]
        losses = {("uniform", "rank:8"): whole, ("uniform", "rank:4"): whole + 0.04 + noise[1]}
        losses[("hindsight", "rank:8")] = whole - 0.01 + noise[2]
        (found,) = ceilings(by_seed(table(losses)), "uniform", ["hindsight"], BUDGETS, 0.05)
        closed += str(found.verdict) == "closed"
    assert 0.02 <= closed / 400 <= 0.085
