"""Verdicts of a study's own hypotheses, from its table of runs and their losses by record."""

from __future__ import annotations

import pytest

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.crossed import BOTH
from adaptive_lora.stats.differences import between, differences_of, with_differences
from adaptive_lora.stats.divergence import DivergedPairs
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Verdict
from tests.stats.tables import BASE, by_record, by_seed, diverge, judged, moved, primary, table

LOW = Comparison("low", "rank:8")
THREE = {("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05)}


def test_every_hypothesis_has_its_verdict_and_nothing_else_has_one() -> None:
    runs = table({**THREE, ("same", "rank:8"): moved(0.0), ("other", "rank:8"): moved(-0.05)})
    for tables in (by_record(runs), by_seed(runs)):
        found = judged(tables, primary("low", "high", "same"))
        assert {c.arm: j.verdict for c, j in found.items()} == {
            "low": Verdict.BETTER, "high": Verdict.WORSE, "same": Verdict.EQUIVALENT,
        }  # fmt: skip
    assert judged(by_seed(runs), []) == {}


def test_losses_by_record_make_the_records_count() -> None:
    runs = table(THREE)
    whole, alone = (judged(tables, primary("low", "high"))[LOW] for tables in (by_record(runs), by_seed(runs)))
    assert (whole.records, alone.records) == (50, None)
    assert whole.interval is not None and whole.interval.over == BOTH
    assert alone.interval is not None and alone.interval.over == "seeds"
    assert Caution.ONE_SET_OF_RECORDS in alone.cautions and Caution.FEW_RECORDS in whole.cautions
    assert whole.over_seeds is not None and whole.over_records is not None and alone.over_records is None
    widths = [i.high - i.low for i in (whole.interval, whole.over_seeds) if i.low is not None and i.high is not None]
    assert widths[0] > widths[1]  # the records' part is in it


def test_records_that_vary_leave_open_what_seeds_alone_would_decide() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.02, 0.2)})
    sure, unsure = (judged(by_record(runs, noise=noise), primary("low"))[LOW] for noise in (0.01, 0.2))
    assert (sure.verdict, unsure.verdict) == (Verdict.BETTER, Verdict.UNDECIDED)
    assert unsure.over_seeds is not None and unsure.over_seeds.high is not None and unsure.over_seeds.high < 0


def test_an_arm_without_runs_makes_no_other_easier() -> None:
    tables = by_seed(table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.002, 0.8)}))
    alone, beside = (judged(tables, primary(*names)) for names in (("low",), ("low", "missing")))
    one, two = alone[LOW].adjusted_p, beside[LOW].adjusted_p
    assert one is not None and two == pytest.approx(1 - (1 - one) ** 2)  # nothing is known of their correlation
    missing = beside[Comparison("missing", "rank:8")]
    assert missing.verdict is Verdict.UNDECIDED and missing.mean is None and missing.adjusted_p is None


def test_an_arm_that_diverges_where_the_baseline_does_not_is_not_better() -> None:
    runs = table(THREE)
    diverge(runs, "low", [0, 1])
    diverge(runs, "high", [0])
    low, high = judged(by_record(runs), primary("low", "high")).values()
    assert (low.verdict, low.diverged_pairs) == (Verdict.UNDECIDED, DivergedPairs(2, 0, 8)) and low.n == 6
    assert (high.verdict, high.diverged_pairs) == (Verdict.WORSE, DivergedPairs(1, 0, 8))
    assert Caution.DIVERGED in low.cautions and Caution.DIVERGED in high.cautions


def test_a_baseline_that_diverges_makes_no_arm_worse() -> None:
    runs = table(THREE)
    diverge(runs, "uniform", [0])
    assert [(j.verdict, j.diverged_pairs) for j in judged(by_record(runs), primary("low", "high")).values()] == [
        (Verdict.BETTER, DivergedPairs(0, 1, 8)), (Verdict.UNDECIDED, DivergedPairs(0, 1, 8)),
    ]  # fmt: skip


def test_a_seed_on_which_both_diverge_or_one_is_missing_counts_for_neither() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05)})
    diverge(runs, "uniform", [0])
    diverge(runs, "low", [0, 1])
    runs = runs[~((runs["arm"] == "uniform") & (runs["seed"] == 1))]
    (low,) = judged(by_record(runs), primary("low")).values()
    assert (low.verdict, low.diverged_pairs) == (Verdict.BETTER, DivergedPairs(0, 0, 7)) and low.n == 6


def test_a_measured_margin_is_a_quarter_of_what_half_costs() -> None:
    runs = table({**THREE, ("uniform", "rank:4"): moved(0.08), ("near", "rank:8"): moved(0.005)})
    found = judged(by_record(runs), primary("near", "high"), margin="half-budget")
    near, high = found[Comparison("near", "rank:8")], found[Comparison("high", "rank:8")]
    assert near.margin.measured and near.margin.usable and near.margin.value == pytest.approx(0.02, abs=0.001)
    assert near.margin.interval is not None and near.margin.interval.high is not None
    assert near.margin.interval.high > near.margin.value > 0
    assert (near.verdict, near.beyond_margin) == (Verdict.EQUIVALENT, False)
    assert (high.verdict, high.beyond_margin) == (Verdict.WORSE, True)


def test_a_task_that_cannot_tell_ranks_apart_finds_nothing_equivalent() -> None:
    runs = table({**THREE, ("uniform", "rank:4"): moved(-0.001, 2.0), ("same", "rank:8"): moved(0.0)})
    found = judged(by_record(runs), primary("same", "high"), margin="half-budget")
    same, high = found[Comparison("same", "rank:8")], found[Comparison("high", "rank:8")]
    assert not same.margin.usable and Caution.INSENSITIVE in same.cautions
    assert (same.verdict, same.adjusted_equivalence_p) == (Verdict.UNDECIDED, None)
    assert (high.verdict, high.beyond_margin) == (Verdict.WORSE, False)  # worse than nothing is no claim
    without = judged(by_record(table(THREE)), primary("low"), margin="half-budget")[LOW]
    assert without.margin.value is None and without.verdict is Verdict.BETTER


def test_looks_are_judged_as_the_seeds_come_in() -> None:
    runs = table({**THREE, ("same", "rank:8"): moved(0.0, 4.0)})
    waiting = runs[~((runs["arm"] == "high") & (runs["seed"] >= 6))]
    found = judged(by_record(waiting), primary("low", "high", "same"), looks=(4, 8))
    low, high, same = found.values()
    assert (low.verdict, low.look, low.n, low.decided) == (Verdict.BETTER, 1, 4, True)
    assert (high.verdict, high.look, high.n) == (Verdict.WORSE, 1, 4)
    assert same.look == 2 and same.n == 8


def test_every_arm_has_the_interval_of_its_verdict() -> None:
    runs = table({**THREE, ("other", "rank:8"): moved(0.01, 3.0), ("same", "rank:8"): moved(0.0)})
    tables = by_record(runs)
    found = judged(tables, primary("low", "high", "same"))
    differences = differences_of(tables, "uniform")
    assert set(differences) == {(arm, "rank:8") for arm in ("low", "high", "other", "same")}
    for comparison, judgement in found.items():
        own = differences[comparison.arm, comparison.budget].interval()
        assert judgement.interval is not None and own.over == judgement.interval.over
        assert (own.low, own.high) == pytest.approx((judgement.interval.low, judgement.interval.high))
    arms = {arm.arm: arm for arm in with_differences(summarise(runs, "uniform"), differences)}
    assert arms["low"].difference == differences["low", "rank:8"].interval() and arms["uniform"].difference is None


def test_any_two_arms_can_be_paired() -> None:
    tables = by_record(table(THREE))
    apart = between(tables, ("high", "rank:8"), ("low", "rank:8"))
    assert apart is not None and apart.mean == pytest.approx(0.1, abs=0.002) and apart.n == 8
    assert between(tables, ("high", "rank:8"), ("none", "rank:8")) is None
