"""Verdicts of a study's own hypotheses, and whether its task can tell ranks apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import pytest

from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.divergence import Lost
from adaptive_lora.stats.judge import assays, judge_primary, verdict_sentences
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Verdict

BASE = [2.0, 2.1, 1.9, 2.05, 1.95, 2.02, 1.98, 2.03]
ANALYSIS = {"margin": 0.01, "alpha": 0.05}
WIGGLE = [0.001, -0.001, 0.002, -0.002, 0.001, -0.001, 0.0015, -0.0015]


def table(losses: Mapping[tuple[str, str], Sequence[float]]) -> pd.DataFrame:
    """Evaluation runs by (arm, budget), seed after seed."""
    rows = [
        {
            "run_id": f"{arm}{budget}{seed}", "phase": "evaluation", "arm": arm, "strategy": arm, "budget": budget,
            "seed": seed, "replica": 0, "learning_rate": 1e-3, "scaling": "constant", "trainable_parameters": 10,
            "status": "completed", "test_loss": loss, "test_exact_match": None, "plan_seconds": 0.0,
            "train_seconds": 1.0,
        }
        for (arm, budget), found in losses.items()
        for seed, loss in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def moved(by: float) -> list[float]:
    return [loss + by + wiggle for loss, wiggle in zip(BASE, WIGGLE, strict=True)]


def primary(*arms: str) -> list[dict[str, str]]:
    return [{"arm": arm, "budget": "rank:8"} for arm in arms]


def test_every_hypothesis_has_its_verdict_and_nothing_else_has_one() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05),
                  ("same", "rank:8"): moved(0.0), ("other", "rank:8"): moved(-0.05)})  # fmt: skip
    judged = judge_primary(summarise(runs, "uniform"), primary("low", "high", "same"), ANALYSIS)
    assert {c.arm: j.verdict for c, j in judged.items()} == {
        "low": Verdict.BETTER, "high": Verdict.WORSE, "same": Verdict.EQUIVALENT,
    }  # fmt: skip
    assert judged[Comparison("low", "rank:8")].adjusted_p == pytest.approx(3 * 2 / 2**8)


def test_an_arm_without_runs_makes_no_other_easier() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05)})
    arms = summarise(runs, "uniform")
    alone, beside = (judge_primary(arms, primary(*names), ANALYSIS) for names in (("low",), ("low", "missing")))
    low = Comparison("low", "rank:8")
    assert alone[low].adjusted_p == pytest.approx(2 / 2**8) and beside[low].adjusted_p == pytest.approx(2 * 2 / 2**8)
    missing = beside[Comparison("missing", "rank:8")]
    assert missing.verdict is Verdict.UNDECIDED and missing.mean is None


def test_half_a_budget_that_is_worse_shows_that_ranks_matter() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(0.03), ("a", "rank:8"): BASE})
    (assay,) = assays(runs, "uniform", ["rank:8"], 0.01)
    assert assay.tells and assay.text.startswith(
        "At rank:8 this task can tell ranks apart: half of it, rank:4, is worse"
    )
    assert "+0.0300" in assay.text


def test_half_a_budget_that_is_no_worse_says_so_beside_equivalence() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): moved(0.0), ("a", "rank:8"): moved(0.0)})
    (assay,) = assays(runs, "uniform", ["rank:8"], 0.01)
    assert assay.tells is False
    judged = judge_primary(summarise(runs, "uniform"), primary("a"), ANALYSIS)
    sentences = verdict_sentences(judged, "uniform", [assay])
    assert sentences[0] == "a is equivalent to uniform." and "cannot tell ranks apart" in sentences[1]
    assert "was not tested" in verdict_sentences(judged, "uniform", [])[1]


@pytest.mark.parametrize(
    ("by", "wiggles", "tells", "says"),
    [
        (0.03, 1.0, True, "can tell ranks apart: half of it, rank:4, is worse (+0.0300"),
        (0.012, 1.0, True, "can tell ranks apart: half of it, rank:4, is worse (+0.0120"),
        (
            0.005,
            1.0,
            False,
            "cannot tell ranks apart by more than the margin of 0.01: half of it, rank:4, is",
        ),
        (
            0.009,
            2.0,
            None,
            "it is not known whether this task can tell ranks apart: half of it, rank:4, is",
        ),
        (0.02, 20.0, False, "cannot tell ranks apart: half of it, rank:4, is not shown to be worse"),
        (-0.02, 1.0, False, "cannot tell ranks apart: half of it, rank:4, is not shown to be worse"),
    ],
)
def test_half_has_to_be_worse_by_what_matters(by: float, wiggles: float, tells: bool | None, says: str) -> None:
    half = [loss + by + wiggles * wiggle for loss, wiggle in zip(BASE, WIGGLE, strict=True)]
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): half})
    (assay,) = assays(runs, "uniform", ["rank:8"], 0.01)
    assert assay.tells is tells and says in assay.text


def test_equivalence_at_a_budget_without_an_assay_is_said_to_be_untested() -> None:
    runs = table({(arm, budget): moved(by) for budget, by in (("rank:8", 0.0), ("rank:4", 0.1), ("rank:2", 0.2))
                  for arm in ("uniform", "a")})  # fmt: skip
    tells = assays(runs, "uniform", ["rank:2", "rank:8", "rank:4"], 0.01)
    assert [(assay.budget, assay.tells) for assay in tells] == [("rank:8", True), ("rank:4", True)]
    family = [{"arm": "a", "budget": budget} for budget in ("rank:2", "rank:4")]
    said = verdict_sentences(judge_primary(summarise(runs, "uniform"), family, ANALYSIS), "uniform", tells)
    assert said[1:] == ["Whether this task can tell ranks apart was not tested at rank:2 (`controls: [half]`)."]


def test_too_few_seeds_at_half_are_said_to_be_so() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("uniform", "rank:4"): [2.1]})
    (assay,) = assays(runs, "uniform", ["rank:8"], 0.01)
    assert assay.tells is None and "Too few seeds at rank:4" in assay.text
    assert assays(table({("uniform", "rank:8"): BASE}), "uniform", ["rank:8", "rank:1"], 0.01) == []


def test_sentences_put_the_like_together() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("a", "rank:8"): moved(-0.05), ("b", "rank:8"): moved(-0.06),
                  ("c", "rank:8"): moved(-0.07), ("d", "rank:8"): [loss + 0.1 * w for loss, w in zip(
                      BASE, [1, -1, 2, -2, 1, -1, 1, -2], strict=True)]})  # fmt: skip
    judged = judge_primary(summarise(runs, "uniform"), primary("a", "b", "c", "d"), ANALYSIS)
    assert verdict_sentences(judged, "uniform", []) == [
        "a, b and c are better than uniform.", "d is not decided against uniform.",
    ]  # fmt: skip


def diverge(runs: pd.DataFrame, arm: str, seeds: Sequence[int]) -> None:
    gone = (runs["arm"] == arm) & runs["seed"].isin(seeds)
    runs.loc[gone, ["status", "test_loss"]] = ["diverged", float("nan")]


def test_an_arm_that_diverges_where_the_baseline_does_not_is_not_better() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05)})
    diverge(runs, "low", [0, 1])
    diverge(runs, "high", [0])
    judged = judge_primary(summarise(runs, "uniform"), primary("low", "high"), ANALYSIS)
    low, high = judged.values()
    assert (low.verdict, low.lost) == (Verdict.UNDECIDED, Lost(2, 0, 8)) and low.n == 6
    assert (high.verdict, high.lost) == (Verdict.WORSE, Lost(1, 0, 8))
    assert verdict_sentences(judged, "uniform", []) == [
        "high (diverged on 1 of 8 seeds) is worse than uniform.",
        "low (diverged on 2 of 8 seeds) is not decided against uniform.",
    ]


def test_a_baseline_that_diverges_makes_no_arm_worse() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05), ("high", "rank:8"): moved(0.05)})
    diverge(runs, "uniform", [0])
    judged = judge_primary(summarise(runs, "uniform"), primary("low", "high"), ANALYSIS)
    assert [(j.verdict, j.lost) for j in judged.values()] == [
        (Verdict.BETTER, Lost(0, 1, 8)), (Verdict.UNDECIDED, Lost(0, 1, 8)),
    ]  # fmt: skip


def test_a_seed_on_which_both_diverge_or_one_is_missing_is_lost_to_neither() -> None:
    runs = table({("uniform", "rank:8"): BASE, ("low", "rank:8"): moved(-0.05)})
    diverge(runs, "uniform", [0])
    diverge(runs, "low", [0, 1])
    runs = runs[~((runs["arm"] == "uniform") & (runs["seed"] == 1))]
    (low,) = judge_primary(summarise(runs, "uniform"), primary("low"), ANALYSIS).values()
    assert (low.verdict, low.lost) == (Verdict.BETTER, Lost(0, 0, 7)) and low.n == 6
