"""Skew of a family: against scipy, its laws, how often it is seen where it is and where it is not, and in verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.crossed import PairedTable, of_seed_means
from adaptive_lora.stats.skewness import ALONE, POOLED, pooled_skewness, skewed_among
from adaptive_lora.stats.verdicts import Evidence, Judgement, Rule, Verdict, judge_family
from adaptive_lora.streams import numpy_stream

LOOKS = (6, 8, 12)
ORDER = list(range(12))
SYMMETRIC = [0.01 * d for d in (-3, -2, -1, -1, 1, 1, 2, 3)]
LONG_TAIL = [0.0, 0.001, 0.0, 0.002, 0.001, 0.0005, 0.0015, 0.04]


def table(values: Sequence[float] | NDArray[np.float64]) -> PairedTable:
    return of_seed_means({seed: float(value) for seed, value in enumerate(values)})


def drawn(index: int, shape: str, comparisons: int, seeds: int = 12) -> list[PairedTable]:
    """Of one baseline: any two correlate by a third."""
    draw = numpy_stream(index, "skewness", shape, comparisons)
    size = (comparisons, seeds)
    shared, own = ((draw.exponential(size=s) if shape == "exponential" else draw.normal(size=s)) for s in (seeds, size))
    return [table(row) for row in math.sqrt(0.5) * shared + own]


def seen(shape: str, comparisons: int, studies: int = 60) -> float:
    """Share of families that are called skewed."""
    return float(np.mean([abs(pooled_skewness(drawn(i, shape, comparisons))) > POOLED for i in range(studies)]))


@pytest.mark.parametrize("seeds", [6, 9, 12])
def test_a_comparison_by_itself_has_the_skewness_of_scipy_and_its_textbook_error(seeds: int) -> None:
    values = numpy_stream(seeds, "skew").exponential(size=seeds)
    error = math.sqrt(6 * seeds * (seeds - 1) / ((seeds - 2) * (seeds + 1) * (seeds + 3)))
    assert pooled_skewness([table(values)]) == pytest.approx(float(stats.skew(values, bias=False)) / error)


def test_the_error_is_that_of_normal_seeds() -> None:
    """Of independent arms with one variance, whose estimates are drawn towards each other."""
    z = [pooled_skewness([table(r) for r in numpy_stream(i, "null").normal(size=(5, 10))]) for i in range(80)]
    assert 0.7 < np.std(z) < 1.1 and abs(np.mean(z)) < 0.3  # 0.88 of 600: few seeds overstate how they correlate


@given(st.integers(0, 1000), st.sampled_from([1, 3, 5]), st.permutations(ORDER))
@settings(max_examples=20)
def test_neither_order_nor_scale_nor_means_matter_and_the_sign_only_turns_it(
    index: int, comparisons: int, order: list[int]
) -> None:
    family = drawn(index, "exponential", comparisons)
    z = pooled_skewness(family)
    other = [PairedTable(7 * t.differences[order], t.tokens, tuple(order)) for t in reversed(family)]
    moved = [replace(t, differences=t.differences + 3 * i) for i, t in enumerate(family)]
    turned = [replace(t, differences=-t.differences) for t in family]
    assert [pooled_skewness(f) for f in (other, moved, turned)] == pytest.approx([z, z, -z], abs=1e-6)
    assert skewed_among(dict(enumerate(turned))) == skewed_among(dict(enumerate(family)))


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=6), min_size=1, max_size=5))
@settings(max_examples=30)
def test_symmetric_differences_are_never_called_skewed(halves: list[list[float]]) -> None:
    family = {i: table([*half, *(-d for d in half)]) for i, half in enumerate(halves)}
    assert skewed_among(family) == set()


def test_normal_seeds_are_seldom_called_skewed_and_skewed_ones_mostly() -> None:
    assert max(seen("normal", 1), seen("normal", 5)) <= 0.2  # 0.16 and 0.09 of a thousand
    assert seen("exponential", 5) >= 0.75 > 0.65 >= seen("exponential", 1)  # 0.90 and 0.51


def test_comparisons_that_err_together_count_little_more_than_one() -> None:
    base = np.array(LONG_TAIL)
    family = [table(base + 1e-5 * numpy_stream(i, "near").normal(size=8)) for i in range(3)]
    alone = pooled_skewness([table(base)])
    assert pooled_skewness(family) == pytest.approx(alone, rel=0.01)
    assert pooled_skewness([table(base)] * 3) == alone


def test_one_skewed_arm_among_others_is_cautioned_alone() -> None:
    family = {str(i): table(np.roll(SYMMETRIC, 3 * i)) for i in range(4)} | {"tail": table(LONG_TAIL)}
    assert abs(pooled_skewness([family["tail"]])) > ALONE
    assert abs(pooled_skewness(list(family.values()))) < POOLED and skewed_among(family) == {"tail"}


def test_few_seeds_and_equal_ones_have_no_say() -> None:
    few, equal = table(LONG_TAIL[3:]), table([0.5] * 8)
    assert pooled_skewness([few, equal]) == pooled_skewness([]) == 0.0
    family = {"few": few, "tail": table(LONG_TAIL)}
    assert pooled_skewness(list(family.values())) == pooled_skewness([family["tail"]])
    assert skewed_among(family) == {"few", "tail"}  # but it is of a family that is skewed
    assert skewed_among({"few": few}, [family["tail"]]) == {"few"}


def judged(family: dict[str, PairedTable], half: PairedTable | None = None, upto: int = 12) -> dict[str, Judgement]:
    """At the looks that so many seeds allow."""
    rule = Rule(margin=None if half else 1e-6, seeds=tuple(range(12)), looks=LOOKS)
    return judge_family({key: Evidence(t, half, finished=frozenset(range(upto))) for key, t in family.items()}, rule)


def test_a_verdict_is_cautioned_by_what_the_others_show_later_and_by_nothing_of_its_own_after_it() -> None:
    early = np.array([-0.05, -0.0501, -0.0499, -0.05, -0.0502, -0.0498])
    tails = np.array([0.0, 0.1, -0.1, 0.05, -0.05, 0.0, 1.5, 2.0, 0.02, -0.02, 0.05, 0.9])
    family = {"early": table(np.append(early, [9.0] * 6)), "late": table(tails)}
    before, after = judged(family, upto=6), judged(family)
    assert before["early"].verdict is Verdict.BETTER and Caution.SKEWED not in before["early"].cautions
    assert Caution.SKEWED in after["early"].cautions and after["late"].n == 12
    assert replace(after["early"], cautions=before["early"].cautions) == before["early"]
    alone = judged({"early": family["early"]})["early"]
    assert alone.verdict is Verdict.BETTER and Caution.SKEWED not in alone.cautions


def test_what_half_the_budget_costs_and_the_other_comparisons_of_the_study_count_too() -> None:
    arm, tail = table(SYMMETRIC), table(LONG_TAIL)
    rule = Rule(margin=0.01)
    plain = judge_family({"a": Evidence(arm)}, rule)["a"]
    beside = judge_family({"a": Evidence(arm)}, rule, [tail])["a"]
    with_half = judge_family({"a": Evidence(arm, tail)}, rule)["a"]
    assert Caution.SKEWED not in plain.cautions
    assert Caution.SKEWED in beside.cautions and Caution.SKEWED in with_half.cautions
    assert replace(beside, cautions=plain.cautions) == replace(with_half, cautions=plain.cautions) == plain
