"""Power and widths against the test itself, simulated, against closed forms and against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower

from adaptive_lora.stats.crossed import Components, PairedTable, crossed, of_seed_means
from adaptive_lora.stats.margins import SHARE
from adaptive_lora.stats.power import (
    equivalence_power,
    error_of,
    fewest,
    half_width,
    power_of,
    smallest_detectable,
    width_with,
)
from adaptive_lora.stats.spreads import Spread
from adaptive_lora.stats.step_down import Family, family_p, first_level
from adaptive_lora.stats.verdicts import Evidence, Judgement, Rule, judge_family
from adaptive_lora.streams import numpy_stream
from tests.stats.simulated import Simulated

SEEDS_ALONE = Components(seeds=1.0, records=0.0, both=0.0)
MIXED = Components(seeds=1.0, records=80.0, both=150.0)
STUDIES = 400


def judged(size: Simulated, true: list[float], studies: int, rule: Rule, half: float | None = None) -> list[Judgement]:
    """The first comparison of each of many simulated studies."""
    draw = numpy_stream(0, "tests", "power", size.seeds, *map(str, true))
    found = []
    for _ in range(studies):
        tables = size.tables(draw, [*true, *([] if half is None else [half])])
        smaller = None if half is None else tables.pop()
        family = {i: Evidence(table, smaller) for i, table in enumerate(tables)}
        found.append(judge_family(family, rule)[0])
    return found


@pytest.mark.parametrize(
    ("seeds", "shift", "level"), [(4, 2.0, 0.05), (6, 1.0, 0.05), (13, 0.8, 0.05), (20, 0.6, 0.01), (400, -0.1, 0.05)]
)
def test_where_records_do_not_vary_it_is_the_power_of_a_t_test(seeds: int, shift: float, level: float) -> None:
    expected = TTestPower().power(shift, seeds, level)
    assert power_of(shift, SEEDS_ALONE, seeds, 10_000, Family(level)) == pytest.approx(expected, abs=1e-3)
    assert power_of(0.0, SEEDS_ALONE, seeds, 10_000, Family(level)) == pytest.approx(level, abs=1e-3)


def test_many_records_leave_the_seeds_alone() -> None:
    few, many = (power_of(1.0, MIXED, 10, records, Family(0.05)) for records in (100, 10**9))
    assert few < many == pytest.approx(TTestPower().power(1.0, 10, 0.05), abs=1e-3)


@pytest.mark.parametrize(("seeds", "true"), [(6, 2.2), (10, 1.6)])
def test_power_is_how_often_the_family_finds_it(seeds: int, true: float) -> None:
    size = Simulated(MIXED, seeds, 250, correlation=0.5)
    found = judged(size, [true, 0.0, 0.0], STUDIES, Rule(margin=1e-9))
    share = np.mean([j.adjusted_p is not None and j.adjusted_p <= 0.05 for j in found])
    assert power_of(true, MIXED, seeds, 250, Family(0.05, 3, 0.5)) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("margin", [2.0, 3.0])
def test_power_of_equivalence_is_how_often_it_is_shown(margin: float) -> None:
    found = judged(Simulated(MIXED, 8, 250), [0.0], STUDIES, Rule(margin=margin))
    share = np.mean([str(j.verdict) == "equivalent" for j in found])
    assert equivalence_power(margin, MIXED, 8, 250, Family(0.05)) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("margin", [2.5, 3.5])
def test_a_measured_margin_counts_with_its_own_error(margin: float) -> None:
    found = judged(Simulated(MIXED, 8, 250, 0.5), [0.0], STUDIES, Rule(), half=margin / SHARE)
    share = np.mean([str(j.verdict) == "equivalent" for j in found])
    spread = Spread("a", "rank:8", MIXED, MIXED, margin, 0.0, True)
    reckoned = equivalence_power(margin, spread.contrast, 8, 250, Family(0.05))
    assert reckoned == pytest.approx(share, abs=0.04)
    assert reckoned < equivalence_power(margin, MIXED, 8, 250, Family(0.05))


@given(st.integers(2, 30), st.floats(0.0, 5), st.floats(0.01, 2), st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_power_grows_with_the_difference_and_knows_no_unit(seeds: int, true: float, more: float, unit: float) -> None:
    here = power_of(true, MIXED, seeds, 300, Family(0.05))
    scaled = Components(*(part * unit**2 for part in (MIXED.seeds, MIXED.records, MIXED.both)))
    assert here <= power_of(true + more, MIXED, seeds, 300, Family(0.05)) + 1e-12
    assert here == power_of(-true, MIXED, seeds, 300, Family(0.05))
    assert here == pytest.approx(power_of(true * unit, scaled, seeds, 300, Family(0.05)), abs=1e-6)


@pytest.mark.parametrize(("seeds", "shift"), [(64, 5.0), (40, 4.0), (1000, 0.3), (13, 20.0)])
def test_power_has_a_number_where_scipys_noncentral_t_has_none(seeds: int, shift: float) -> None:
    assert power_of(shift, SEEDS_ALONE, seeds, 100, Family(0.05)) == pytest.approx(1.0, abs=1e-6)


def test_without_noise_every_difference_is_found() -> None:
    still = Components(0.0, 0.0, 0.0)
    assert (power_of(0.1, still, 6, 100, Family(0.05)), power_of(0.0, still, 6, 100, Family(0.05))) == (1.0, 0.0)
    assert (equivalence_power(0.1, still, 6, 100, Family(0.05)), half_width(still, 6, 100)) == (1.0, 0.0)


@pytest.mark.parametrize("comparisons", [1, 5, 10])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_detectable_difference_has_its_power(comparisons: int, power: float) -> None:
    found = smallest_detectable(MIXED, 8, 300, Family(0.05, comparisons, 0.4), power, 2.0)
    assert power_of(found, MIXED, 8, 300, Family(0.05, comparisons, 0.4), 2.0) == pytest.approx(power, abs=1e-6)


def test_the_smallest_detectable_difference_agrees_with_statsmodels() -> None:
    expected = TTestPower().solve_power(nobs=40, alpha=first_level(0.05, 5, 0.0), power=0.8)
    assert smallest_detectable(SEEDS_ALONE, 40, 100, Family(0.05, 5)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_a_power_that_cannot_be_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match="`power` must lie between 0 and 1"):
        smallest_detectable(MIXED, 10, 100, Family(0.05), power=power)


@pytest.mark.parametrize(("comparisons", "rho", "sided"), [(1, 0.0, 2), (5, 0.0, 2), (5, 0.7, 2), (10, 0.5, 1)])
def test_the_first_level_is_where_the_family_spends_alpha(comparisons: int, rho: float, sided: int) -> None:
    level = first_level(0.05, comparisons, rho, sided)
    assert family_p(level, comparisons, rho, sided) == pytest.approx(0.05, rel=1e-6)
    assert 0.05 / comparisons <= level <= 0.05


def test_an_interval_reaches_as_far_as_is_reckoned_from_its_components() -> None:
    (table,) = Simulated(Components(20.0, 80.0, 150.0), 6, 40).tables(numpy_stream(0, "tests", "width"), [0.3])
    found = crossed(table)
    assert found.components is not None and min(vars(found.components).values()) > 0
    for level in (0.9, 0.95):
        own = found.interval(level)
        assert half_width(found.components, 6, 40, level) == pytest.approx((own.high or 0) - own.mean, rel=1e-9)
    assert error_of(found.components, 6, 40) == pytest.approx(found.error, rel=1e-9)


def test_freedom_of_moderated_variances_makes_intervals_narrower() -> None:
    error, freedom = error_of(SEEDS_ALONE, 5, 100, freedom_factor=3.0)
    assert (error, freedom) == (pytest.approx(5**-0.5), pytest.approx(12.0))
    assert half_width(SEEDS_ALONE, 5, 100, 0.95, 3.0) == pytest.approx(stats.t.ppf(0.975, 12) / 5**0.5)


@pytest.mark.parametrize(("seeds", "records"), [(1, 100), (4, 0), (4, 1)])
def test_an_error_takes_two_of_what_varies(seeds: int, records: int) -> None:
    with pytest.raises(ValueError, match="two seeds, and two records where they vary"):
        error_of(MIXED, seeds, records)


def test_the_width_that_more_seeds_would_give() -> None:
    tables = Simulated(MIXED, 6, 200, 0.5).tables(numpy_stream(0, "tests", "width with"), [0.0] * 6)
    for found in judge_family({i: Evidence(table) for i, table in enumerate(tables)}, Rule(margin=1.0)).values():
        assert found.interval is not None and found.components is not None
        own = ((found.interval.high or 0) - (found.interval.low or 0)) / 2
        assert width_with(found, 6) == pytest.approx(own, rel=1e-6)
        twelve, most = width_with(found, 12), width_with(found, 10**6)
        assert twelve is not None and most is not None and own > twelve > most
        # However many seeds there are, the records remain.
        assert most == pytest.approx(1.96 * (found.components.records / 200) ** 0.5, rel=0.01)


def test_the_width_that_more_seeds_would_give_by_seeds_alone() -> None:
    table = of_seed_means({0: -0.01, 1: 0.01, 2: 0.02, 3: -0.02})
    found = judge_family({"a": Evidence(table)}, Rule(margin=0.01))["a"]
    sd = float(np.std(table.by_seed, ddof=1))
    for seeds in (4, 16):
        expected = stats.t.ppf(0.975, seeds - 1) * sd / seeds**0.5
        assert width_with(found, seeds) == pytest.approx(expected, rel=1e-9)


def test_where_nothing_is_known_of_seeds_there_is_no_width() -> None:
    one = PairedTable(np.array([[0.1, 0.2, 0.4]]), np.ones(3), (0,))
    for evidence in (Evidence(None), Evidence(one), Evidence(of_seed_means({0: 0.1}))):
        assert width_with(judge_family({"a": evidence}, Rule(margin=0.01))["a"], 10) is None
    two = judge_family({"a": Evidence(of_seed_means({0: 0.1, 1: 0.2}))}, Rule(margin=0.01))["a"]
    assert width_with(two, 1) is None and width_with(two, 2) is not None


def test_the_fewest_that_are_enough() -> None:
    assert [fewest(lambda n, m=m: n >= m, 4, 60) for m in (0, 4, 17, 60, 61)] == [4, 4, 17, 60, None]  # type: ignore[misc]
    assert fewest(lambda n: True, 10, 9) is None
