"""Whether a task responds to rank: the baseline at half of a budget."""

from __future__ import annotations

import pytest

from adaptive_lora.stats.assays import AssayResult, assays, untested_budgets
from tests.stats.tables import BASE, WIGGLE, moved, table


@pytest.mark.parametrize(
    ("by", "wiggles", "sensitive", "result"),
    [
        (0.03, 1.0, True, AssayResult.WORSE),
        (0.012, 1.0, True, AssayResult.WORSE),
        (0.005, 1.0, False, AssayResult.WORSE_WITHIN),
        (0.009, 2.0, None, AssayResult.OPEN),
        (0.02, 20.0, False, AssayResult.NOT_WORSE),
        (-0.02, 1.0, False, AssayResult.NOT_WORSE),
    ],
)
def test_half_has_to_be_worse_by_more_than_the_margin(
    by: float, wiggles: float, sensitive: bool | None, result: AssayResult
) -> None:
    half = [loss + by + wiggles * wiggle for loss, wiggle in zip(BASE, WIGGLE, strict=True)]
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): half})
    (assay,) = assays(runs, "uniform", ["rank:8"], 0.01)
    assert (assay.half, assay.sensitive, assay.result) == ("rank:4", sensitive, result)
    assert assay.loss_of_half is not None and assay.loss_of_half.mean == pytest.approx(by, abs=0.01)


def test_budgets_without_an_assay_are_untested() -> None:
    runs = table({(arm, budget): moved(by) for budget, by in (("rank:8", 0.0), ("rank:4", 0.1), ("rank:2", 0.2))
                  for arm in ("uniform", "a")})  # fmt: skip
    found = assays(runs, "uniform", ["rank:2", "rank:8", "rank:4"], 0.01)
    assert [(assay.budget, assay.sensitive) for assay in found] == [("rank:8", True), ("rank:4", True)]
    assert untested_budgets(["rank:2", "rank:4"], found) == ["rank:2"]


def test_too_few_seeds_at_half_leave_it_unknown() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): [2.1]})
    (assay,) = assays(runs, "uniform", ["rank:8"], 0.01)
    assert assay.sensitive is None and assay.result is AssayResult.TOO_FEW
    assert assays(table({("uniform", "rank:8"): BASE}), "uniform", ["rank:8", "rank:1"], 0.01) == []
