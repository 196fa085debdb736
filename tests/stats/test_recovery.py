"""Recovery: shares of the oracle's gain worked by hand, what counts, and what is missing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from adaptive_lora.stats.recovery import shares_by_seed, summary


def result(truth: str, seed: int, **divergences: float) -> dict[str, Any]:
    correlations = {n: {"uniform": None, "oracle": 1.0}.get(n, 0.1 * seed) for n in divergences}
    return {
        "truth": truth, "seed": seed, "divergence": divergences, "correlation": correlations,
        "plan_seconds": {"uniform": 0.0, "clever": float(seed)},
    }  # fmt: skip


RESULTS = [
    result("last-mlp", 1, uniform=1.0, oracle=0.5, clever=0.6),  # gain .50, share .8
    result("last-mlp", 2, uniform=1.0, oracle=0.45, clever=0.78),  # gain .55, share .4
    result("last-mlp", 3, uniform=1.0, oracle=0.55, clever=0.73),  # gain .45, share .6
    result("growing", 1, uniform=1.0, oracle=0.9, clever=1.0),  # gain .1
    result("growing", 2, uniform=1.0, oracle=1.1, clever=1.0),  # gain -.1
    result("uniform", 1, uniform=0.3, oracle=0.3, clever=0.4),
    result("uniform", 2, uniform=0.3, oracle=0.3, clever=0.2),
    result("uniform", 3, uniform=0.3, oracle=0.3, clever=0.45),
]


def test_shares_of_the_oracles_gain_by_hand() -> None:
    found = summary(RESULTS, ["last-mlp"])["last-mlp"]
    assert found["oracle_gain"] == pytest.approx(0.5)
    assert found["standard_error"] == pytest.approx(0.05 / 3**0.5)
    assert found["counts"] is True
    assert found["seeds"] == 3
    clever = found["strategies"]["clever"]
    share = (0.4 + 0.22 + 0.27) / (0.5 + 0.55 + 0.45)
    residuals = [(0.4 - share * 0.5) / 0.5, (0.22 - share * 0.55) / 0.5, (0.27 - share * 0.45) / 0.5]
    spread = (sum(e * e for e in residuals) / 2) ** 0.5
    half = 4.302653 * spread / 3**0.5  # Student's t with two degrees of freedom
    assert clever["share_of_oracle_gain"] == pytest.approx({"mean": share, "low": share - half, "high": share + half})
    assert clever["correlation"] == pytest.approx(0.2)
    assert clever["divergence"] == pytest.approx((0.6 + 0.78 + 0.73) / 3)
    assert clever["plan_seconds"] == 2.0
    assert found["strategies"]["uniform"]["share_of_oracle_gain"] == {"mean": 0, "low": 0, "high": 0}
    assert found["strategies"]["uniform"]["correlation"] is None
    assert found["strategies"]["oracle"]["share_of_oracle_gain"] == pytest.approx({"mean": 1, "low": 1, "high": 1})


def test_a_seed_without_a_gain_does_not_lead_the_share() -> None:
    """Its own ratio would be 60, the mean of the ratios 20.3."""
    nearly = [*RESULTS[1:3], result("last-mlp", 4, uniform=1.0, oracle=0.999, clever=0.94)]
    found = summary(nearly, ["last-mlp"])["last-mlp"]["strategies"]["clever"]["share_of_oracle_gain"]
    assert found["mean"] == pytest.approx((0.22 + 0.27 + 0.06) / (0.55 + 0.45 + 0.001))


def test_a_truth_without_a_clear_gain_does_not_count() -> None:
    assert summary(RESULTS, ["last-mlp"])["growing"]["counts"] is False
    barely = [result("growing", i, uniform=1.0, oracle=1.0 - g, clever=1.0) for i, g in enumerate((0.1, 0.2))]
    found = summary(barely, [])["growing"]  # gain .15, standard error .05
    assert (found["oracle_gain"], found["standard_error"]) == pytest.approx((0.15, 0.05))
    assert found["counts"] is False


def test_the_uniform_truth_gives_the_excess_in_units_of_the_concentrated_gain() -> None:
    excess = summary(RESULTS, ["last-mlp"])["uniform"]["strategies"]["clever"]["excess"]
    assert excess["mean"] == pytest.approx((0.1 - 0.1 + 0.15) / 3 / 0.5)
    assert excess["low"] < 0 < excess["high"]
    median = summary(RESULTS, ["last-mlp", "growing"])["uniform"]["strategies"]["clever"]["excess"]
    assert median["mean"] == pytest.approx(0.05 / 0.25)  # the median of gains .5 and 0
    without = summary(RESULTS, ["two-blocks"])["uniform"]["strategies"]["clever"]["excess"]
    assert without == {"mean": None, "low": None, "high": None}


def test_one_seed_has_no_interval_and_counts_for_nothing() -> None:
    found = summary(RESULTS[:1], ["last-mlp"])["last-mlp"]
    assert found["standard_error"] is None
    assert found["counts"] is False
    share = found["strategies"]["clever"]["share_of_oracle_gain"]
    assert share == {"mean": pytest.approx(0.8), "low": None, "high": None}


def test_a_strategy_equal_to_the_oracle_has_share_one_on_every_seed_and_uniform_none() -> None:
    gains = [0.5, 0.002, 0.3]
    assert shares_by_seed(gains, gains) == pytest.approx([1.0] * 3)
    assert shares_by_seed([0.0] * 3, gains) == [0.0] * 3
    excess = summary(RESULTS, ["last-mlp"])["uniform"]["strategies"]["uniform"]["excess"]
    assert [math.copysign(1, excess[end]) for end in ("mean", "low", "high")] == [1.0] * 3  # 0, and never -0
    assert set(excess.values()) == {0.0}


def test_a_student_that_diverged_has_no_share_and_the_others_keep_theirs() -> None:
    torn = [
        result("last-mlp", 1, uniform=1.0, oracle=0.5, clever=0.6, other=0.5),
        result("last-mlp", 2, uniform=1.0, oracle=0.45, clever=float("nan"), other=0.5),
    ]
    found = summary(torn, ["last-mlp"])["last-mlp"]["strategies"]
    none = {"mean": None, "low": None, "high": None}
    assert found["clever"]["share_of_oracle_gain"] == none
    assert found["other"]["share_of_oracle_gain"]["mean"] == pytest.approx(1.0 / 1.05)
    json.dumps(found["clever"]["share_of_oracle_gain"], allow_nan=False)
    level = [result("growing", 1, uniform=1.0, oracle=1.0, clever=0.9)]  # nothing to take a share of
    assert summary(level, [])["growing"]["strategies"]["clever"]["share_of_oracle_gain"] == none
