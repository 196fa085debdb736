"""Verdicts of a study's own hypotheses, from its table of runs."""

from __future__ import annotations

import pytest

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.divergence import DivergedPairs
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Verdict, judge_primary
from tests.stats.tables import ANALYSIS, BASE, diverge, moved, primary, table


def test_every_hypothesis_has_its_verdict_and_nothing_else_has_one() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05),
                  ("same", "rank:8"): moved(0.0), ("other", "rank:8"): moved(-0.05)})  # fmt: skip
    judged = judge_primary(summarise(runs, "uniform"), primary("low", "high", "same"), ANALYSIS)
    assert {c.arm: j.verdict for c, j in judged.items()} == {
        "low": Verdict.BETTER, "high": Verdict.WORSE, "same": Verdict.EQUIVALENT,
    }  # fmt: skip
    assert judged[Comparison("low", "rank:8")].adjusted_p == pytest.approx(3 * 2 / 2**8)


def test_an_arm_without_runs_makes_no_other_easier() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05)})
    arms = summarise(runs, "uniform")
    alone, beside = (judge_primary(arms, primary(*names), ANALYSIS) for names in (("low",), ("low", "missing")))
    low = Comparison("low", "rank:8")
    assert alone[low].adjusted_p == pytest.approx(2 / 2**8) and beside[low].adjusted_p == pytest.approx(2 * 2 / 2**8)
    missing = beside[Comparison("missing", "rank:8")]
    assert missing.verdict is Verdict.UNDECIDED and missing.mean is None


def test_an_arm_that_diverges_where_the_baseline_does_not_is_not_better() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05)})
    diverge(runs, "low", [0, 1])
    diverge(runs, "high", [0])
    judged = judge_primary(summarise(runs, "uniform"), primary("low", "high"), ANALYSIS)
    low, high = judged.values()
    assert (low.verdict, low.diverged_pairs) == (Verdict.UNDECIDED, DivergedPairs(2, 0, 8)) and low.n == 6
    assert (high.verdict, high.diverged_pairs) == (Verdict.WORSE, DivergedPairs(1, 0, 8))


def test_a_baseline_that_diverges_makes_no_arm_worse() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05)})
    diverge(runs, "uniform", [0])
    judged = judge_primary(summarise(runs, "uniform"), primary("low", "high"), ANALYSIS)
    assert [(j.verdict, j.diverged_pairs) for j in judged.values()] == [
        (Verdict.BETTER, DivergedPairs(0, 1, 8)), (Verdict.UNDECIDED, DivergedPairs(0, 1, 8)),
    ]  # fmt: skip


def test_a_seed_on_which_both_diverge_or_one_is_missing_counts_for_neither() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05)})
    diverge(runs, "uniform", [0])
    diverge(runs, "low", [0, 1])
    runs = runs[~((runs["arm"] == "uniform") & (runs["seed"] == 1))]
    (low,) = judge_primary(summarise(runs, "uniform"), primary("low"), ANALYSIS).values()
    assert (low.verdict, low.diverged_pairs) == (Verdict.BETTER, DivergedPairs(0, 0, 7)) and low.n == 6
