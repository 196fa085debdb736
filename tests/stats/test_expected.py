"""What a study with looks comes to, beside the rule itself on simulated studies."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from adaptive_lora.stats import expected as room
from adaptive_lora.stats.crossed import Components
from adaptive_lora.stats.expected import expected
from adaptive_lora.stats.margins import SHARE
from adaptive_lora.stats.power import Design, power_of
from adaptive_lora.stats.spreads import Spread
from adaptive_lora.stats.step_down import Family
from adaptive_lora.stats.verdicts import Evidence, Rule, judge_family
from adaptive_lora.streams import numpy_stream
from tests.stats.simulated import Simulated

PARTS = Components(1.0, 80.0, 150.0)
LOOKS = (4, 6, 8)
SPREAD = Spread("a", "rank:8", PARTS, PARTS, 3.0, 0.0, True)
DESIGN = Design(seeds=8, alpha=0.05, comparisons=3, margin=None, records=200, looks=LOOKS, correlation=0.5)


def by_the_rule(true: float, rule: Rule, half: float | None, studies: int = 500) -> tuple[float, float, float, float]:
    """(seeds of a comparison, of the study, share different, share equivalent)."""
    draw, size = numpy_stream(0, "tests", "expected", str(true)), Simulated(PARTS, 8, 200, 0.5)
    seeds, last, verdicts = [], [], []
    for _ in range(studies):
        *tables, smaller = size.tables(draw, [true] * 3 + [half or 0.0])
        family = {
            i: Evidence(table, smaller if half else None, finished=frozenset(range(8)))
            for i, table in enumerate(tables)
        }
        found = judge_family(family, rule).values()
        ends = [LOOKS[(j.look or 1) - 1] if rule.looks else 8 for j in found]
        seeds, last = seeds + ends, [*last, max(ends)]
        verdicts += [str(j.verdict) for j in found]
    shares = [np.mean(np.isin(verdicts, names)) for names in (("better", "worse"), ("equivalent",))]
    return float(np.mean(seeds)), float(np.mean(last)), float(shares[0]), float(shares[1])


@pytest.mark.parametrize("true", [0.0, 1.5, 3.0])
def test_looks_with_a_margin_that_is_a_number(true: float) -> None:
    seeds, last, different, equivalent = by_the_rule(true, Rule(margin=3.0, seeds=tuple(range(8)), looks=LOOKS), None)
    found = expected(replace(SPREAD, half=None), DESIGN, true)
    assert (found.seeds, found.last_seeds) == (pytest.approx(seeds, abs=0.2), pytest.approx(last, abs=0.2))
    assert (found.different, found.equivalent) == (
        pytest.approx(different, abs=0.04),
        pytest.approx(equivalent, abs=0.04),
    )
    assert found.decided == pytest.approx(found.different + found.equivalent)


@pytest.mark.parametrize("true", [0.0, 3.0])
def test_looks_with_a_measured_margin(true: float) -> None:
    rule = Rule(seeds=tuple(range(8)), looks=LOOKS)
    seeds, last, different, equivalent = by_the_rule(true, rule, 3.0 / SHARE)
    found = expected(SPREAD, DESIGN, true)
    assert (found.seeds, found.last_seeds) == (pytest.approx(seeds, abs=0.25), pytest.approx(last, abs=0.25))
    assert (found.different, found.equivalent) == (
        pytest.approx(different, abs=0.05),
        pytest.approx(equivalent, abs=0.05),
    )


def test_one_comparison_and_one_look_have_the_power_of_the_test() -> None:
    one = replace(DESIGN, comparisons=1, looks=())
    found = expected(replace(SPREAD, margin=None), one, 2.0)
    assert (found.seeds, found.last_seeds, found.equivalent) == (8.0, 8.0, 0.0)
    assert found.different == pytest.approx(power_of(2.0, PARTS, 8, 200, Family(0.05)), abs=0.03)


def test_without_a_difference_looks_and_families_hold_alpha() -> None:
    many = replace(DESIGN, seeds=12, looks=(4, 6, 8, 10, 12), comparisons=10)
    found = expected(replace(SPREAD, half=None, margin=None), many, 0.0)
    assert 0.0 < found.different * 10 < 0.08 and found.seeds > 11.9


def test_moderated_variances_decide_sooner() -> None:
    plain, moderated = (expected(replace(SPREAD, prior_freedom=f), DESIGN, 3.0) for f in (0.0, math.inf))
    assert moderated.different > plain.different and moderated.seeds < plain.seeds


def test_without_looks_there_is_one_after_all_seeds_and_more_difference_decides_more() -> None:
    shares = [expected(SPREAD, replace(DESIGN, looks=()), d).different for d in (0.0, 3.0, 6.0)]
    assert shares == sorted(shares) and shares[-1] > 0.9


def test_a_task_that_cannot_tell_ranks_apart_shows_no_equivalence() -> None:
    blind = replace(SPREAD, margin=1e-6)
    assert expected(blind, DESIGN, 0.0).equivalent < 0.02


def test_without_noise_all_is_decided_at_the_first_look() -> None:
    still = replace(SPREAD, difference=Components(0.0, 0.0, 0.0), half=None)
    assert expected(still, DESIGN, 0.0).equivalent == 1.0 and expected(still, DESIGN, 6.0).different == 1.0
    assert expected(still, DESIGN, 6.0).last_seeds == 4


def test_it_is_the_same_in_every_process() -> None:
    first = expected(SPREAD, DESIGN, 1.0)
    room._drawn.cache_clear()
    room._levels.cache_clear()
    assert expected(SPREAD, DESIGN, 1.0) == first
