"""Every statistic against scipy or statsmodels, and by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import WLS
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.estimators import (
    Interval,
    effects,
    equivalence_interval,
    holm,
    improvement_probability,
    interval_of,
    mean_interval,
    record_interval,
    sign_flip_p,
    sign_patterns,
)
from adaptive_lora.stats.run_table import RUN_COLUMNS


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


def smallest_p(seeds: int) -> float:
    """That any sign-flip test can reach: the observed signs and their opposites, of 2^n."""
    return float(min(1.0, 2.0 ** (1 - seeds)))


def sample(n: int, mean: float = 0.2, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 1.0, n).tolist()


def ends(found: Interval) -> tuple[float, float]:
    assert found.low is not None and found.high is not None
    return found.low, found.high


whole = st.lists(st.integers(-5, 5), min_size=1, max_size=9)
real = st.lists(st.floats(-3, 3).map(lambda value: round(value, 9)), min_size=2, max_size=9)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_few_values_have_the_t_interval_and_many_the_bootstraps() -> None:
    assert interval_of(sample(19)) == mean_interval(sample(19))
    assert ends(interval_of(sample(20))) != ends(mean_interval(sample(20)))
    assert interval_of(sample(20)).over == "seeds"


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e150])
def test_bootstrap_interval_is_scipys_whatever_the_unit(scale: float) -> None:
    values = np.random.default_rng(1).exponential(size=25)
    expected = stats.bootstrap((values,), np.mean, random_state=np.random.default_rng(5)).confidence_interval
    found = ends(interval_of((values * scale).tolist()))
    assert found == pytest.approx((expected.low * scale, expected.high * scale), rel=0.02)


def test_bootstrap_interval_by_its_formula() -> None:
    # BCa: the quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the resampled means.
    values = np.random.default_rng(1).exponential(size=25)
    means = np.random.default_rng(2).choice(values, (100_000, 25)).mean(axis=1)
    z0 = stats.norm.ppf((means < values.mean()).mean())
    spread = values.mean() - values
    a = -(spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    z = z0 + stats.norm.ppf([0.025, 0.975])
    expected = np.quantile(means, stats.norm.cdf(z0 + z / (1 - a * z)))
    assert ends(interval_of(values.tolist())) == pytest.approx(expected, rel=0.02)
    assert not np.allclose(np.quantile(means, [0.025, 0.975]), expected, rtol=0.02)  # plain percentiles would differ


def test_bootstrap_interval_is_the_same_every_time() -> None:
    np.random.default_rng().random()
    assert interval_of(sample(30)) == interval_of(sample(30))
    assert interval_of(sample(30), 0.9) != interval_of(sample(30))


@pytest.mark.parametrize("n", [2, 7, 20, 40])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e-300])
def test_equal_values_have_a_point_for_an_interval(n: int, value: float) -> None:
    assert ends(interval_of([value] * n)) == (value, value)


@given(st.lists(st.floats(-1e3, 1e3), min_size=20, max_size=30))
@settings(max_examples=25)
def test_bootstrap_interval_always_exists_and_holds_the_mean(values: list[float]) -> None:
    found = interval_of(values)
    low, high = ends(found)
    assert low <= found.mean + 1e-9 and found.mean - 1e-9 <= high


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_missing_numbers_are_refused(values: list[float]) -> None:
    for statistic in (mean_interval, interval_of, equivalence_interval, sign_flip_p, improvement_probability):
        with pytest.raises(ValueError, match="need finite numbers"):
            statistic(values)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 0.25),  # only +++ and --- reach 6: 2 of 8
        ([3.0, 1.0, -1.0], 0.75),  # observed 3; of 5, 3, 3, 1 three reach it
        ([0.1, 0.2, -0.3], 1.0),  # a sum of zero, but for rounding
        ([0.1, 0.3, 0.7, -0.3], 0.5),  # observed 0.8: of 1.4, 1.2, 0.8, 0.8, 0.6, 0.6, 0.2, 0.0 four reach it
        ([-1.0], 1.0), ([0.0] * 8, 1.0), ([0.0, 0.0, 1.0], 1.0), ([0.0] * 30, 1.0),
    ],
)  # fmt: skip
def test_sign_flip_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p


def all_signs(n: int) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=n))


@pytest.mark.parametrize("n", [2, 5, 10, 14])
def test_sign_flip_agrees_with_scipy(n: int) -> None:
    values = np.asarray(sample(n))
    expected = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=2**n).pvalue
    assert sign_flip_p(values.tolist()) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_of_many_seeds_is_near_the_t_test_and_repeats() -> None:
    values = sample(40, mean=0.35)
    assert sign_flip_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.1)
    assert sign_flip_p(values) == sign_flip_p(values)
    # 15 values are still tested exactly: their smallest p is a whole number of patterns.
    assert sign_flip_p([1.0 + i for i in range(15)]) == pytest.approx(smallest_p(15))


@given(whole)
def test_sign_flip_counts_patterns_exactly(values: list[int]) -> None:
    tenths = [Fraction(v, 10) for v in values]
    sums = [abs(sum(s * d for s, d in zip(signs, tenths, strict=True))) for signs in all_signs(len(values))]
    share = sum(total >= abs(sum(tenths)) for total in sums) / len(sums)
    assert sign_flip_p([float(t) for t in tenths]) == (share if any(values) else 1.0)


@given(real, st.floats(1e-6, 1e6))
def test_sign_flip_knows_neither_sign_nor_order_nor_unit(values: list[float], unit: float) -> None:
    for other in ([-v for v in values], sorted(values), [v * unit for v in values]):
        # Sums that differ by rounding alone may tie in one order only: then p moves by whole patterns.
        if min_gap(values) > 1e-9:
            assert sign_flip_p(other) == sign_flip_p(values)
    assert smallest_p(len(values)) <= sign_flip_p(values) <= 1.0


def min_gap(values: list[float]) -> float:
    """The smallest distance of a pattern's sum from the observed one, ties apart, as a share of all sizes."""
    scale = sum(map(abs, values)) or 1.0
    sums = np.abs(sign_patterns(len(values)) @ np.asarray(values)) / scale
    gaps = np.abs(sums - sums[0])
    return float(min((gap for gap in gaps if gap > 1e-15), default=1.0))


@given(st.integers(1, 9))
def test_sign_patterns_are_all_of_them_once(n: int) -> None:
    half = {tuple(row) for row in sign_patterns(n).tolist()}
    assert half | {tuple(-s for s in row) for row in half} == set(all_signs(n))
    assert len(half) == len(sign_patterns(n)) == 2 ** (n - 1) and (sign_patterns(n)[0] == 1).all()


def test_holm_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04 raised to what came before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(p_lists)
def test_holm_is_its_definition(p_values: list[float]) -> None:
    """The most of (n - j) p_(j) over those as small or smaller, and at most 1."""
    ordered, n = sorted(p_values), len(p_values)
    expected = [min(1, max((n - j) * q for j, q in enumerate(ordered) if q <= p)) for p in p_values]
    assert holm(p_values) == pytest.approx(expected)


@given(p_lists)
def test_holm_keeps_the_order_and_never_helps(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert all(a <= b for (_, a), (_, b) in itertools.pairwise(pairs))
    assert all(p <= a <= 1 for p, a in pairs)


def test_equivalence_by_hand() -> None:
    # t(0.95, 2) = 2.9200
    assert ends(equivalence_interval([1.0, 2.0, 3.0])) == pytest.approx((2 - 1.68585, 2 + 1.68585), abs=1e-4)


@given(st.integers(2, 12), st.floats(-1, 1), st.floats(0.01, 2), st.integers(0, 99))
def test_equivalence_agrees_with_statsmodels(n: int, mean: float, margin: float, seed: int) -> None:
    values = sample(n, mean, seed)
    expected = DescrStatsW(np.asarray(values)).ttost_mean(-margin, margin)[0]
    low, high = ends(equivalence_interval(values))
    assert (expected <= 0.05) == (-margin <= low and high <= margin)


def test_improvement_by_hand() -> None:
    # Three of three: the lower end solves p³ = 0.025.
    found = improvement_probability([-1.0, -2.0, -0.5])
    assert (found.mean, found.n, *ends(found)) == pytest.approx((1.0, 3, 0.025 ** (1 / 3), 1.0))
    tied = improvement_probability([0.0, -1.0, 1.0])  # one and a half of three: from one's end to two's
    assert tied.mean == 0.5
    assert ends(tied) == pytest.approx((proportion_confint(1, 3, method="beta")[0],
                                        proportion_confint(2, 3, method="beta")[1]))  # fmt: skip


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=15))
def test_improvement_agrees_with_statsmodels_and_mirrors(values: list[float]) -> None:
    found, mirrored = improvement_probability(values), improvement_probability([-v for v in values])
    assert found.mean + mirrored.mean == pytest.approx(1.0)
    assert ends(found) == pytest.approx((1 - ends(mirrored)[1], 1 - ends(mirrored)[0]))
    if values.count(0.0) % 2 == 0:
        wins = values.count(-1.0) + values.count(0.0) // 2
        expected = proportion_confint(wins, len(values), method="beta")
        assert ends(found) == pytest.approx(np.nan_to_num(expected), abs=1e-9)


def test_effects_by_hand() -> None:
    found = effects(-0.01, baseline_loss=2.0, frozen_loss=3.0, tokens=100, bytes=400)
    assert found.nats_per_token == -0.01
    assert found.perplexity_percent == pytest.approx(-0.9950166)
    assert found.share_of_gain == pytest.approx(0.01)
    assert found.bits_per_byte == pytest.approx(-0.01 * 1.442695 / 4)


def test_effects_without_a_gain_or_bytes_are_missing() -> None:
    for frozen in (None, 2.0, 1.9):
        assert effects(0.1, 2.0, frozen, tokens=1, bytes=1).share_of_gain is None
    assert effects(0.1, 2.0, 3.0, tokens=5, bytes=None).bits_per_byte is None
    assert effects(0.1, 2.0, 3.0, tokens=None, bytes=5).bits_per_byte is None
    assert effects(5000.0, 2.0, 3.0, None, None).perplexity_percent is None


def test_interval_over_records_by_hand() -> None:
    # Sums (2, 0) on (1, 3) tokens: 0.5 a token; e = (1.5, -1.5); error sqrt(2 / 1 · 4.5) / 4 = 0.75.
    found = record_interval(np.array([[2.0, 0.0]]), np.array([1.0, 3.0]))
    assert found.mean == 0.5
    assert ends(found) == pytest.approx((0.5 - 12.7062 * 0.75, 0.5 + 12.7062 * 0.75), abs=1e-3)
    assert (found.n, found.over) == (2, "test records")


def test_interval_over_records_agrees_with_statsmodels() -> None:
    draw = np.random.default_rng(3)
    tokens = draw.integers(1, 60, 80).astype(float)
    losses = draw.normal(0.05, 0.4, (5, 80)) * tokens
    per_token = losses.mean(axis=0) / tokens
    fit = WLS(per_token, np.ones(80), weights=tokens).fit(cov_type="HC1", use_t=True)
    found = record_interval(losses, tokens, level=0.9)
    assert found.mean == pytest.approx(fit.params[0])
    assert ends(found) == pytest.approx(fit.conf_int(alpha=0.1)[0])
    assert found.mean == pytest.approx((losses.sum(axis=1) / tokens.sum()).mean())  # the mean of the seeds' losses


def test_interval_over_records_resamples_records_and_not_seeds() -> None:
    draw = np.random.default_rng(4)
    tokens = np.full(30, 7.0)
    by_record, by_seed = draw.normal(size=(1, 30)), 100 * draw.normal(size=(6, 1))
    found = record_interval(by_record + by_seed, tokens)
    low, high = ends(mean_interval((by_record[0] / 7).tolist()))
    assert ends(found)[1] - ends(found)[0] == pytest.approx(high - low)
    assert record_interval(np.ones((6, 1)), np.ones(1)).low is None


def test_records_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(seeds, 3 records\), got \(2, 4\)"):
        record_interval(np.ones((2, 4)), np.ones(3))
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        record_interval(np.ones(3), np.ones(3))


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
