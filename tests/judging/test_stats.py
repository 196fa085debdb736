"""Intervals and seeds against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adaptive_lora.judging.arms import summarise
from adaptive_lora.judging.stats import mean_interval, seeds_needed, smallest_p
from adaptive_lora.record.results import RUN_COLUMNS


def test_t_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(size=7)
    found = mean_interval(values.tolist(), 0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.n, found.level) == (pytest.approx(values.mean()), 7, 0.9)


def test_t_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.3027, half-width 4.3027 / sqrt(3).
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    found = mean_interval([1.5])
    assert (found.mean, found.low, found.high) == (1.5, None, None)


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (2, 7), (3, 7), (6, 8), (12, 9), (25, 10)])
def test_seeds_needed_is_the_arithmetic_of_sign_flips(comparisons: int, seeds: int) -> None:
    assert seeds_needed(0.05, comparisons) == seeds
    assert smallest_p(seeds) <= 0.05 / comparisons < smallest_p(seeds - 1)


def row(
    arm: str, seed: int, loss: float | None, status: str = "completed", budget: str = "rank:4"
) -> dict[str, object]:
    done = status == "completed"
    return {
        **dict.fromkeys(RUN_COLUMNS), "run_id": f"{arm}{seed}{budget}", "phase": "evaluation", "arm": arm,
        "strategy": arm, "budget": budget, "seed": seed, "replica": 0, "learning_rate": 1e-3, "scaling": "constant",
        "status": status,
        "test_loss": loss, "trainable_parameters": 96 if done else None, "plan_seconds": 0.5 if done else None,
        "train_seconds": 2.0 if done else None,
    }  # fmt: skip


def table(*rows: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(RUN_COLUMNS)).astype({"test_loss": "float64"})


def test_differences_are_paired_by_seed_within_a_budget() -> None:
    runs = table(
        row("uniform", 0, 2.0), row("uniform", 1, 3.0), row("uniform", 0, 9.0, budget="rank:8"),
        row("other", 1, 3.5), row("other", 0, 2.25), row("other", 2, 7.0),
    )  # fmt: skip
    uniform, other, high = summarise(runs, "uniform")
    assert uniform.is_baseline and uniform.difference is None and high.budget == "rank:8"
    assert dict(other.differences) == {0: 0.25, 1: 0.5}
    assert other.difference is not None and (other.difference.mean, other.difference.n) == (0.375, 2)
    assert other.loss is not None and other.loss.n == 3
    assert uniform.perplexity == pytest.approx(np.exp(2.5))  # exp of the mean, not the mean of exps


def test_a_loss_too_large_for_a_perplexity_has_none() -> None:
    (arm,) = summarise(table(row("uniform", 0, 5000.0)), "uniform")
    assert arm.loss is not None and arm.perplexity is None


def test_runs_without_a_result_are_counted_and_not_averaged() -> None:
    runs = table(row("uniform", 0, 2.0), row("bad", 0, None, "diverged"), row("bad", 1, None, "pending"))
    _, bad = summarise(runs, "uniform")
    assert (bad.loss, bad.difference, bad.differences, bad.trainable_parameters) == (None, None, (), ())
    assert (bad.diverged, bad.unfinished, bad.perplexity, bad.train_seconds) == (1, 1, None, None)
