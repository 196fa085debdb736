"""Margins: a number, or a quarter of what half the budget costs, with its own error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from adaptive_lora.stats.crossed import PairedTable, crossed, of_seed_means
from adaptive_lora.stats.margins import SHARE, Margin, equivalence_p, margin_of
from adaptive_lora.streams import numpy_stream

HALF = [0.05, 0.043, 0.061, 0.047, 0.055, 0.052]
ARM = [0.002, -0.003, 0.004, 0.001, -0.002, 0.003]


def by_seed(values: list[float]) -> PairedTable:
    return of_seed_means(dict(enumerate(values)))


def test_a_number_is_a_margin_without_error() -> None:
    found = margin_of(by_seed(HALF), 0.01, 0.05)
    assert found == Margin(0.01, None, True) and not found.measured and str(found) == "0.01"


def test_a_measured_margin_has_a_quarter_of_the_costs_interval() -> None:
    found = margin_of(by_seed(HALF), None, 0.05)
    cost = stats.ttest_1samp(HALF, 0.0).confidence_interval(0.95)
    assert found.usable and found.measured and found.value == pytest.approx(np.mean(HALF) / 4)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((cost.low / 4, cost.high / 4))


@pytest.mark.parametrize(
    ("half", "usable"), [(HALF, True), ([-h for h in HALF], False), (ARM, False), ([0.05], False)]
)  # fmt: skip
def test_it_is_usable_where_half_is_shown_to_be_worse(half: list[float], usable: bool) -> None:
    assert margin_of(by_seed(half), None, 0.05).usable is usable


def test_alpha_says_what_shown_is() -> None:
    half = [0.01, 0.004, 0.03, -0.004, 0.012, 0.009]
    p = float(stats.ttest_1samp(half, 0.0, alternative="greater").pvalue)
    assert 0.01 < p < 0.05
    assert [margin_of(by_seed(half), None, alpha).usable for alpha in (0.05, 0.01)] == [True, False]


def test_without_a_half_there_is_no_margin() -> None:
    assert margin_of(None, None, 0.05) == Margin(None, None, False)
    assert Margin(None, None, False).measured and str(Margin(None, None, False)) == "unknown"


def test_a_number_gives_two_one_sided_t_tests() -> None:
    table = by_seed(ARM)
    found = equivalence_p({"arm": ((table, None), crossed(table))}, {"arm": Margin(0.01, None, True)})
    sides = (stats.ttest_1samp(ARM, -0.01, alternative="greater"), stats.ttest_1samp(ARM, 0.01, alternative="less"))
    assert found["arm"] == pytest.approx(max(float(side.pvalue) for side in sides))


def test_a_measured_margin_gives_tests_of_two_contrasts() -> None:
    table, half = by_seed(ARM), by_seed(HALF)
    found = equivalence_p({"arm": ((table, half), crossed(table))}, {"arm": margin_of(half, None, 0.05)})
    lower, upper = (np.array(ARM) + sign * SHARE * np.array(HALF) for sign in (1, -1))
    sides = (stats.ttest_1samp(lower, 0.0, alternative="greater"), stats.ttest_1samp(upper, 0.0, alternative="less"))
    assert found["arm"] == pytest.approx(max(float(side.pvalue) for side in sides))


def test_what_has_no_usable_margin_has_no_test() -> None:
    table, half = by_seed(ARM), by_seed([-h for h in HALF])
    assert equivalence_p({"arm": ((table, half), crossed(table))}, {"arm": margin_of(half, None, 0.05)}) == {}
    assert equivalence_p({"arm": ((table, None), None)}, {"arm": Margin(0.01, None, True)}) == {}


def test_false_equivalence_at_a_measured_margin_is_held() -> None:
    """1,200 studies of an arm exactly at the true margin, which is estimated beside it: at most 5 % are equivalent."""
    false = 0
    for study in range(1200):
        draw = numpy_stream(study, "false equivalence")
        base, records = draw.normal(size=8) * 0.01, 60
        half = 0.08 + draw.normal(size=(8, 1)) * 0.01 + draw.normal(size=records) * 0.05 - base[:, None]
        arm = 0.02 + draw.normal(size=(8, 1)) * 0.01 + draw.normal(size=records) * 0.03 - base[:, None]
        tables = [PairedTable(np.asarray(values), np.ones(records), tuple(range(8))) for values in (arm, half)]
        margin = margin_of(tables[1], None, 0.05)
        found = equivalence_p({"arm": ((tables[0], tables[1]), crossed(tables[0]))}, {"arm": margin})
        false += found.get("arm", 1.0) <= 0.05
    assert false / 1200 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1200)
