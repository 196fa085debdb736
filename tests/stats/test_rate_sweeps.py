"""Where an arm breaks: against itself at its best rate and the frozen model, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from adaptive_lora.stats.estimators import mean_interval
from adaptive_lora.stats.rate_sweeps import RateSweep, State, contrast, rate_sweeps, rows_at
from adaptive_lora.stats.stability import stability_table
from adaptive_lora.stats.stability_findings import Beside, stability_findings
from tests.stats.test_stability import FROZEN, NO_CURVES, run

Gains = Mapping[float, Sequence[float | None]]
"""Rate -> gain over the frozen model seed by seed; None: diverged."""
LOW, BEST, HIGH = 1e-3, 3e-3, 1e-2
GOOD = (1.0, 1.1, 0.9)


def tuned(arms: Mapping[str, Gains], **labels: object) -> pd.DataFrame:
    rows = [
        run(arm, seed, FROZEN - gain, rate, **labels)
        if gain is not None
        else run(arm, seed, None, rate, status="diverged", **labels)
        for arm, gains in arms.items()
        for rate, by_seed in gains.items()
        for seed, gain in enumerate(by_seed)
    ]
    return stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")


def sweep(gains: Gains, alpha: float = 0.05) -> RateSweep:
    return rate_sweeps(tuned({"a": gains}), alpha)["a", "rank:8"]


def test_the_shortfall_and_the_share_by_hand() -> None:
    found = sweep({BEST: GOOD, HIGH: (0.2, 0.3, 0.25)})
    assert found.best is not None and found.best.learning_rate == BEST
    expected = mean_interval([0.5 - 0.2, 0.55 - 0.3, 0.45 - 0.25])
    short = found.shortfalls[1]
    assert short is not None
    assert (short.mean, short.low, short.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert found.shares == pytest.approx((1.0, 0.25)) and found.states == (State.TRAINS, State.BREAKS)
    assert found.first_break is found.cells[1]


@pytest.mark.parametrize(
    ("there", "state"),
    [
        ((0.9, 1.0, 0.8), State.TRAINS),  # merely worse, and by far more than any margin
        ((0.55, 0.6, 0.5), State.TRAINS),  # a little more than half
        ((0.3, 0.35, 0.25), State.BREAKS),
        ((0.1, 0.9, 0.3), State.TRAINS),  # less than half on average, and not shown to be
        ((0.9, 1.0, 0.0), State.BREAKS),  # one run no better than the frozen model
        ((0.9, 1.0, None), State.BREAKS),  # one that diverged
    ],
)
def test_what_breaks_an_arm(there: Sequence[float | None], state: State) -> None:
    assert sweep({BEST: GOOD, HIGH: there}).state_at(HIGH) is state


def test_every_arm_breaks_by_the_same_rule_the_baseline_too_and_what_others_do_is_no_matter() -> None:
    broken, fine = {BEST: GOOD, HIGH: (0.1, 0.1, 0.1)}, {BEST: GOOD, HIGH: GOOD}
    for others in ({}, {"b": fine}, {"b": broken}):
        found = rate_sweeps(tuned({"uniform": broken, "a": fine, **others}))
        assert found["uniform", "rank:8"].state_at(HIGH) is State.BREAKS
        assert found["a", "rank:8"].state_at(HIGH) is State.TRAINS


def test_an_arm_that_is_worse_than_the_baseline_and_learns_does_not_break() -> None:
    found = stability_findings(tuned({"uniform": {BEST: GOOD}, "a": {BEST: (0.7, 0.8, 0.6)}}), "uniform", {}, {})
    assert found.breaks == () and len(found.trained) == 2


def test_alpha_decides_what_is_shown() -> None:
    gains = {BEST: (1.0, 1.0, 1.0), HIGH: (0.3, 0.48, 0.35)}
    # Shortfalls of 0.2, 0.02 and 0.15: t = 2.30 with 2 degrees of freedom, two-sided p = 0.15.
    strict, lax = (sweep(gains, alpha).state_at(HIGH) for alpha in (0.05, 0.2))
    assert (strict, lax) == (State.TRAINS, State.BREAKS)
    table = tuned({"a": gains})
    high, best = (rows_at(table, "a", "rank:8", rate) for rate in (HIGH, BEST))
    assert [contrast(high, best, alpha).direction for alpha in (1e-4, 0.05)] == [0, 1]


def test_the_best_rate_is_chosen_by_tuning_runs_and_none_that_diverged_or_fell_equal_is_it() -> None:
    assert sweep({LOW: GOOD, BEST: (2.0, 2.0, None)}).best.learning_rate == LOW  # type: ignore[union-attr]
    assert sweep({BEST: GOOD, LOW: GOOD}).best.learning_rate == LOW  # type: ignore[union-attr]
    both = tuned({"a": {LOW: GOOD, BEST: (1.2, 1.2, 1.2)}})
    evaluated = tuned({"a": {LOW: (5.0, 5.0)}}, phase="evaluation")
    best = rate_sweeps(pd.concat([both, evaluated], ignore_index=True))["a", "rank:8"].best
    assert best is not None and best.learning_rate == BEST
    nowhere = sweep({LOW: (1.0, None), BEST: (None, None)})
    assert nowhere.best is None and nowhere.untrainable and set(nowhere.states) == {State.BREAKS}


def test_an_arm_that_learns_nothing_anywhere_breaks_everywhere_and_keeps_no_share() -> None:
    found = sweep({LOW: (-0.1, -0.2), BEST: (-0.3, 0.0)})
    assert set(found.states) == {State.BREAKS} and found.shares == (None, None) and not found.untrainable


def test_too_few_pairs_say_nothing() -> None:
    assert sweep({BEST: (1.0,), HIGH: (0.1,)}).states == (State.UNKNOWN, State.UNKNOWN)
    assert sweep({BEST: (1.0,), HIGH: (-0.1,)}).state_at(HIGH) is State.BREAKS
    unpaired = tuned({"a": {BEST: GOOD}}), tuned({"a": {HIGH: GOOD}}).assign(seed=[7, 8, 9])
    found = rate_sweeps(pd.concat(unpaired, ignore_index=True))["a", "rank:8"]
    assert State.UNKNOWN in found.states
    without = tuned({"a": {BEST: GOOD}}).assign(gain=np.nan, outcome=None)  # no loss of the frozen model
    assert rate_sweeps(without)["a", "rank:8"].states == (State.UNKNOWN,)


@pytest.mark.parametrize(
    ("baseline", "arm", "beside"),
    [
        ((0.1, 0.1, 0.1), (0.1, 0.05, 0.2), Beside.SHARED),
        ((0.9, 1.0, 0.8), (0.1, 0.2, 0.1), Beside.ALONE),
        ((0.9, 1.0, 0.8), (0.9, 1.0, -0.1), Beside.OPEN),  # one run lost, which shows no difference
    ],
)
def test_a_break_is_set_beside_the_baseline_at_the_same_rate(
    baseline: Sequence[float], arm: Sequence[float], beside: Beside
) -> None:
    table = tuned({"uniform": {BEST: GOOD, HIGH: baseline}, "a": {BEST: GOOD, HIGH: arm}})
    found = {b.sweep.arm: b for b in stability_findings(table, "uniform", {}, {}).breaks}
    assert found["a"].beside is beside
    assert "uniform" not in found or found["uniform"].beside is None
    alone = stability_findings(tuned({"a": {BEST: GOOD, HIGH: arm}}), "uniform", {}, {}).breaks
    assert [b.beside for b in alone] == [None]
