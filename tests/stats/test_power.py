"""Power against closed forms, brute simulation through the test itself, and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower

from adaptive_lora.stats import power as power_room
from adaptive_lora.stats.estimators import equivalence_p, sign_flip_p
from adaptive_lora.stats.power import (
    equivalence_power,
    power_of,
    seeds_to_call_equivalent,
    seeds_to_detect,
    smallest_detectable,
)
from adaptive_lora.stats.seeds import smallest_p


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_power_at_six_seeds_by_hand(shift: float) -> None:
    # The test can only reject at 2 / 64, where all six differences have one sign.
    expected = stats.norm.cdf(shift) ** 6 + stats.norm.cdf(-shift) ** 6
    assert power_of(shift, 1.0, 6, 0.05) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("seeds", "level"), [(7, 0.05), (8, 0.01), (8, 0.05), (9, 0.02), (10, 0.01)])
def test_power_is_how_often_the_test_rejects(seeds: int, level: float) -> None:
    draw = np.random.default_rng(seeds)
    found = [sign_flip_p(draw.normal(-0.9, 1.0, seeds).tolist()) <= level for _ in range(4000)]
    assert power_of(-0.9, 1.0, seeds, level) == pytest.approx(np.mean(found), abs=0.025)


@pytest.mark.parametrize("seeds", [6, 8, 10, 12])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_without_a_difference_power_is_the_level_the_test_has(seeds: int, level: float) -> None:
    reachable = math.floor(level * 2**seeds / 2) * 2 / 2**seeds
    assert power_of(0.0, 1.0, seeds, level) == pytest.approx(reachable, abs=0.006)
    assert reachable <= level


@pytest.mark.parametrize(("seeds", "shift"), [(13, 0.8), (20, 0.6), (50, 0.4), (100, 0.1), (400, -0.1)])
def test_power_of_many_seeds_agrees_with_statsmodels(seeds: int, shift: float) -> None:
    assert power_of(shift, 1.0, seeds, 0.05) == pytest.approx(TTestPower().power(shift, seeds, 0.05), abs=1e-3)


@pytest.mark.parametrize(("seeds", "shift"), [(64, 5.0), (40, 4.0), (20, 2.0), (1000, 0.3), (13, 20.0)])
def test_power_has_a_number_where_scipys_noncentral_t_has_none(seeds: int, shift: float) -> None:
    assert power_of(shift, 1.0, seeds, 0.05) == pytest.approx(1.0, abs=1e-6)


def test_simulation_and_t_power_meet() -> None:
    for shift in (0.4, 0.8, 1.2):
        assert 0 < power_of(shift, 1.0, 13, 0.05) - power_of(shift, 1.0, 12, 0.05) < 0.06


@pytest.mark.parametrize(("seeds", "level"), [(1, 0.05), (5, 0.05), (6, 0.03), (7, 0.01), (13, 0.0002)])
def test_where_no_p_is_small_enough_there_is_no_power(seeds: int, level: float) -> None:
    assert power_of(100.0, 1.0, seeds, level) == 0.0
    assert smallest_detectable(1.0, seeds, level, 1) is None


def test_a_level_that_is_just_reached_counts() -> None:
    assert power_of(9.0, 1.0, 6, 2 / 64) == 1.0
    assert power_of(9.0, 1.0, 6, 3 * (2 / 64) / 3) == 1.0
    # Discreteness: 0.05 gives six seeds no more power than 2 / 64 does.
    assert power_of(1.0, 1.0, 6, 0.05) == power_of(1.0, 1.0, 6, 2 / 64)


@pytest.mark.parametrize("seeds", [6, 12, 13, 60, 5000])
def test_extremes_have_plain_answers(seeds: int) -> None:
    assert power_of(1e6, 1.0, seeds, 0.05) == 1.0
    assert power_of(0.1, 0.0, seeds, 0.05) == 1.0
    assert power_of(0.0, 0.0, seeds, 0.05) == 0.0


@given(st.integers(6, 11), st.floats(0.3, 3), st.floats(0.01, 1), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_power_grows_with_the_difference_and_knows_no_unit(seeds: int, shift: float, more: float, unit: float) -> None:
    here = power_of(shift, 1.0, seeds, 0.05)
    assert here <= power_of(shift + more, 1.0, seeds, 0.05)
    assert here == power_of(-shift, 1.0, seeds, 0.05)
    assert here == pytest.approx(power_of(shift * unit, unit, seeds, 0.05), abs=1e-3)


def test_simulated_power_is_the_same_in_every_process() -> None:
    first = [power_of(shift, 1.0, 8, 0.05) for shift in (0.3, 0.7, 1.1)]
    power_room._critical_shifts.cache_clear()
    assert [power_of(shift, 1.0, 8, 0.05) for shift in (0.3, 0.7, 1.1)] == first


def test_smallest_detectable_by_hand() -> None:
    # Six seeds, one comparison: Phi(d)^6 = 0.8.
    expected = stats.norm.ppf(0.8 ** (1 / 6))
    assert smallest_detectable(0.01, 6, 0.05, 1) == pytest.approx(0.01 * expected, rel=0.02)


@pytest.mark.parametrize(("seeds", "comparisons"), [(8, 5), (10, 5), (12, 1), (20, 5), (200, 25)])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_smallest_detectable_has_its_power(seeds: int, comparisons: int, power: float) -> None:
    found = smallest_detectable(0.02, seeds, 0.05, comparisons, power)
    assert found is not None
    assert power_of(found, 0.02, seeds, 0.05 / comparisons) == pytest.approx(power, abs=1e-3)


def test_smallest_detectable_agrees_with_statsmodels() -> None:
    expected = TTestPower().solve_power(nobs=40, alpha=0.01, power=0.8)
    assert smallest_detectable(1.0, 40, 0.05, 5) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_a_power_that_cannot_be_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match="`power` must lie between 0 and 1"):
        smallest_detectable(1.0, 10, 0.05, 1, power)


@pytest.mark.parametrize(
    ("shift", "comparisons"), [(5.0, 1), (2.0, 1), (1.0, 1), (1.0, 5), (0.5, 5), (0.2, 12), (-0.2, 1)]
)
def test_seeds_to_detect_are_the_fewest(shift: float, comparisons: int) -> None:
    found = seeds_to_detect(shift, 1.0, 0.05, comparisons)
    assert found is not None
    level = 0.05 / comparisons
    assert power_of(shift, 1.0, found, level) >= 0.8 > power_of(shift, 1.0, found - 1, level)
    assert smallest_p(found) <= level


def test_seeds_to_detect_agrees_with_statsmodels() -> None:
    expected = TTestPower().solve_power(effect_size=0.3, alpha=0.05, power=0.8)
    assert seeds_to_detect(0.3, 1.0, 0.05, 1) == math.ceil(expected)


def test_what_too_many_seeds_would_be_needed_for_has_no_number() -> None:
    assert seeds_to_detect(0.01, 1.0, 0.05, 1) is None
    assert seeds_to_detect(0.01, 1.0, 0.05, 1, most=100_000) == pytest.approx((2.8016 / 0.01) ** 2, rel=1e-3)
    assert seeds_to_detect(0.0, 1.0, 0.05, 1) is None
    assert seeds_to_detect(1.0, 1.0, 0.05, 5, most=9) is None
    assert seeds_to_detect(1.0, 0.0, 0.05, 1) == 6  # differences without noise: 2 / 2^6 is enough


@pytest.mark.parametrize(("sd", "expected"), [(0.005, 4), (0.01, 11), (0.02, 36), (0.03, 78)])
def test_seeds_to_call_equivalent_are_those_of_simulated_studies(sd: float, expected: int) -> None:
    assert seeds_to_call_equivalent(0.0, sd, 0.01) == pytest.approx(expected, abs=1)


def share_called_equivalent(mean: float, sd: float, seeds: int) -> float:
    """Of simulated studies, at a margin of 1, by the test itself."""
    draw = np.random.default_rng([seeds, round(100 * sd)]).normal(mean, sd, (3000, seeds))
    return float(np.mean([p <= 0.05 for row in draw if (p := equivalence_p(row.tolist(), 1.0)) is not None]))


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.5, 1.0), (-0.5, 0.5), (0.9, 0.3), (0.0, 2.0)])
def test_seeds_to_call_equivalent_have_their_power_and_fewer_do_not(mean: float, sd: float) -> None:
    found = seeds_to_call_equivalent(mean, sd, 1.0)
    assert found is not None
    assert equivalence_power(mean, sd, found, 1.0) >= 0.8 > equivalence_power(mean, sd, found - 1, 1.0)
    for seeds in (found, found - 1):
        simulated = share_called_equivalent(mean, sd, seeds)
        assert equivalence_power(mean, sd, seeds, 1.0) == pytest.approx(simulated, abs=0.03)


@given(st.floats(-0.99, 0.99), st.floats(0.02, 8))
@settings(deadline=None, max_examples=30)
def test_more_seeds_than_enough_are_enough(mean: float, sd: float) -> None:
    """What the bisection rests on."""
    enough = [equivalence_power(mean, sd, seeds, 1.0) >= 0.8 for seeds in range(2, 300)]
    assert enough == sorted(enough)


def test_equivalence_without_noise_needs_two_seeds() -> None:
    assert seeds_to_call_equivalent(0.5, 1e-9, 1.0) == seeds_to_call_equivalent(1.0, 0.0, 1.0) == 2
    assert seeds_to_call_equivalent(0.0, 1.0, 1.0, power=0.5) == 7


def test_equivalence_that_cannot_be_has_no_number() -> None:
    assert seeds_to_call_equivalent(1.0, 0.1, 1.0) is None
    assert seeds_to_call_equivalent(-2.0, 0.1, 1.0) is None
    assert seeds_to_call_equivalent(0.0, 1000.0, 1.0) is None
