"""Verdicts: case by case, their laws, families, looks and margins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adaptive_lora.stats.cautions import Caution, cautions_of
from adaptive_lora.stats.crossed import PairedTable, of_seed_means
from adaptive_lora.stats.divergence import NONE_DIVERGED, DivergedPairs
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.looks import levels, spent
from adaptive_lora.stats.margins import Margin
from adaptive_lora.stats.step_down import correlation_of, family_p, step_down
from adaptive_lora.stats.verdicts import Evidence, Judgement, Rule, Verdict, judge_family, without_survivorship
from adaptive_lora.streams import numpy_stream

MARGIN, ALPHA = 0.01, 0.05
BETTER = [-0.015 - 0.001 * i for i in range(8)]
WORSE = [-d for d in BETTER]
TINY = [-0.0012 - 0.0001 * (i - 3.5) for i in range(8)]
SAME = [0.001 * (-1) ** i for i in range(8)]
NOISE = [0.03, -0.02, 0.05, -0.01, -0.04, 0.02, 0.03, -0.03]
KINDS = {"better": BETTER, "worse": WORSE, "tiny": TINY, "same": SAME, "noise": NOISE}

families = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.floats(-0.1, 0.1), min_size=0, max_size=8), min_size=1, max_size=5
)


def evidence(values: Sequence[float], diverged: DivergedPairs = NONE_DIVERGED, finished: int | None = None) -> Evidence:
    """Of differences that are known by seed alone."""
    table = of_seed_means(dict(enumerate(values))) if values else None
    return Evidence(table, diverged=diverged, finished=frozenset(range(len(values) if finished is None else finished)))


def judged(family: Mapping[str, Sequence[float]], **rule: object) -> dict[str, Judgement]:
    return judge_family({key: evidence(v) for key, v in family.items()}, Rule(**{"margin": MARGIN, **rule}))  # type: ignore[arg-type]


def alone(values: Sequence[float], **rule: object) -> Judgement:
    return judged({"arm": values}, **rule)["arm"]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        (SAME, "equivalent"), (TINY, "equivalent"), ([0.005] * 5, "equivalent"), (BETTER, "better"), (WORSE, "worse"),
        (NOISE, "undecided"), ([0.001], "undecided"), ([], "undecided"),
    ],
)  # fmt: skip
def test_verdict_case_by_case(differences: Sequence[float], expected: str) -> None:
    found = alone(differences)
    assert (found.verdict, found.decided) == (expected, expected != "undecided")
    assert found.cautions[:1] == ((Caution.FEW_SEEDS,) if 0 < len(differences) < 6 else found.cautions[:1])


def test_one_comparison_by_seed_is_a_t_test_and_two_one_sided_ones() -> None:
    found = alone(NOISE)
    tested = stats.ttest_1samp(NOISE, 0.0)
    assert found.p == found.adjusted_p == pytest.approx(float(tested.pvalue))
    low, high = tested.confidence_interval(0.95)
    assert found.interval is not None and (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.over_seeds == found.interval and found.over_records is None and found.records is None
    low, high = tested.confidence_interval(0.9)
    same = found.equivalence_interval
    assert same is not None and (same.low, same.high) == pytest.approx((low, high))
    sides = [
        stats.ttest_1samp(NOISE, -MARGIN, alternative="greater"),
        stats.ttest_1samp(NOISE, MARGIN, alternative="less"),
    ]
    assert found.equivalence_p == pytest.approx(max(float(side.pvalue) for side in sides))
    assert found.adjusted_equivalence_p == pytest.approx(found.equivalence_p)
    assert found.improvement is not None and found.improvement.mean == 0.5


def test_a_family_is_judged_together() -> None:
    found = judged(KINDS)
    assert [str(j.verdict) for j in found.values()] == ["better", "worse", "equivalent", "equivalent", "undecided"]
    rho = correlation_of({key: of_seed_means(dict(enumerate(v))) for key, v in KINDS.items()})
    own = [j.p or 1.0 for j in found.values()]
    assert [j.adjusted_p for j in found.values()] == pytest.approx(step_down(own, rho))
    same = [j.equivalence_p or 1.0 for j in found.values()]
    assert [j.adjusted_equivalence_p for j in found.values()] == pytest.approx(step_down(same, rho, sided=1))


def test_what_one_comparison_decides_alone_it_may_not_among_five() -> None:
    close = [-0.012, -0.031, -0.002, -0.024, -0.006, -0.017]
    assert alone(close, margin=0.001).verdict is Verdict.BETTER
    others = {str(i): numpy_stream(i, "others").normal(0, 0.02, 6).tolist() for i in range(4)}
    among = judged({"arm": close, **others}, margin=0.001)["arm"]
    assert among.p is not None and among.adjusted_p is not None and among.p < ALPHA < among.adjusted_p
    assert among.verdict is Verdict.UNDECIDED


def test_equivalences_are_a_family_of_their_own() -> None:
    near = [0.004, -0.011, 0.009, -0.004, 0.012, 0.001, -0.006, 0.005]
    assert alone(near).verdict is Verdict.EQUIVALENT
    others = {str(i): [d + 0.008 for d in numpy_stream(i, "near").normal(0, 0.02, 8)] for i in range(4)}
    among = judged({"arm": near, **others})["arm"]
    assert among.equivalence_p is not None and among.adjusted_equivalence_p is not None
    assert among.equivalence_p < ALPHA < among.adjusted_equivalence_p
    assert among.verdict is not Verdict.EQUIVALENT


def test_seeds_share_their_variance_where_there_are_enough_comparisons() -> None:
    arms = {str(i): numpy_stream(i, "pool").normal(0, 0.01, 6).tolist() for i in range(5)}
    one = judged({"0": arms["0"]})["0"]
    pool = [of_seed_means(dict(enumerate(arms[str(i)]))) for i in range(1, 5)]
    shared = judge_family({"0": evidence(arms["0"])}, Rule(margin=MARGIN), pool)["0"]
    assert shared.mean == one.mean and shared.interval != one.interval
    assert shared.adjusted_p == shared.p  # the pool lends its variances, and is no part of the family


@pytest.mark.parametrize("differences", [[], [-5.0]])
def test_fewer_than_two_seeds_say_nothing_but_keep_their_place(differences: list[float]) -> None:
    found = judged({"few": differences, "better": BETTER})
    few = found["few"]
    assert (few.n, few.mean) == (len(differences), differences[0] if differences else None)
    assert [few.interval, few.equivalence_interval, few.p, few.adjusted_p, few.equivalence_p] == [None] * 5
    assert few.verdict is Verdict.UNDECIDED
    one = alone(BETTER)
    assert found["better"].adjusted_p == pytest.approx(1 - (1 - (one.p or 0.0)) ** 2)


def test_a_difference_can_be_significant_and_equivalent() -> None:
    tiny, same, better = judged({"tiny": TINY, "same": SAME, "better": BETTER}).values()
    assert [(str(j.verdict), j.significant) for j in (tiny, same, better)] == [
        ("equivalent", True), ("equivalent", False), ("better", True),
    ]  # fmt: skip


def test_beyond_the_margin_is_what_the_whole_interval_says() -> None:
    found = judged({"far": [-0.02 - 0.001 * i for i in range(8)], "near": [-0.011, -0.013, -0.008, -0.012, -0.01] * 2})
    assert [(str(j.verdict), j.beyond_margin) for j in found.values()] == [("better", True), ("better", False)]
    far = found["far"]
    wide = Interval(0.004, -0.003, 0.011, 8, 0.95)
    unusable = replace(far, interval=wide, margin=Margin(-0.01, Interval(-0.01, -0.03, 0.01, 8, 0.95), False))
    assert not unusable.beyond_margin  # half the budget came out better by chance: that is no yardstick


@given(families)
def test_the_other_sign_is_the_mirrored_verdict(family: dict[str, list[float]]) -> None:
    mirror = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    found = judged(family)
    other = judged({key: [-d for d in values] for key, values in family.items()})
    for key, one in found.items():
        assert other[key].adjusted_p == pytest.approx(one.adjusted_p, abs=1e-12)
        near = any(p is not None and math.isclose(p, ALPHA, rel_tol=1e-6)
                   for p in (one.adjusted_p, one.adjusted_equivalence_p))  # fmt: skip
        assert near or other[key].verdict is mirror.get(one.verdict, one.verdict)


@given(families, st.sampled_from([0.01, 0.05, 0.2]))
def test_verdicts_follow_their_numbers(family: dict[str, list[float]], alpha: float) -> None:
    for one in judged(family, alpha=alpha).values():
        same, p = one.adjusted_equivalence_p, one.adjusted_p
        if same is not None:
            assert (one.verdict is Verdict.EQUIVALENT) == (same <= alpha)
        if one.verdict in (Verdict.BETTER, Verdict.WORSE):
            assert p is not None and p <= alpha and one.mean is not None
            assert (one.mean < 0) == (one.verdict is Verdict.BETTER)
        assert one.p is None or (p is not None and one.p <= p)


def test_two_of_the_same_are_the_same() -> None:
    family = {"many": np.random.default_rng(0).normal(-0.01, 0.04, 30).tolist(), "few": NOISE}
    assert judged(family) == judged(family) != judged(family, margin=2 * MARGIN)


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
    found = judge_family({"arm": evidence(differences, pairs), "other": evidence(BETTER)}, Rule(margin=MARGIN))
    one = found["arm"]
    assert (str(one.verdict), one.diverged_pairs) == (expected, pairs)
    assert found["other"].verdict is Verdict.BETTER and found["other"].diverged_pairs == DivergedPairs()
    assert (Caution.DIVERGED in one.cautions) == pairs.any == bool(arm + baseline)
    assert one.p == alone(differences).p  # it keeps its place in the family
    assert without_survivorship(Verdict.UNDECIDED, pairs) is Verdict.UNDECIDED


def test_alpha_reaches_everything() -> None:
    close = [-0.012, -0.031, -0.002, -0.024, -0.006, -0.017]  # p is between 0.01 and 0.05
    loose, strict = (alone(close, alpha=alpha, margin=0.001) for alpha in (0.05, 0.01))
    assert (loose.verdict, strict.verdict) == (Verdict.BETTER, Verdict.UNDECIDED)
    assert (loose.significant, strict.significant) == (True, False)
    for found, level in ((loose, 0.95), (strict, 0.99)):
        every = (found.interval, found.over_seeds, found.improvement)
        assert all(i is not None and i.level == pytest.approx(level) for i in every)
    near = [0.004, -0.011, 0.009, -0.004, 0.012, 0.001, -0.006, 0.005]
    loose, strict = (alone(near, alpha=alpha) for alpha in (0.05, 0.001))
    assert (loose.verdict, strict.verdict) == (Verdict.EQUIVALENT, Verdict.UNDECIDED)
    assert strict.equivalence_interval is not None and strict.equivalence_interval.level == pytest.approx(0.998)
    by_record = PairedTable(np.outer([0.03, 0.04], [0.1, 1.0]), np.ones(2), (0, 1))
    strict = judge_family({"arm": Evidence(by_record)}, Rule(0.01, MARGIN))["arm"]
    assert strict.over_records is not None and strict.over_records.level == pytest.approx(0.99)


def looked(
    family: Mapping[str, Evidence], looks: Sequence[int], seeds: Sequence[int] = range(8)
) -> dict[str, Judgement]:
    return judge_family(family, Rule(margin=MARGIN, seeds=tuple(seeds), looks=tuple(looks)))


def test_what_is_decided_at_a_look_stays_and_leaves_the_family() -> None:
    turns = [*BETTER[:4], 0.3, 0.3, 0.3, 0.3]  # what comes later would say the contrary
    open_ = [0.03, -0.02, 0.05, -0.01, 0.04, 0.02, 0.03, -0.03]
    found = looked({"early": evidence(turns), "open": evidence(open_)}, (4, 8))
    early, noise = found["early"], found["open"]
    assert (early.verdict, early.look, early.n, early.decided) == (Verdict.BETTER, 1, 4, True)
    assert (noise.verdict, noise.look, noise.n, noise.decided) == (Verdict.UNDECIDED, 2, 8, False)
    # Alone in its family at the second look, it pays for the looks and for no other comparison.
    assert noise.p is not None and noise.adjusted_p is not None
    assert noise.adjusted_p == spent(noise.p, (4, 8), 1) > noise.p


def test_what_the_other_family_decides_keeps_its_place() -> None:
    """Those that are left are the ones that differed, or agreed, most: not to be judged as if nobody had gone."""
    still = [0.0001, -0.0001, 0.00005, -0.00005] * 2
    alike = {str(i): evidence([x * (1 + i) for x in still]) for i in range(3)}
    open_ = evidence([0.03, -0.02, 0.05, -0.01, 0.04, 0.02, 0.03, 0.025])
    found = looked({**alike, "open": open_}, (4, 8))
    assert all((found[key].verdict, found[key].look) == (Verdict.EQUIVALENT, 1) for key in alike)
    left = found["open"]
    assert left.look == 2 and left.p is not None
    assert left.adjusted_p == family_p(spent(left.p, (4, 8), 1), 4, 0.0) > spent(left.p, (4, 8), 1)
    # And the other way round: what was found different counts among equivalences.
    apart = {str(i): evidence([x * (1 + i) for x in BETTER]) for i in range(3)}
    near = evidence([0.012, -0.012, 0.012, -0.011, 0.001, -0.0011, 0.0012, -0.0009])
    found = looked({**apart, "near": near}, (4, 8))
    assert all((found[key].verdict, found[key].look) == (Verdict.BETTER, 1) for key in apart)
    left = found["near"]
    assert left.look == 2 and left.equivalence_p is not None
    assert left.adjusted_equivalence_p == family_p(spent(left.equivalence_p, (4, 8), 1, 1), 4, 0.0, 1)


def test_looks_cost_little_and_early_ones_take_much() -> None:
    first, last = levels((4, 8), ALPHA)
    assert first < 0.01 < last < ALPHA
    p = 0.03  # below alpha, above the first look's level
    at = {n: float(stats.t.isf(p / 2, n - 1)) / math.sqrt(n) for n in (4, 8)}
    values = {n: stats.zscore(numpy_stream(n, "exact").normal(size=n), ddof=1) + at[n] for n in (4, 8)}
    early = looked({"arm": evidence(values[4].tolist())}, (4, 8))["arm"]
    late = looked({"arm": evidence(values[8].tolist())}, (4, 8))["arm"]
    assert early.p == pytest.approx(p) and early.verdict is Verdict.UNDECIDED and early.look == 1
    assert late.p == pytest.approx(p) and late.verdict is Verdict.WORSE and late.look == 2


def test_an_unfinished_look_waits() -> None:
    none = looked({"arm": evidence(BETTER[:3])}, (4, 8))["arm"]
    assert (none.look, none.verdict, none.adjusted_p, none.decided) == (None, Verdict.UNDECIDED, None, False)
    assert none.mean == pytest.approx(np.mean(BETTER[:3])) and none.interval is not None
    family = {"done": evidence(BETTER), "behind": evidence(WORSE[:4]), "noise": evidence(NOISE)}
    found = looked(family, (4, 6, 8))
    assert found["behind"].look == 1 and found["noise"].look == 3
    # One that diverged is finished too, though it has fewer pairs.
    lost = evidence(WORSE[:7], DivergedPairs(1, 0, 8), finished=8)
    assert looked({"lost": lost}, (8,))["lost"].look == 1


def test_looks_take_seeds_in_their_planned_order() -> None:
    planned = (7, 6, 5, 4, 3, 2, 1, 0)
    values = dict(enumerate(NOISE))
    found = judge_family(
        {"arm": Evidence(of_seed_means(values), finished=frozenset({7, 6, 5, 4}))}, Rule(0.05, MARGIN, planned, (4, 8))
    )["arm"]
    assert found.mean == pytest.approx(np.mean(NOISE[4:])) and found.n == 4


def test_a_later_look_never_rewrites_an_earlier_verdict() -> None:
    draw = numpy_stream(0, "replay")
    arms = {str(i): draw.normal(0.004 * i, 0.01, 12).tolist() for i in range(5)}
    seen: dict[str, Judgement] = {}
    for finished in (4, 6, 8, 10, 12):
        family = {key: evidence(values[:finished]) for key, values in arms.items()}
        found = judge_family(family, Rule(margin=MARGIN, seeds=tuple(range(12)), looks=(4, 6, 8, 10, 12)))
        decided = {key: j for key, j in seen.items() if j.decided}
        assert all(replace(found[key], cautions=j.cautions) == j for key, j in decided.items())
        seen = found


def test_cautions_say_what_the_data_give_cause_for() -> None:
    number = Margin(0.01, None, True)
    few, many = (PairedTable(np.ones((n, r)), np.ones(r), tuple(range(n))) for n, r in ((5, 50), (6, 400)))
    assert cautions_of(few, number, NONE_DIVERGED, skewed=False) == (Caution.FEW_SEEDS, Caution.FEW_RECORDS)
    assert cautions_of(many, number, NONE_DIVERGED, skewed=False) == ()
    assert cautions_of(many, number, NONE_DIVERGED, skewed=True) == (Caution.SKEWED,)
    wide = Margin(0.004, Interval(0.004, 0.001, 0.007, 8, 0.95), True)
    assert cautions_of(None, wide, NONE_DIVERGED, skewed=False) == (Caution.MARGIN,)
    blind = Margin(0.001, Interval(0.001, -0.001, 0.003, 8, 0.95), False)
    assert cautions_of(None, blind, DivergedPairs(1, 0, 8), False) == (Caution.INSENSITIVE, Caution.DIVERGED)
