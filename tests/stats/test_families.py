"""What a family costs: step-down max-T against Dunnett's tables and simulation; moderated variances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adaptive_lora.stats.crossed import Crossed, PairedTable, crossed, of_seed_means
from adaptive_lora.stats.moderation import FEWEST, moderated, prior
from adaptive_lora.stats.step_down import MOST_CORRELATED, correlation_of, family_p, step_down
from adaptive_lora.streams import numpy_stream


@pytest.mark.parametrize(
    ("comparisons", "level", "critical"),
    # Dunnett (1964), two-sided, rho = 1/2, infinite degrees of freedom.
    [(1, 0.05, 1.96), (2, 0.05, 2.21), (3, 0.05, 2.35), (5, 0.05, 2.51), (9, 0.05, 2.69), (5, 0.01, 3.06)],
)
def test_dunnetts_table(comparisons: int, level: float, critical: float) -> None:
    p = 2 * float(stats.norm.sf(critical))
    assert family_p(p, comparisons, 0.5) == pytest.approx(level, rel=0.02)


def test_dunnetts_table_is_that_of_scipy() -> None:
    for comparisons in (2, 5):
        cov = np.full((comparisons, comparisons), 0.5) + 0.5 * np.eye(comparisons)
        low, high = np.full(comparisons, -2.4), np.full(comparisons, 2.4)
        inside = stats.multivariate_normal.cdf(high, cov=cov, lower_limit=low, rng=0)
        assert family_p(2 * float(stats.norm.sf(2.4)), comparisons, 0.5) == pytest.approx(1 - inside, abs=2e-4)


def test_one_sided_families_pay_for_one_side() -> None:
    # Dunnett (1955), one-sided 5 %, rho = 1/2, infinite degrees of freedom: 2.23 for five comparisons.
    assert family_p(float(stats.norm.sf(2.23)), 5, 0.5, sided=1) == pytest.approx(0.05, rel=0.02)


@given(st.lists(st.floats(1e-6, 0.99), min_size=1, max_size=8))
def test_without_correlation_it_is_sidaks_step_down(p_values: list[float]) -> None:
    adjusted, largest = dict[int, float](), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for step, index in enumerate(order):
        largest = max(largest, -math.expm1((len(p_values) - step) * math.log1p(-p_values[index])))
        adjusted[index] = largest
    assert step_down(p_values, 0.0) == pytest.approx([adjusted[i] for i in range(len(p_values))], rel=1e-6)


@given(st.lists(st.floats(1e-6, 0.99), min_size=1, max_size=6), st.floats(0, MOST_CORRELATED))
def test_a_family_never_makes_a_p_smaller_nor_costs_more_than_holm(p_values: list[float], correlation: float) -> None:
    adjusted = step_down(p_values, correlation)
    holm, largest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        holm[index] = largest
    assert all(p <= own + 1e-12 and own <= bound + 1e-6 for p, own, bound in zip(p_values, adjusted, holm, strict=True))


def test_tiny_p_keep_their_digits_and_impossible_ones_stay() -> None:
    assert family_p(1e-12, 5, 0.5) == pytest.approx(5e-12, rel=0.1)
    assert (family_p(0.0, 5, 0.5), family_p(1.0, 5, 0.5), family_p(0.03, 1, 0.9)) == (0.0, 1.0, 0.03)
    assert step_down([1.0, 1.0], 0.5) == [1.0, 1.0]


def test_correlation_is_that_of_arms_that_share_a_baseline() -> None:
    draw = numpy_stream(0, "correlation")
    base = draw.normal(size=400)
    tables = {i: of_seed_means(dict(enumerate((draw.normal(size=400) - base).tolist()))) for i in range(3)}
    assert correlation_of(tables) == pytest.approx(0.5, abs=0.06)
    same = {i: of_seed_means({0: 1.0, 1: 2.0, 2: 4.0}) for i in range(2)}
    assert correlation_of(same) == MOST_CORRELATED
    against = {0: of_seed_means({0: 1.0, 1: 2.0, 2: 3.0}), 1: of_seed_means({0: 3.0, 1: 2.0, 2: 1.0})}
    assert correlation_of(against) == 0.0
    apart = {0: of_seed_means({0: 1.0, 1: 2.0}), 1: of_seed_means({7: 1.0, 8: 2.0})}
    assert correlation_of(apart) == 0.0
    still = {0: of_seed_means({0: 0.0, 1: 0.0, 2: 1e-230}), 1: of_seed_means({0: 0.0, 1: 0.0, 2: 1.0})}
    assert correlation_of(still) == 0.0  # its square is zero as a float


@pytest.mark.parametrize(("freedom", "centre", "known"), [(6.0, 2.0, 5), (20.0, 0.01, 9)])
def test_the_prior_is_found_again(freedom: float, centre: float, known: int) -> None:
    """Variances about draws of a scaled inverse chi2, as Smyth (2004) has them."""
    draw = numpy_stream(0, "prior", known)
    true = freedom * centre / draw.chisquare(freedom, 20_000)
    seen = true * draw.chisquare(known, 20_000) / known
    d0, s0 = prior([(float(value), float(known)) for value in seen])
    assert d0 == pytest.approx(freedom, rel=0.1) and s0 == pytest.approx(centre, rel=0.03)


def test_equal_variances_are_pooled_and_few_are_left_alone() -> None:
    own = [crossed(of_seed_means({0: 0.0, 1: 1.0, 2: 5.0 + i / 1e6})) for i in range(FEWEST)]
    pooled = moderated(own, most=2.0)
    assert [c.seed_freedom for c in pooled] == [2.0 + 2 * 2.0] * FEWEST  # the prior is capped at twice the own
    # log s² lies below log sigma² on average, by log 1 - digamma(1) with two degrees of freedom: Euler's constant.
    assert pooled[0].seed_variance == pytest.approx(7.0 * (1 + 2 * math.exp(np.euler_gamma)) / 3, rel=1e-4)
    assert moderated(own[:-1]) == own[:-1]


def test_an_outlier_is_drawn_towards_the_others_and_keeps_its_mean() -> None:
    values = [0.9, 1.0, 1.1, 1.0, 8.0]
    found = [Crossed(0.5, 6, 1, value, 5.0, None, None) for value in values]
    after = moderated(found)
    assert after[-1].mean == 0.5 and 1.0 < (after[-1].seed_variance or 0) < 8.0
    assert all((a.seed_variance or 0) >= v for a, v in zip(after[:-1], values[:-1], strict=True) if v < 1.0)
    none = PairedTable(np.zeros((3, 2)), np.ones(2), (0, 1, 2))
    with_none = moderated([*found, crossed(none)])
    assert with_none[-1] == crossed(none)  # no variance: nothing to draw


def test_the_error_of_a_family_is_held_with_few_seeds() -> None:
    """1,500 families of five arms with one baseline and six seeds, nothing there: at most 5 % find something."""
    false = 0
    for study in range(1500):
        draw = numpy_stream(study, "family error")
        differences = draw.normal(size=(5, 6)) - draw.normal(size=6)
        tables = {i: of_seed_means(dict(enumerate(own.tolist()))) for i, own in enumerate(differences)}
        found = moderated([crossed(table) for table in tables.values()])
        p = step_down([c.p() or 1.0 for c in found], correlation_of(tables))
        false += min(p) <= 0.05
    assert false / 1500 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1500)
