"""What intervals and verdicts come to."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_lora.recommend.advice import Neighbour, Reading, best_arm, uniform_rank
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.crossed import PairedTable
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.verdicts import Evidence, Judgement, Rule, judge_family

MARGIN = 0.01


def beside(low: float, high: float, n: int = 4) -> Neighbour:
    return Neighbour("rank:4", Interval((low + high) / 2, low, high, n, 0.9), MARGIN)


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [
        (-0.003, 0.007, Reading.AS_GOOD),  # not known to be worse, and by less than the margin if it is
        (0.001, 0.009, Reading.AS_GOOD),
        (-0.004, -0.001, Reading.AS_GOOD),  # better, by next to nothing
        (0.002, 0.02, Reading.WORSE),
        (-0.002, 0.02, Reading.OPEN),
        (-0.30, -0.004, Reading.BETTER),
        (-0.02, 0.001, Reading.AS_GOOD),
    ],
)
def test_an_interval_is_read_against_the_margin(low: float, high: float, reading: Reading) -> None:
    assert beside(low, high).reading is reading


def test_one_seed_or_none_says_nothing() -> None:
    assert beside(0.1, 0.2, n=1).reading is Reading.UNKNOWN
    assert Neighbour("rank:4", None, MARGIN).reading is Reading.UNKNOWN


GOOD, WORSE, OPEN, BETTER = beside(-0.003, 0.007), beside(0.02, 0.04), beside(-0.02, 0.03), beside(-0.08, -0.04)


@pytest.mark.parametrize(
    ("half", "twice", "rank"),
    [(OPEN, OPEN, 8), (WORSE, GOOD, 8), (GOOD, OPEN, 4), (GOOD, BETTER, 16), (OPEN, BETTER, 16), (BETTER, OPEN, 4)],
)
def test_the_middle_stands_unless_an_interval_says_otherwise(half: Neighbour, twice: Neighbour, rank: int) -> None:
    assert uniform_rank(8, half, twice) == rank


def judged(**means: float) -> dict[str, Judgement]:
    """Verdicts on six seeds that differ by a thousandth."""
    spread = 1e-3 * np.array([-1.0, 1, -0.5, 0.5, 0.2, -0.2])
    tables = {arm: PairedTable((mean + spread)[:, None], np.ones(1), tuple(range(6))) for arm, mean in means.items()}
    return judge_family({arm: Evidence(table) for arm, table in tables.items()}, Rule(margin=MARGIN))


def test_only_a_verdict_makes_other_ranks_worth_it() -> None:
    assert best_arm(judged(one=-0.001, two=0.05), OPEN) is None
    assert best_arm(judged(one=-0.02, two=-0.05), OPEN) == "two"
    assert best_arm({}, OPEN) is None


def test_twice_the_budget_that_gains_more_goes_first() -> None:
    assert best_arm(judged(one=-0.05), BETTER) is None  # twice gains 0.06
    assert best_arm(judged(one=-0.07), BETTER) == "one"


@pytest.mark.parametrize(
    "neighbour", [GOOD, WORSE, OPEN, BETTER, beside(0.1, 0.2, n=1), Neighbour("rank:4", None, 0.01)]
)
def test_every_reading_has_its_sentence(neighbour: Neighbour) -> None:
    half, twice = (render(f"recommend.{macro}", neighbour) for macro in ("half", "twice"))
    assert half.startswith("Half, rank 4: ") and twice.startswith("Twice, rank 4: ")
    assert half.endswith(".") and twice.endswith(".") and "  " not in half + twice
    assert ("so it will do" in half) == (neighbour.reading in (Reading.AS_GOOD, Reading.BETTER))
    assert ("worth it" in twice) == (neighbour.reading is Reading.BETTER)


def test_every_verdict_has_its_sentence_with_its_interval() -> None:
    said = [render("recommend.where", arm, own, MARGIN) for arm, own in judged(same=0.0, one=-0.05, two=0.05).items()]
    assert said[0].endswith("against uniform at equal parameters: equivalent within 0.01.")
    assert said[1].startswith("one: −0.05000 [−0.05075, −0.04925] ") and said[1].endswith("parameters: better.")
    assert said[2].endswith("parameters: worse.")
    (open_,) = judged_wide(-0.004).values()
    assert "undecided; a gain of more than 0.0" in render("recommend.where", "arm", open_, MARGIN)


def judged_wide(mean: float) -> dict[str, Judgement]:
    """A verdict on seeds that differ by more than the margin."""
    values = mean + 0.03 * np.array([-1.0, 1, -0.5, 0.5])
    return judge_family(
        {"arm": Evidence(PairedTable(values[:, None], np.ones(1), tuple(range(4))))}, Rule(margin=MARGIN)
    )
