"""Verdicts: case by case, their laws, and families too small to decide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adaptive_lora.stats.divergence import DivergedPairs
from adaptive_lora.stats.estimators import equivalence_p, holm, interval_of, sign_flip_p
from adaptive_lora.stats.power import seeds_to_call_equivalent, seeds_to_detect
from adaptive_lora.stats.verdicts import Verdict, judge_family, verdict

MARGIN, ALPHA = 0.01, 0.05
BETTER = [-0.015 - 0.001 * i for i in range(8)]
WORSE = [-d for d in BETTER]
TINY = [-0.0012 - 0.0001 * (i - 3.5) for i in range(8)]
SAME = [0.001 * (-1) ** i for i in range(8)]
NOISE = [0.03, -0.02, 0.05, -0.01, -0.04, 0.02, 0.03, -0.03]

families = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.floats(-0.1, 0.1), min_size=0, max_size=8), min_size=1, max_size=5
)


@pytest.mark.parametrize(
    ("differences", "adjusted_p", "expected"),
    [
        (SAME, 1.0, "equivalent"), (TINY, 0.001, "equivalent"), ([0.01] * 5, 1.0, "equivalent"),
        (BETTER, 0.05, "better"), (WORSE, 0.05, "worse"),
        (BETTER, 0.0501, "undecided"), (NOISE, 0.9, "undecided"), (BETTER, None, "undecided"),
        ([0.001], 0.001, "undecided"), ([], None, "undecided"),
    ],
)  # fmt: skip
def test_verdict_case_by_case(differences: Sequence[float], adjusted_p: float | None, expected: str) -> None:
    assert verdict(differences, MARGIN, ALPHA, adjusted_p) == expected


def test_verdict_at_the_margin_by_hand() -> None:
    # 1, 2, 3: the 90 % interval is 2 ± 1.68585.
    assert verdict([1.0, 2.0, 3.0], 3.6859, ALPHA, 1.0) is Verdict.EQUIVALENT
    assert verdict([1.0, 2.0, 3.0], 3.6858, ALPHA, 1.0) is Verdict.UNDECIDED


def test_a_family_is_judged_together() -> None:
    family = {("better", 8): BETTER, ("worse", 8): WORSE, ("tiny", 8): TINY, ("same", 8): SAME, ("noise", 8): NOISE}
    found = judge_family(family, MARGIN, ALPHA)
    assert list(found) == list(family)
    assert [str(j.verdict) for j in found.values()] == ["better", "worse", "equivalent", "equivalent", "undecided"]
    assert [j.adjusted_p for j in found.values()] == holm([sign_flip_p(d) for d in family.values()])
    assert found["better", 8].p == 2 / 2**8
    assert found["better", 8].adjusted_p == 5 * 2 / 2**8
    one = found["noise", 8]
    assert (one.n, one.mean, one.equivalence_p) == (8, pytest.approx(0.00375), equivalence_p(NOISE, MARGIN))
    assert (
        one.interval == interval_of(NOISE)
        and one.equivalence_interval is not None
        and one.equivalence_interval.level == 0.9
    )
    assert one.improvement is not None and one.improvement.mean == 0.5


def test_holm_decides_what_one_comparison_alone_would_not_need() -> None:
    seven = BETTER[:7]  # p = 2 / 128
    assert judge_family({"a": seven}, MARGIN, ALPHA)["a"].verdict is Verdict.BETTER
    among = judge_family({"a": seven, **{str(i): NOISE for i in range(4)}}, MARGIN, ALPHA)["a"]
    assert among.p is not None and among.p <= ALPHA
    assert among.verdict is Verdict.UNDECIDED


def test_families_too_small_to_find_a_difference_can_still_find_equivalence() -> None:
    found = judge_family({"far": BETTER[:5], "same": SAME[:5]}, MARGIN, ALPHA)
    assert [j.verdict for j in found.values()] == [Verdict.UNDECIDED, Verdict.EQUIVALENT]
    assert found["far"].needed == 7  # 2 / 2^7 <= 0.05 / 2


@pytest.mark.parametrize("differences", [[], [-5.0]])
def test_fewer_than_two_seeds_say_nothing_but_keep_their_place(differences: list[float]) -> None:
    found = judge_family({"few": differences, "better": BETTER}, MARGIN, ALPHA)
    few = found["few"]
    assert (few.n, few.mean) == (len(differences), differences[0] if differences else None)
    assert [few.interval, few.equivalence_interval, few.p, few.adjusted_p, few.equivalence_p, few.needed] == [None] * 6
    assert few.verdict is Verdict.UNDECIDED
    assert found["better"].adjusted_p == 2 * 2 / 2**8


def test_a_difference_can_be_significant_and_equivalent() -> None:
    tiny, same, better = judge_family({"tiny": TINY, "same": SAME, "better": BETTER}, MARGIN, ALPHA).values()
    assert [(str(j.verdict), j.significant) for j in (tiny, same, better)] == [
        ("equivalent", True), ("equivalent", False), ("better", True),
    ]  # fmt: skip
    hopeless = judge_family({"arm": [0.5 * (-1) ** i for i in range(8)]}, MARGIN, ALPHA)["arm"]
    assert hopeless.verdict is Verdict.UNDECIDED and hopeless.needed is None


def test_needed_is_the_easier_of_both_ways() -> None:
    mean, sd = float(np.mean(NOISE)), float(np.std(NOISE, ddof=1))
    different, equivalent = seeds_to_detect(mean, sd, ALPHA, 1), seeds_to_call_equivalent(mean, sd, MARGIN)
    assert different is not None and equivalent is not None and different != equivalent
    found = judge_family({"arm": NOISE}, MARGIN, ALPHA)["arm"]
    assert found.needed == min(different, equivalent)
    assert judge_family({"arm": BETTER}, MARGIN, ALPHA)["arm"].needed is None


def test_needed_is_more_than_there_are() -> None:
    # Flipping the one small difference alone gives a larger sum: p = 4 / 256 > 0.05 / 5, for all its power.
    far = [-1.0] * 7 + [0.01]
    found = judge_family({"far": far, **{str(i): NOISE for i in range(4)}}, MARGIN, ALPHA)["far"]
    assert seeds_to_detect(float(np.mean(far)), float(np.std(far, ddof=1)), ALPHA, 5) == 8
    assert (found.p, found.verdict, found.needed) == (4 / 256, Verdict.UNDECIDED, 9)


def test_many_seeds_are_judged_too() -> None:
    values = np.random.default_rng(0).normal(-0.03, 0.02, 30).tolist()
    found = judge_family({"arm": values}, MARGIN, ALPHA)["arm"]
    assert found.verdict is Verdict.BETTER and found.interval == interval_of(values)


@given(families)
@settings(deadline=None)
def test_the_other_sign_is_the_mirrored_verdict(family: dict[str, list[float]]) -> None:
    mirror = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    found = judge_family(family, MARGIN, ALPHA)
    other = judge_family({key: [-d for d in values] for key, values in family.items()}, MARGIN, ALPHA)
    for key, one in found.items():
        assert other[key].verdict is mirror.get(one.verdict, one.verdict)
        assert other[key].adjusted_p == one.adjusted_p


@given(families)
@settings(deadline=None)
def test_verdicts_follow_their_numbers(family: dict[str, list[float]]) -> None:
    for key, one in judge_family(family, MARGIN, ALPHA).items():
        if one.equivalence_p is not None and not math.isclose(one.equivalence_p, 0.05, rel_tol=1e-6):
            assert (one.verdict is Verdict.EQUIVALENT) == (one.equivalence_p < 0.05)
        if one.verdict in (Verdict.BETTER, Verdict.WORSE):
            assert one.adjusted_p is not None and one.adjusted_p <= ALPHA and one.mean is not None
            assert (one.mean < 0) == (one.verdict is Verdict.BETTER)
        if one.needed is not None:
            assert one.needed > len(family[key]) and one.verdict is Verdict.UNDECIDED


def test_two_of_the_same_are_the_same() -> None:
    family = {"many": np.random.default_rng(0).normal(-0.01, 0.04, 30).tolist(), "few": NOISE}
    first, again = (judge_family(family, MARGIN, ALPHA) for _ in range(2))
    assert first == again
    assert judge_family(family, 2 * MARGIN, ALPHA) != first


@pytest.mark.parametrize(
    ("differences", "arm", "baseline", "expected"),
    [
        (BETTER, 4, 0, "undecided"), (BETTER, 0, 4, "better"), (BETTER, 0, 0, "better"),
        (WORSE, 4, 0, "worse"), (WORSE, 0, 1, "undecided"), (WORSE, 1, 1, "undecided"),
        (SAME, 1, 0, "undecided"), (SAME, 0, 1, "undecided"), (NOISE, 1, 0, "undecided"),
    ],
)  # fmt: skip
def test_survivors_alone_give_no_verdict(differences: list[float], arm: int, baseline: int, expected: str) -> None:
    pairs = DivergedPairs(arm, baseline, 8 + arm + baseline)
    found = judge_family({"arm": differences, "other": BETTER}, MARGIN, ALPHA, {"arm": pairs})
    one = found["arm"]
    assert (str(one.verdict), one.diverged_pairs) == (expected, pairs)
    assert found["other"].verdict is Verdict.BETTER and found["other"].diverged_pairs == DivergedPairs()
    assert pairs.any == bool(arm + baseline)
    if pairs.any:
        assert one.needed is None
    assert one.p == sign_flip_p(differences)  # it keeps its place in the family


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_alpha_reaches_equivalence(alpha: float) -> None:
    # 1, 2, 3: the interval of level 1 - 2 alpha is 2 ± t(1 - alpha, 2) / sqrt(3).
    half = float(stats.t.ppf(1 - alpha, 2)) / math.sqrt(3)
    assert verdict([1.0, 2.0, 3.0], 2 + half + 1e-6, alpha, 1.0) is Verdict.EQUIVALENT
    assert verdict([1.0, 2.0, 3.0], 2 + half - 1e-6, alpha, 1.0) is Verdict.UNDECIDED
    one = judge_family({"arm": NOISE}, MARGIN, alpha)["arm"]
    assert one.equivalence_interval is not None and one.equivalence_interval.level == pytest.approx(1 - 2 * alpha)


@given(families, st.sampled_from([0.01, 0.05, 0.2]))
@settings(deadline=None)
def test_equivalence_is_two_one_sided_tests_at_alpha(family: dict[str, list[float]], alpha: float) -> None:
    for one in judge_family(family, MARGIN, alpha).values():
        if one.equivalence_p is not None and not math.isclose(one.equivalence_p, alpha, rel_tol=1e-6):
            assert (one.verdict is Verdict.EQUIVALENT) == (one.equivalence_p < alpha)
