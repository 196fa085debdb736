"""The crossed table of seeds and records: by hand, against a mixed model and older estimators, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from adaptive_lora.stats.crossed import (
    BOTH,
    RECORDS,
    SEEDS,
    Components,
    PairedTable,
    clustered,
    crossed,
    of_seed_means,
)
from adaptive_lora.stats.estimators import Floats, mean_interval, record_interval
from adaptive_lora.streams import numpy_stream


def table_of(differences: list[list[float]] | Floats, tokens: list[float] | Floats | None = None) -> PairedTable:
    values = np.asarray(differences, dtype=np.float64)
    lengths = np.ones(values.shape[1]) if tokens is None else np.asarray(tokens, dtype=np.float64)
    return PairedTable(values, lengths, tuple(range(len(values))))


def drawn(seeds: int, records: int, parts: tuple[float, float, float], *names: str | int, mean: float = 0.0) -> Floats:
    """Effects of seeds, records and both, normal, with these standard deviations."""
    draw = numpy_stream(0, "crossed", *names)
    own, theirs, rest = parts
    return np.asarray(
        mean + own * draw.normal(size=(seeds, 1)) + theirs * draw.normal(size=records)
        + rest * draw.normal(size=(seeds, records))
    )  # fmt: skip


def test_three_seeds_and_four_records_by_hand() -> None:
    # Row means 3, 5, 7; column means 3, 5, 5, 7; the mean is 5.
    # By seed 4 (4 + 0 + 4) / 2 = 16, by record 3 (4 + 0 + 0 + 4) / 3 = 8.
    # What is left, row by row: (1, -1, 0, 0), (0, 2, 0, -2), (-1, -1, 0, 2), of which the squares sum to 16.
    found = crossed(table_of([[2, 2, 3, 5], [3, 7, 5, 5], [4, 6, 7, 11]]))
    assert found.mean == 5.0 and (found.n, found.records) == (3, 4)
    assert found.seed_variance == pytest.approx(16 / 4)  # M_seeds / R
    assert found.record_variance == pytest.approx(8 / 3)  # M_records / S
    assert found.both_variance == pytest.approx(16 / 6)
    error, freedom = found.error or (0.0, 0.0)
    assert error**2 == pytest.approx((16 + 8 - 16 / 6) / 12)
    assert freedom == 2  # of the seeds, which are fewer than the records
    half = float(stats.t.ppf(0.975, freedom)) * error
    interval = found.interval()
    assert (interval.low, interval.high) == (pytest.approx(5 - half), pytest.approx(5 + half))
    assert (interval.n, interval.over, found.source) == (3, BOTH, BOTH)
    assert found.p() == pytest.approx(2 * float(stats.t.sf(5 / error, freedom)))
    assert found.p_below(8.0) == pytest.approx(float(stats.t.cdf(-3 / error, freedom)))
    found_parts = found.components
    assert found_parts is not None
    assert found_parts.seeds == pytest.approx(4 - 16 / 6 / 4) and found_parts.records == pytest.approx(
        8 / 3 - 16 / 6 / 3
    )
    assert found_parts.variance(3, 4) == pytest.approx(error**2)


def test_mean_squares_are_those_of_an_analysis_of_variance() -> None:
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    values = drawn(7, 12, (0.5, 1.0, 0.7), "anova", mean=0.3)
    rows = pd.DataFrame([(i, r, values[i, r]) for i in range(7) for r in range(12)], columns=["seed", "record", "d"])
    squares = anova_lm(ols("d ~ C(seed) + C(record)", rows).fit())["mean_sq"]
    found = crossed(table_of(values))
    assert found.seed_variance == pytest.approx(squares["C(seed)"] / 12)
    assert found.record_variance == pytest.approx(squares["C(record)"] / 7)
    assert found.both_variance == pytest.approx(squares["Residual"])


def test_components_are_those_of_a_mixed_model() -> None:
    import pandas as pd
    from statsmodels.regression.mixed_linear_model import MixedLM

    values = drawn(12, 30, (0.8, 0.6, 0.5), "mixed")
    rows = pd.DataFrame([(i, r, values[i, r]) for i in range(12) for r in range(30)], columns=["seed", "record", "d"])
    rows["all"] = 1
    parts = {"seed": "0 + C(seed)", "record": "0 + C(record)"}
    fitted = MixedLM.from_formula("d ~ 1", rows, groups="all", vc_formula=parts, re_formula="0").fit(reml=True)
    by_name = dict(zip(fitted.model.exog_vc.names, fitted.vcomp, strict=True))
    own = crossed(table_of(values)).components
    assert own is not None  # a balanced table: REML and the method of moments agree
    assert own.seeds == pytest.approx(by_name["seed"], rel=1e-3)
    assert own.records == pytest.approx(by_name["record"], rel=1e-3)
    assert own.both == pytest.approx(fitted.scale, rel=1e-3)


def test_each_source_alone_is_what_it_was_before() -> None:
    draw = numpy_stream(0, "alone")
    tokens = draw.integers(5, 60, 40).astype(np.float64)
    values = tokens * drawn(6, 40, (0.01, 0.05, 0.02), "alone")
    table, level = table_of(values, tokens), 0.9
    found = crossed(table)
    over_records, over_seeds = record_interval(values, tokens, level), mean_interval(table.by_seed.tolist(), level)
    for own, before in ((found.over_records(level), over_records), (found.over_seeds(level), over_seeds)):
        assert own is not None
        assert (own.mean, own.low, own.high) == pytest.approx((before.mean, before.low, before.high))
    assert (found.over_seeds().over, found.over_records().over) == (SEEDS, RECORDS)  # type: ignore[union-attr]
    assert found.over_records().n == 40  # type: ignore[union-attr]


def test_with_one_of_a_kind_the_other_is_resampled_alone() -> None:
    by_seed = crossed(of_seed_means({3: 1.0, 5: 2.0, 8: 3.0}))
    assert (by_seed.source, by_seed.components, by_seed.over_records()) == (SEEDS, None, None)
    assert by_seed.p() == pytest.approx(float(stats.ttest_1samp([1.0, 2.0, 3.0], 0.0).pvalue))
    by_record = crossed(table_of([[1.0, 2.0, 4.0]]))
    assert (by_record.source, by_record.over_seeds()) == (RECORDS, None)
    assert by_record.p() == pytest.approx(float(stats.ttest_1samp([1.0, 2.0, 4.0], 0.0).pvalue))
    alone = crossed(table_of([[1.0]]))
    assert (alone.error, alone.p(), alone.interval().low) == (None, None, None)


def test_equal_differences_have_no_error() -> None:
    found = crossed(table_of(np.full((4, 5), 0.25)))
    assert found.error == (0.0, 3.0) and (found.interval().low, found.interval().high) == (0.25, 0.25)
    assert (found.p(), found.p(0.25), found.p_below(0.5)) == (0.0, 1.0, 0.0)


def test_a_table_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match=r"must be \(1 seeds, 2 records\), got \(1, 1\)"):
        PairedTable(np.zeros((1, 1)), np.ones(2), (0,))
    with pytest.raises(ValueError, match="must be finite"):
        table_of([[math.nan]])
    with pytest.raises(ValueError, match="every record must have tokens"):
        table_of([[1.0]], [0.0])
    with pytest.raises(ValueError, match="needs a seed"):
        crossed(PairedTable(np.zeros((0, 2)), np.ones(2), ()))


def test_records_of_one_conversation_count_once() -> None:
    values = np.repeat(drawn(8, 10, (0.0, 1.0, 0.1), "clusters"), 3, axis=1)
    table = table_of(values)
    apart, together = crossed(table), crossed(clustered(table, [i // 3 for i in range(30)]))
    assert together.mean == pytest.approx(apart.mean) and together.records == 10
    assert (together.error or (0, 0))[0] > 1.5 * (apart.error or (0, 0))[0]


def test_tables_are_cut_and_combined_by_seed() -> None:
    one = PairedTable(np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones(2), (1, 2))
    other = PairedTable(np.array([[10.0, 10.0], [20.0, 20.0]]), np.ones(2), (2, 9))
    assert one.of_seeds([2, 7]).seeds == (2,) and one.of_seeds([2]).differences.tolist() == [[3.0, 4.0]]
    assert one.plus(other, 0.5).differences.tolist() == [[8.0, 9.0]] and one.plus(other, 0.5).seeds == (2,)


@pytest.mark.parametrize("parts", [(1.0, 1.0, 1.0), (0.2, 2.0, 1.0), (1.0, 0.1, 3.0)])
def test_intervals_hold_over_new_seeds_and_new_records(parts: tuple[float, float, float]) -> None:
    """2,000 studies of six seeds and forty records: 95 % of intervals cover, with an error of 0.5 %; more where the
    difference varies by record above all, as the degrees of freedom are those of the seeds."""
    hits = [_covers(crossed(table_of(drawn(6, 40, parts, "coverage", i)))) for i in range(2000)]
    assert 0.93 <= float(np.mean(hits)) <= (0.98 if parts[0] >= 1 else 1.0)


def _covers(found: object) -> bool:
    interval = found.interval()  # type: ignore[attr-defined]
    return bool(interval.low <= 0 <= interval.high)


def test_a_components_variance_falls_with_both() -> None:
    assert Components(4.0, 10.0, 20.0).variance(4, 10) == pytest.approx(1 + 1 + 0.5)
