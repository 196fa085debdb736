"""Power of a study's seeds, by a pilot's spread."""

from __future__ import annotations

import dataclasses

import pytest

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.power import Design, equivalence_power, power_by_arm, power_of
from tests.stats.tables import BASE, moved, table

DESIGN = Design(seeds=10, alpha=0.05, comparisons=4, margin=0.01)


def test_the_detectable_difference_has_the_power_it_says() -> None:
    arms = summarise(
        table({("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(0.0), ("b", "rank:8"): moved(0.0, 10)}), "uniform"
    )
    close, far = power_by_arm(arms, DESIGN)
    assert (close.arm, far.arm) == ("a", "b") and far.sd == pytest.approx(10 * close.sd)
    assert close.detectable is not None and far.detectable == pytest.approx(10 * close.detectable)
    assert power_of(close.detectable, close.sd, 10, 0.05 / 4) == pytest.approx(0.8, abs=0.01)
    assert close.seeds_for_equivalence is not None and close.seeds_for_equivalence <= 4
    assert far.seeds_for_equivalence is not None and far.seeds_for_equivalence > 4
    for seeds, enough in ((far.seeds_for_equivalence, True), (far.seeds_for_equivalence - 1, False)):
        assert (equivalence_power(0.0, far.sd, seeds, 0.01) >= 0.8) == enough
    assert far.seeds_for_margin is not None and power_of(0.01, far.sd, far.seeds_for_margin, 0.05 / 4) >= 0.8


def test_too_few_seeds_have_no_power() -> None:
    arms = summarise(table({("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(0.0)}), "uniform")
    few = Design(seeds=3, alpha=0.05, comparisons=4, margin=0.01)
    assert power_by_arm(arms, few)[0].detectable is None


def test_a_pilot_of_one_seed_says_nothing() -> None:
    arms = summarise(table({("uniform", "rank:8"): BASE[:1], ("a", "rank:8"): BASE[:1]}), "uniform")
    assert power_by_arm(arms, DESIGN) == []


def test_alpha_reaches_the_seeds_for_equivalence() -> None:
    arms = summarise(table({("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(0.0, 10)}), "uniform")
    strict, usual = (power_by_arm(arms, dataclasses.replace(DESIGN, alpha=alpha))[0] for alpha in (0.01, 0.05))
    assert strict.seeds_for_equivalence is not None and usual.seeds_for_equivalence is not None
    assert strict.seeds_for_equivalence > usual.seeds_for_equivalence
    for alpha, one in ((0.01, strict), (0.05, usual)):
        seeds = one.seeds_for_equivalence or 0
        power = [equivalence_power(0.0, one.sd, n, 0.01, alpha) for n in (seeds - 1, seeds)]
        assert power[0] < 0.8 <= power[1]
