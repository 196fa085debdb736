"""Pairing and verdicts: directions, right-or-wrong scores against McNemar's test, seeds, margins, widths."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.judging import Asked, Outcome, judge_runs
from adaptive_lora.foreign.scores import Item, Question, Run
from adaptive_lora.streams import numpy_stream

ACC, LOSS = Question("t", "acc", True), Question("t", "loss", False)


def run(arm: str, values: Any, question: Question = ACC, seed: int | None = None, **item: Any) -> Run:
    items = {str(i): Item(float(value), **item) for i, value in enumerate(values)}
    return Run(arm, seed, f"{arm}.csv", {question: items})


def judged(*runs: Run, **asked: Any) -> Outcome:
    return judge_runs(runs, Asked("base", **asked))[0]


def right_or_wrong(both: int, arm: int, base: int, neither: int) -> tuple[Run, Run]:
    """Items that both got right, the arm alone, the baseline alone, neither."""
    one = [1] * (both + arm) + [0] * (base + neither)
    two = [1] * both + [0] * arm + [1] * base + [0] * neither
    return run("arm", one), run("base", two)


def test_better_follows_the_direction() -> None:
    draws = numpy_stream(0, "direction").normal(0.1, 0.1, 400)
    base = numpy_stream(0, "base").normal(1, 1, 400)
    for question, verdict in ((ACC, "better"), (LOSS, "worse")):
        found = judged(run("arm", base + draws, question), run("base", base, question))
        assert found.verdict == verdict and found.difference == pytest.approx(draws.mean())
        assert found.interval is not None and found.interval.low is not None and found.interval.high is not None
        assert 0 < found.interval.low < found.difference < found.interval.high


def test_an_interval_of_scores_is_scipy_s() -> None:
    values = numpy_stream(1, "scores").normal(0, 1, (2, 50))
    found = judged(run("arm", values[0]), run("base", values[1]))
    wanted = stats.ttest_rel(values[0], values[1])
    low, high = wanted.confidence_interval(0.95)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high, found.p) == pytest.approx((low, high, wanted.pvalue))


@pytest.mark.parametrize(
    "cells",
    [
        (20, 6, 0, 4),
        (40, 9, 2, 10),
        (100, 30, 12, 60),
        (10, 3, 3, 30),
        (200, 60, 30, 200),
        (15, 8, 2, 15),
        (300, 5, 0, 50),
    ],
)
def test_p_of_right_or_wrong_agrees_with_mcnemar(cells: tuple[int, int, int, int]) -> None:
    """Exact is conservative and mid-p is not: ours lies near them."""
    both, arm, base, neither = cells
    found = judged(*right_or_wrong(*cells))
    exact = mcnemar([[both, arm], [base, neither]], exact=True).pvalue
    middle = exact - stats.binom.pmf(min(arm, base), arm + base, 0.5)
    assert found.p is not None
    assert min(middle, exact) - 0.02 <= found.p <= exact + 0.02
    assert found.difference == pytest.approx((arm - base) / sum(cells))


@pytest.mark.parametrize("n", [30, 100, 400])
@pytest.mark.parametrize("discordant", [0.02, 0.1, 0.3])
def test_right_or_wrong_holds_its_level_by_enumeration(n: int, discordant: float) -> None:
    """All tables (b, c) of n items under equal accuracies, by their probability."""
    counts, size, uncovered = range(min(n, 160) + 1), 0.0, 0.0
    for d in counts:
        weight = stats.binom.pmf(d, n, discordant)
        if weight < 1e-8:
            continue
        for b in range(d + 1):
            mean, squares = (2 * b - d) / (n + 2), d + 2
            error = math.sqrt((squares - (n + 2) * mean**2) / (n + 1) / (n + 2))
            p = 2 * stats.t.sf(abs(mean) / error, n + 1)
            chance = weight * stats.binom.pmf(b, d, 0.5)
            size += chance * (p <= 0.05)
            uncovered += chance * (abs(mean) > stats.t.ppf(0.975, n + 1) * error)
    assert size <= 0.055 and uncovered == pytest.approx(size)
    found = judged(*right_or_wrong(10, 4, 1, n - 15))  # the formula above is the one in use
    mean, squares = 3 / (n + 2), 7
    error = math.sqrt((squares - (n + 2) * mean**2) / (n + 1) / (n + 2))
    assert found.p == pytest.approx(2 * stats.t.sf(mean / error, n + 1))


def test_the_same_answers_on_few_items_are_no_equivalence() -> None:
    """Without the two items more, no difference at all on 30 items would be certainty."""
    few = judged(*right_or_wrong(20, 0, 0, 10), margin=0.02)
    assert few.verdict == "undecided" and few.half_width is not None and few.half_width > 0.05
    assert judged(*right_or_wrong(1000, 0, 0, 1000), margin=0.02).verdict == "equivalent"


def test_without_a_margin_nothing_is_equivalent() -> None:
    assert judged(*right_or_wrong(1000, 3, 3, 1000)).verdict == "undecided"


def test_weights_make_a_mean_per_token() -> None:
    one = Run("arm", None, "x", {LOSS: {"a": Item(2.0, 10), "b": Item(4.0, 30)}})
    two = Run("base", None, "y", {LOSS: {"a": Item(1.0, 10), "b": Item(4.0, 30)}})
    found = judged(one, two)
    assert found.difference == pytest.approx(0.25) and found.paired.means == pytest.approx((3.5, 3.25))
    other = Run("base", None, "y", {LOSS: {"a": Item(1.0, 11), "b": Item(4.0, 30)}})
    with pytest.raises(UsageError, match="item a has 10 tokens in one run and 11 in another"):
        judged(one, other)


def seeds(arm: str, shift: float, count: int, first: int = 1) -> list[Run]:
    draws = numpy_stream(2, arm).normal(shift, 1, (count, 60))
    return [run(arm, row, LOSS, seed=first + at) for at, row in enumerate(draws)]


def test_seeds_are_paired_by_their_numbers() -> None:
    found = judged(*seeds("arm", 0, 4), *seeds("base", 0, 3, first=2))
    assert found.paired.table.seeds == (2, 3, 4) and found.resampled == "seeds and records"
    assert found.paired.notes == ("left out 1 runs whose seed the other arm does not have",)
    with pytest.raises(UsageError, match=r"no seed of 'arm' \(1, 2\) is one of 'base''s \(5, 6\)"):
        judged(*seeds("arm", 0, 2), *seeds("base", 0, 2, first=5))


def test_one_run_stands_beside_all_seeds_of_another() -> None:
    found = judged(*seeds("arm", 0, 4), *seeds("base", 0, 1))
    assert found.paired.table.seeds == (1, 2, 3, 4) and "base has one run" in found.paired.notes[0]


def test_means_alone_are_judged_over_seeds_or_not_at_all() -> None:
    def mean(arm: str, seed: int | None, value: float) -> Run:
        return Run(arm, seed, "x.json", means={ACC: value})

    one = judged(mean("arm", 0, 0.5), mean("base", 0, 0.4))
    assert one.verdict == "undecided" and one.interval is None and one.half_width is None and one.resampled is None
    values = {"arm": [0.50, 0.52, 0.51, 0.53], "base": [0.40, 0.43, 0.40, 0.43]}
    several = judged(*(mean(arm, seed, v) for arm, own in values.items() for seed, v in enumerate(own)))
    wanted = stats.ttest_rel(values["arm"], values["base"])
    assert several.verdict == "better" and several.resampled == "seeds" and several.p == pytest.approx(wanted.pvalue)
    assert several.half_width_at_twice_the_items is None


def test_width_at_twice_the_seeds_and_items_follows_the_components() -> None:
    found = judged(*seeds("arm", 0, 6), *seeds("base", 0, 6))
    assert found.components is not None and found.half_width is not None
    now = found.components.variance(6, 60)
    for width, then in (
        (found.half_width_at_twice_the_items, found.components.variance(6, 120)),
        (found.half_width_at_twice_the_seeds, found.components.variance(12, 60)),
    ):
        assert width == pytest.approx(found.half_width * math.sqrt(then / now))


def test_several_arms_are_one_family() -> None:
    base = numpy_stream(3, "base").normal(0, 1, 100)
    arms = [run(f"arm{i}", base + numpy_stream(3, str(i)).normal(0.02, 0.1, 100)) for i in range(4)]
    found = judge_runs([*arms, run("base", base)], Asked("base"))
    assert all(o.p is not None and o.adjusted_p is not None and o.adjusted_p >= o.p for o in found)
    smallest = min(found, key=lambda o: o.p or 1.0)
    assert smallest.adjusted_p == pytest.approx(1 - (1 - (smallest.p or 0)) ** 4)
    (alone,) = judge_runs([*arms, run("base", base)], Asked("base", arms=(smallest.paired.arm,)))
    assert alone.adjusted_p == alone.p == smallest.p
    with pytest.raises(UsageError, match=r"No results of the arm 'arm9' \(did you mean 'arm"):
        judge_runs([*arms, run("base", base)], Asked("base", arms=("arm9",)))


def test_what_cannot_be_judged_is_explained() -> None:
    one, two = right_or_wrong(5, 1, 1, 5)
    for asked, message in (
        ({"tasks": ("u",)}, "No task 'u'; there are: t: acc"),
        ({"metric": "loss"}, "No metric 'loss'; there are: t: acc"),
        ({"alpha": 0.7}, "--alpha lies between 0 and 0.5"),
        ({"margin": -1.0}, "--margin is a number above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            judged(one, two, **asked)
    with pytest.raises(UsageError, match=r"No results of the baseline 'bass' \(did you mean 'base'\?\)"):
        judge_runs([one, two], Asked("bass"))
    with pytest.raises(UsageError, match="All results are of 'base'"):
        judge_runs([two], Asked("base"))
    loss = [run(arm, np.arange(9.0), Question("u", "loss", False, "nats per word")) for arm in ("arm", "base")]
    with pytest.raises(UsageError, match="--margin is in the metric's unit, and these differ"):
        judge_runs([one, two, *loss], Asked("base", margin=0.01))


def test_items_of_a_cluster_vary_as_one() -> None:
    """Every item three times over is no more evidence than once."""
    values = numpy_stream(4, "values").normal(0, 1, (2, 40))
    once = judged(run("arm", values[0]), run("base", values[1]))
    thrice = []
    for arm, own in zip(("arm", "base"), values, strict=True):
        items = {
            f"{i}-{k}": Item(float(v), cluster=str(i)) for (i, v), k in itertools.product(enumerate(own), range(3))
        }
        thrice.append(Run(arm, None, "x", {ACC: items}))
    assert judged(*thrice).half_width == pytest.approx(once.half_width)


def test_questions_of_other_units_share_alpha_and_nothing_else() -> None:
    """Variances of a loss and of an accuracy are not drawn towards each other; each p is its own question's."""
    runs, alone = [], {}
    for at, scale in enumerate((1.0, 100.0, 1e4, 1e6)):
        question = Question(f"t{at}", "loss", False)
        own = [
            run(arm, scale * numpy_stream(5, arm, seed, at).normal(0.1 * (arm == "arm"), 1, 60), question, seed=seed)
            for arm in ("arm", "base")
            for seed in range(3)
        ]
        runs += own
        alone[question] = judged(*own)
    merged = [Run(arm, seed, "x", {q: i for r in runs if (r.arm, r.seed) == (arm, seed) for q, i in r.items.items()})
              for arm in ("arm", "base") for seed in range(3)]  # fmt: skip
    found = judge_runs(merged, Asked("base"))
    assert [o.p for o in found] == [alone[o.paired.question].p for o in found]
    ordered = sorted(found, key=lambda o: o.p or 0)
    assert ordered[0].adjusted_p == pytest.approx(1 - (1 - (ordered[0].p or 0)) ** 4)
    assert ordered[-1].adjusted_p is not None and ordered[-1].adjusted_p >= (ordered[-1].p or 0)
    scaled = [o.half_width / 100.0**at for at, o in enumerate(found) if o.half_width is not None]
    assert scaled == pytest.approx([alone[o.paired.question].half_width / 100.0**at for at, o in enumerate(found)])


def test_equivalence_over_several_tasks_is_a_family_too() -> None:
    runs = []
    for task in ("a", "b", "c"):
        values = numpy_stream(6, task).normal(0, 1, 100)
        question = Question(task, "loss", False)
        runs += [
            run("arm", values + numpy_stream(7, task).normal(0, 0.05, 100), question),
            run("base", values, question),
        ]
    found = judge_runs(runs, Asked("base", margin=0.02))
    assert {o.verdict for o in found} == {"equivalent"}
    assert all(o.equivalence_interval is not None and o.equivalence_interval.level == pytest.approx(0.9) for o in found)
    alone = [judge_runs(runs, Asked("base", margin=0.02, tasks=(task,)))[0] for task in ("a", "b", "c")]
    assert all(
        (o.adjusted_equivalence_p or 0) >= (a.adjusted_equivalence_p or 0) for o, a in zip(found, alone, strict=True)
    )
