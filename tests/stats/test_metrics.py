"""Verdicts by a metric where higher is better: its own sign and unit outside, the rule of losses inside."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.assays import assays
from adaptive_lora.stats.cost_equivalents import at_equal_compute
from adaptive_lora.stats.crossed import PairedTable, crossed, with_two_more
from adaptive_lora.stats.decomposition import decompositions
from adaptive_lora.stats.differences import differences_of
from adaptive_lora.stats.estimators import Floats
from adaptive_lora.stats.evidence import StudyTables
from adaptive_lora.stats.metrics import EXACT_MATCH, TEST_LOSS, Metric, metric_of
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.spreads import pilot_of
from adaptive_lora.stats.verdicts import Judgement
from tests.stats.tables import judged, primary, table

F1 = metric_of({"metric": {"name": "f1", "command": ["score"], "better": "higher"}})
F1_LOST = replace(F1, higher_is_better=False)
WIGGLE = [0.001, -0.001, 0.002, -0.002, 0.001, -0.001, 0.0015, -0.0015]
LEVELS = {("uniform", "rank:8"): 0.5, ("uniform", "rank:4"): 0.42, ("high", "rank:8"): 0.56, ("low", "rank:8"): 0.44,
          ("near", "rank:8"): 0.505, ("shuffled", "rank:8"): 0.46}  # fmt: skip
"""Mean f1 of every arm."""


@dataclass
class Scored:
    """What a run has on its records."""

    score: Floats
    exact: NDArray[np.bool_]


def runs_of(metric: Metric) -> pd.DataFrame:
    """Eight seeds of every arm, all with one loss."""
    runs = table({cell: [2.0] * 8 for cell in LEVELS})
    means = [level + wiggle for level in LEVELS.values() for wiggle in _wiggles(level)]
    return runs.assign(**{metric.column: means})


def _wiggles(level: float) -> list[float]:
    return [round(wiggle * (1 + 3 * level), 6) for wiggle in WIGGLE]


def tables(metric: Metric, records: int = 50, missing: str = "") -> StudyTables:
    """By record, whose effects differ a little from arm to arm."""
    runs = runs_of(metric)
    runs.loc[runs["run_id"] == missing, metric.column] = None

    def scored(run_id: str, split: str) -> Scored | None:
        mean = float(runs.set_index("run_id").loc[run_id, metric.column])  # type: ignore[arg-type]
        own = np.linspace(-0.02, 0.02, records) * (1 + mean)
        return Scored(mean + own, np.arange(records) < round(20 * mean) / 20 * records)

    return StudyTables(runs, scored, metric=metric)  # type: ignore[arg-type]


def by_arm(metric: Metric, *arms: str, margin: object = 0.02) -> dict[str, Judgement]:
    """Verdicts of these arms at rank:8."""
    return {c.arm: own for c, own in judged(tables(metric), primary(*arms), margin=margin).items()}


def test_higher_is_better_where_the_metric_says_so() -> None:
    found, lost = by_arm(F1, "high", "low", "near"), by_arm(F1_LOST, "high", "low", "near")
    assert {arm: str(own.verdict) for arm, own in found.items()} == {
        "high": "better", "low": "worse", "near": "equivalent",
    }  # fmt: skip
    assert {arm: str(own.verdict) for arm, own in lost.items()} == {
        "high": "worse", "low": "better", "near": "equivalent",
    }  # fmt: skip
    for arm, own in found.items():
        other = lost[arm]
        assert own.mean == pytest.approx(LEVELS[arm, "rank:8"] - 0.5, abs=1e-3)
        assert (own.mean, own.p, own.adjusted_p) == pytest.approx((other.mean, other.p, other.adjusted_p))
        for one, two in ((own.interval, other.interval), (own.over_seeds, other.over_seeds)):
            assert one is not None and two is not None and one.low is not None and one.high is not None
            assert (one.mean, one.low, one.high) == pytest.approx((two.mean, two.low, two.high))
            assert one.low < one.mean < one.high
    assert found["high"].improvement is not None and found["high"].improvement.mean == 1.0
    assert lost["high"].improvement is not None and lost["high"].improvement.mean == 0.0


def test_half_the_budget_costs_what_it_loses_by_the_metric() -> None:
    found = by_arm(F1, "near", "high", margin="half-budget")
    assert found["near"].margin.usable and found["near"].margin.value == pytest.approx(0.02, abs=1e-3)
    assert str(found["near"].verdict) == "equivalent" and str(found["high"].verdict) == "better"
    assert found["high"].beyond_margin and not found["near"].beyond_margin
    # Where lower is better, half the budget is better here, and nothing may be called equivalent.
    lost = by_arm(F1_LOST, "near", margin="half-budget")["near"]
    assert not lost.margin.usable and str(lost.verdict) == "worse"
    (assay,) = assays(tables(F1), "uniform", ["rank:8"], None, 0.05)
    assert assay.sensitive and assay.shown is not None and assay.shown.mean == pytest.approx(-0.08, abs=1e-3)
    (other,) = assays(tables(F1_LOST), "uniform", ["rank:8"], None, 0.05)
    assert other.sensitive is False
    assert {s.margin for s in pilot_of(tables(F1), "uniform", None).spreads} == {found["near"].margin.value}


def test_arms_and_parts_of_differences_have_the_metrics_sign() -> None:
    own, arms = tables(F1), {(a.arm, a.budget): a for a in summarise(runs_of(F1), "uniform", F1)}
    high = arms["high", "rank:8"]
    assert high.score is not None and high.score.mean == pytest.approx(0.56, abs=1e-3)
    assert high.difference is not None and high.difference.mean == pytest.approx(0.06, abs=1e-3)
    assert high.same == 8  # the loss is that of the baseline on every seed, whatever the metric says
    assert differences_of(own, "uniform")["low", "rank:8"].shown == pytest.approx(-0.06, abs=1e-3)
    lock = {"primary": primary("high"), "controls": {"arms": {"shuffled": "eva"}}}
    spec = {"arms": [{"name": "high", "strategy": "eva"}], "analysis": {"baseline": "uniform", "alpha": 0.05,
            "margin": 0.01}, "seeds": {"evaluation": list(range(8))}}  # fmt: skip
    (parts,) = decompositions(own, lock, spec)
    assert (parts.price.size.mean, parts.value.size.mean) == pytest.approx((-0.04, 0.1), abs=2e-3)
    assert (str(parts.price.verdict), str(parts.value.verdict)) == ("worse", "better")
    (compute,) = at_equal_compute(runs_of(F1), {"high": "low"}, "uniform", F1)
    assert compute.difference.mean == pytest.approx(0.12, abs=2e-3)


def test_a_run_that_has_still_to_be_scored_is_not_done() -> None:
    own = tables(F1, missing="highrank:83")
    assert judged(own, primary("high"))[Comparison("high", "rank:8")].n == 7
    assert own.finished(("high", "rank:8")) == frozenset(range(8)) - {3}
    runs = runs_of(F1)
    runs.loc[runs["run_id"] == "highrank:83", F1.column] = None
    (high,) = (arm for arm in summarise(runs, "uniform", F1) if arm.arm == "high")
    assert len(high.differences) == 7 and high.loss is not None and high.loss.n == 8


def test_right_or_wrong_is_told_from_certainty_and_its_means_are_the_records_own() -> None:
    exact = judged(tables(EXACT_MATCH), primary("high", "near"))
    high, near = exact[Comparison("high", "rank:8")], exact[Comparison("near", "rank:8")]
    assert high.mean == pytest.approx(0.06) and high.records == 50  # 28 of 50 and 25 of 50, on every seed
    assert near.mean == 0.0 and near.p == 1.0 and str(near.verdict) == "undecided"
    assert near.interval is not None and near.interval.high is not None and near.interval.high > 0.02
    whole = PairedTable(np.zeros((3, 4)), np.ones(4), (0, 1, 2))
    plain, more = crossed(whole), crossed(with_two_more(whole))
    assert plain.p() == 1.0 and plain.interval().high == 0.0 and more.test_records == 4
    assert more.interval().high is not None and more.interval().high > 0.3  # type: ignore[operator]


def test_a_metric_says_which_way_is_better() -> None:
    assert (F1.better_differences, F1.better_side, F1.sign) == ("positive", "right", -1)
    assert (TEST_LOSS.better_differences, TEST_LOSS.better_side, TEST_LOSS.sign) == ("negative", "left", 1)
    renamed = {"name": "f1", "command": ["score", "--all"], "better": "higher"}
    assert metric_of({"metric": renamed}).key != F1.key  # scores of another command are none of this one
