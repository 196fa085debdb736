"""Whether a task responds to rank: the baseline at half of a budget."""

from __future__ import annotations

import pytest

from adaptive_lora.stats.assays import AssayResult, assays, untested_budgets
from adaptive_lora.stats.crossed import BOTH
from tests.stats.tables import BASE, WIGGLE, by_record, by_seed, moved, table

ALPHA = 0.05


@pytest.mark.parametrize(
    ("by", "wiggles", "sensitive", "result"),
    [
        (0.03, 1.0, True, AssayResult.WORSE),
        (0.0125, 1.0, True, AssayResult.WORSE),
        (0.011, 2.0, None, AssayResult.OPEN),  # the mean lies beyond the margin, the low end does not
        (0.005, 1.0, False, AssayResult.WORSE_WITHIN),
        (0.009, 2.0, None, AssayResult.OPEN),
        (0.02, 20.0, False, AssayResult.NOT_WORSE),
        (-0.02, 1.0, False, AssayResult.NOT_WORSE),
    ],
)
def test_half_has_to_be_worse_by_more_than_a_margin_that_is_a_number(
    by: float, wiggles: float, sensitive: bool | None, result: AssayResult
) -> None:
    half = [loss + by + wiggles * wiggle for loss, wiggle in zip(BASE, WIGGLE, strict=True)]
    tables = by_seed(table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): half}))
    (assay,) = assays(tables, "uniform", ["rank:8"], 0.01, ALPHA)
    assert (assay.half, assay.sensitive, assay.result) == ("rank:4", sensitive, result)
    assert assay.loss_of_half is not None and assay.loss_of_half.mean == pytest.approx(by, abs=0.01)
    assert assay.loss_of_half.level == pytest.approx(0.9)
    assert not assay.margin.measured and assay.margin.value == 0.01


@pytest.mark.parametrize(("by", "wiggles"), [(0.03, 1.0), (0.001, 1.0), (0.003, 2.2), (0.02, 20.0), (-0.02, 1.0)])
def test_a_measured_margin_asks_only_whether_half_is_worse(by: float, wiggles: float) -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(by, wiggles)})
    for tables in (by_seed(runs), by_record(runs)):
        (assay,) = assays(tables, "uniform", ["rank:8"], None, ALPHA)
        assert assay.margin.measured and assay.sensitive == assay.margin.usable
        assert assay.result is (AssayResult.WORSE if assay.margin.usable else AssayResult.NOT_WORSE)


def test_records_count_where_their_losses_are_known() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(0.02)})
    alone, few, noisy = (
        assays(tables, "uniform", ["rank:8"], None, ALPHA)[0]
        for tables in (by_seed(runs), by_record(runs), by_record(runs, noise=0.3))
    )
    assert [a.loss_of_half.over for a in (alone, few) if a.loss_of_half] == ["seeds", BOTH]
    assert (alone.sensitive, few.sensitive, noisy.sensitive) == (True, True, False)


def test_budgets_without_an_assay_are_untested() -> None:
    runs = table({(arm, budget): moved(by) for budget, by in (("rank:8", 0.0), ("rank:4", 0.1), ("rank:2", 0.2))
                  for arm in ("uniform", "a")})  # fmt: skip
    found = assays(by_seed(runs), "uniform", ["rank:2", "rank:8", "rank:4"], 0.01, ALPHA)
    assert [(assay.budget, assay.sensitive) for assay in found] == [("rank:8", True), ("rank:4", True)]
    assert untested_budgets(["rank:2", "rank:4"], found) == ["rank:2"]


def test_too_few_seeds_at_half_leave_it_unknown() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): [2.1]})
    for tables in (by_seed(runs), by_record(runs)):
        (assay,) = assays(tables, "uniform", ["rank:8"], 0.01, ALPHA)
        assert assay.sensitive is None and assay.result is AssayResult.TOO_FEW
    assert assays(by_seed(table({("uniform", "rank:8"): BASE})), "uniform", ["rank:8", "rank:1"], 0.01, ALPHA) == []
