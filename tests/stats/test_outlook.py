"""What seeds can tell apart, by a pilot's spread."""

from __future__ import annotations

import pytest

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.outlook import Question, outlook_text, outlooks
from adaptive_lora.stats.power import equivalence_power, power_of
from tests.stats.test_judge import BASE, moved, table

QUESTION = Question(seeds=10, alpha=0.05, comparisons=4, margin=0.01)


def test_the_detectable_difference_has_the_power_it_says() -> None:
    wide = [loss + 10 * (new - loss) for loss, new in zip(BASE, moved(0.0), strict=True)]
    arms = summarise(
        table({("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(0.0), ("b", "rank:8"): wide}), "uniform"
    )
    close, far = outlooks(arms, QUESTION)
    assert (close.arm, far.arm) == ("a", "b") and far.sd == pytest.approx(10 * close.sd)
    assert close.detectable is not None and far.detectable == pytest.approx(10 * close.detectable)
    assert power_of(close.detectable, close.sd, 10, 0.05 / 4) == pytest.approx(0.8, abs=0.01)
    assert close.seeds_for_equivalence is not None and close.seeds_for_equivalence <= 4
    assert far.seeds_for_equivalence is not None and far.seeds_for_equivalence > 4
    for seeds, enough in ((far.seeds_for_equivalence, True), (far.seeds_for_equivalence - 1, False)):
        assert (equivalence_power(0.0, far.sd, seeds, 0.01) >= 0.8) == enough
    assert far.seeds_for_margin is not None and power_of(0.01, far.sd, far.seeds_for_margin, 0.05 / 4) >= 0.8
    text = outlook_text([close, far], QUESTION)
    assert f"{far.detectable:.4f}" in text and "of the widest, b at rank:8" in text
    assert text.endswith(f"to show equivalence as often, were there none, {far.seeds_for_equivalence} seeds.")


def test_too_few_seeds_have_no_power_and_say_so() -> None:
    arms = summarise(table({("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(0.0)}), "uniform")
    few = Question(seeds=3, alpha=0.05, comparisons=4, margin=0.01)
    assert outlooks(arms, few)[0].detectable is None
    assert outlook_text(outlooks(arms, few), few) == "Power: none; 3 seeds can never decide 4 comparisons at 0.05."


def test_a_pilot_of_one_seed_says_nothing() -> None:
    arms = summarise(table({("uniform", "rank:8"): BASE[:1], ("a", "rank:8"): BASE[:1]}), "uniform")
    assert outlooks(arms, QUESTION) == [] and "says nothing of power" in outlook_text([], QUESTION)
