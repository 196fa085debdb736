"""The sentences on stability, by the rules of `stats.stability_findings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.templating import render_all
from adaptive_lora.stats.stability import stability_table
from adaptive_lora.stats.stability_findings import StabilityFindings, stability_findings
from adaptive_lora.stats.variants import Effect, Variant, variants_of
from tests.committed import superseded
from tests.stats.test_stability import NO_CURVES, run, spiking_study

WIGGLE = (-0.004, 0.001, 0.003)
RATES = (1e-3, 3e-3, 1e-2)
LEVELS = {1e-3: 2.1, 3e-3: 2.0, 1e-2: 2.2}
"""The baseline's losses: of a gain of 1.0 over the frozen model at 3e-3 it keeps 90 % and 80 %."""
LOST = 0.7
"""An excess at 1e-2 that leaves 10 % of the gain."""
VARIANTS = {
    "heavy-r": Variant("heavy", (("scaling", "alpha-over-r"),)),
    "heavy-warm": Variant("heavy", (("warmup", 0.1),)),
}


def study(
    excesses: Mapping[str, Mapping[float, float | None]],
    seeds: int = 3,
    budgets: Sequence[str] = ("rank:8",),
    levels: Mapping[float, float] = LEVELS,
) -> pd.DataFrame:
    """The table of a study: excess over the baseline by arm and rate, 0 where not said, diverged where nothing."""
    rows = []
    for budget in budgets:
        for seed in range(seeds):
            for rate in RATES:
                rows.append(run("uniform", seed, levels[rate] + WIGGLE[seed], rate, budget=budget))
                for arm, by_rate in excesses.items():
                    more = by_rate.get(rate, 0.0)
                    labels: dict[str, object] = {"budget": budget}
                    labels["scaling"] = "alpha-over-r" if arm.endswith("-r") else "constant"
                    if more is None:
                        rows.append(run(arm, seed, None, rate, **labels, status="diverged", step=50 + seed))
                    else:
                        loss = levels[rate] + WIGGLE[seed] + more + WIGGLE[(seed + 1) % 3]
                        rows.append(run(arm, seed, loss, rate, **labels))
    return stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")


def said_by(*found: Any, **named: Any) -> list[str]:
    """The sentences on `stability_findings` of these arguments."""
    return render_all("stability.findings", stability_findings(*found, **named))


def said_of(table: pd.DataFrame, rate: float = 3e-3, alpha: float = 0.05) -> list[str]:
    chosen = {(arm, budget): rate for arm in table["arm"].unique() for budget in table["budget"].unique()}
    return said_by(table, "uniform", chosen, VARIANTS, alpha)


def spread(table: pd.DataFrame, arm: str, rate: float, *more: float) -> None:
    """Makes the runs of an arm at a rate differ by so much, seed by seed."""
    rows = (table["arm"] == arm) & (table["learning_rate"] == rate)
    for column, sign in (("validation_loss", 1), ("excess", 1), ("gain", -1)):
        table.loc[rows, column] += sign * np.array(more)


def test_when_no_arm_breaks_the_scope_is_named() -> None:
    said = said_of(study({"heavy": {}, "heavy-r": {}}))
    assert said[0] == (
        "Exploratory, and not corrected for its 9 combinations of arm, budget and rate: an arm breaks at a "
        "learning rate "
        "where a run diverges or ends no better than the frozen model, or where it keeps less than half of what "
        "it gains "
        "over the frozen model at its own best rate, with the whole 95 % interval over paired seeds; with two seeds or "
        "more and none of these, it trains."
    )
    assert said[1] == (
        "No arm breaks: the instability that the original study reports did not appear here (3 arms with uniform, "
        "learning rates 0.001, 0.003 and 0.01, scaling constant and alpha-over-r, budget rank:8, 3 seeds each)."
    )
    assert not [sentence for sentence in said if "cause" in sentence or "breaks first" in sentence]


def test_an_arm_that_is_merely_worse_than_the_baseline_does_not_break() -> None:
    assert said_of(study({"heavy": {1e-3: 0.1, 3e-3: 0.1, 1e-2: 0.1}}))[1].startswith("No arm breaks: ")


def test_the_level_is_the_studys() -> None:
    assert "with the whole 99 % interval over paired seeds" in said_of(study({"heavy": {}}), alpha=0.01)[0]
    table = study({"heavy": {1e-2: 0.5}})
    spread(table, "heavy", 1e-2, 0.1, -0.05, -0.05)
    assert any(s.startswith("heavy (constant scaling) at rank:8 breaks") for s in said_of(table, alpha=0.1))
    assert said_of(table, alpha=0.01)[1].startswith("No arm is shown to break: ")


def test_what_the_intervals_leave_open_is_said() -> None:
    table = study({"heavy": {}})
    spread(table, "heavy", 1e-2, 0.6, 0.0, 0.0)
    said = said_of(table)
    assert said[1].startswith("No arm is shown to break: the instability")
    assert said[2] == (
        "That less than half is kept is not ruled out at 1 of 6 combinations of arm, budget and rate; the least "
        "is kept "
        "by heavy at rank:8, 0.01: 60 % of its gain at its best rate."
    )


def test_spikes_are_described() -> None:
    runs, curves = spiking_study()
    calm = curves[curves["run_id"] != run("a", 2)["run_id"]]
    assert said_of(stability_table(runs, calm, 1.0, "uniform"))[-1] == "No loss spike in 5 runs."
    assert said_of(stability_table(runs, curves, 1.0, "uniform"))[-1] == (
        "2 loss spikes in 6 runs; most a run, 1.0, with a at rank:8, rate 0.001."
    )


def test_a_break_at_the_top_under_one_scaling_alone() -> None:
    said = said_of(study({"heavy": {1e-2: LOST}, "heavy-r": {}, "linear": {}}))
    assert said[1:] == [
        "At rank:8 every arm trains up to 0.003.",
        "heavy (constant scaling) at rank:8 breaks first at 0.01: it keeps 10 % of its gain at its best rate, short of "
        "half by 0.400 [0.396, 0.404] over 3 seeds. Validation chooses 0.003 for it, below that. uniform is not "
        "shown to "
        "break there and is better (+0.700 [+0.691, +0.709] over 3 seeds).",
        "Less stable than uniform: heavy at rank:8 breaks at a rate at which uniform is not shown to, and is "
        "worse there.",
        "At rank:8 uniform, heavy-r and linear break at no rate that was tried.",
        "Every break lies above the rate that validation chooses for the arm: at a tuned rate none appears.",
        "alpha-over-r scaling (heavy-r) at rank:8: it is not shown to break, heavy breaks first at 0.01; at 0.01 its "
        "loss less that of heavy: −0.700 [−0.700, −0.700] over 3 seeds. The scaling rule is a cause of the break.",
    ]


def test_a_rate_that_kills_everybody_is_laid_at_nobodys_door() -> None:
    killing = {**LEVELS, 1e-2: 3.2}
    said = said_of(study({"heavy": {}, "heavy-r": {1e-2: 0.3}, "linear": {1e-2: -0.1}}, levels=killing))
    assert said[1:] == [
        "At rank:8 every arm trains up to 0.003.",
        "uniform (constant scaling) at rank:8 breaks first at 0.01: 3 of 3 runs ended no better than the frozen model. "
        "Validation chooses 0.003 for it, below that.",
        "At rank:8 and 0.01, where uniform breaks, heavy, heavy-r and linear break first too, above the rate that "
        "validation chooses for each.",
        "No arm is shown to be less stable than uniform, which would be to break where uniform is not shown to, and to "
        "be worse there.",
        "Every break lies above the rate that validation chooses for the arm: at a tuned rate none appears.",
        "At one and the same rate, among those tried, these break first with what sets them apart from their "
        "plain arms "
        "and without it: heavy-r (alpha-over-r scaling) at rank:8.",
    ]


def test_one_run_no_better_than_the_frozen_model_breaks_and_shows_no_difference() -> None:
    table = study({"heavy": {}})
    lost = (table["arm"] == "heavy") & (table["learning_rate"] == 1e-2) & (table["seed"] == 1)
    table.loc[lost, ["outcome", "gain", "validation_loss"]] = ["no better than the frozen model", -0.1, 3.1]
    said = said_of(table)
    assert said[2].startswith(
        "heavy (constant scaling) at rank:8 breaks first at 0.01: 1 of 3 runs ended no better than the frozen model. "
    )
    assert "uniform is not shown to break there, nor to be better (+0.299 [" in said[2]
    assert said[2].endswith("1 against 0 of 3 runs did not learn).")
    assert said[3].startswith("No arm is shown to be less stable than uniform")


def test_changes_of_training_are_not_put_down_to_scaling() -> None:
    removed = said_of(study({"heavy": {1e-2: LOST}, "heavy-warm": {}}))[-1]
    both = said_of(study({"heavy": {1e-2: LOST}, "heavy-warm": {1e-2: LOST - 0.1}}))[-1]
    worse = said_of(study({"heavy": {}, "heavy-warm": {1e-2: LOST}}))[-1]
    assert removed.startswith("a warm-up of 10 % (heavy-warm)") and removed.endswith(
        "This change removes the break there."
    )
    assert both.startswith("At one and the same rate, among those tried, these break first")
    assert worse.endswith("This change causes the break there.")
    neither = said_of(study({"heavy": {}, "heavy-warm": {}, "linear": {1e-2: LOST}}))[-1]
    assert neither == (
        "No break is seen with or without what sets these apart from their plain arms: heavy-warm (a warm-up of "
        "10 %) at rank:8."
    )


def test_scaling_is_no_cause_where_training_differs_too() -> None:
    plain = {"name": "heavy", "strategy": "attention-heavy", "options": {}, "scaling": None, "train": None}
    changed = {**plain, "name": "heavy-r", "scaling": {"rule": "alpha-over-r"}}
    table = study({"heavy": {1e-2: LOST}, "heavy-r": {}})
    for train, ends in (
        (None, "The scaling rule is a cause of the break."),
        ({"warmup": 0.3, "multipliers": {"b": 16.0}}, "This change removes the break there."),
    ):
        variants = variants_of({"arms": [plain, {**changed, "train": train}]})
        assert variants["heavy-r"].only_scaling == (train is None)
        assert said_by(table, "uniform", {}, variants)[-1].endswith(ends)


def test_an_arm_that_no_rate_trains_is_named_and_no_sentence_claims_for_it() -> None:
    table = study({"heavy": {1e-2: LOST}, "hopeless": dict.fromkeys(RATES)})
    chosen = {(arm, "rank:8"): 3e-3 for arm in ("uniform", "heavy")}
    said = said_by(table, "uniform", chosen, {})
    assert "No rate that was tried trains hopeless at rank:8, so that none was chosen." in said
    assert "A run diverged at every rate that was tried." in next(s for s in said if s.startswith("hopeless"))
    assert (
        "Every other break lies above the rate that validation chooses for the arm: at a tuned rate none of these "
        "appears." in said
    )
    alone = said_by(study({"hopeless": dict.fromkeys(RATES)}), "uniform", chosen, {})
    assert not [s for s in alone if "Every break" in s or "none appears" in s]
    waiting = said_by(study({"heavy": {1e-2: LOST}}), "uniform", {}, {})
    assert "No rate is chosen yet for heavy at rank:8." in waiting and not [
        s for s in waiting if "No rate that was" in s
    ]


def test_where_nothing_was_tuned_validation_chose_nothing() -> None:
    rows = [run(arm, s, 2.0 + 1.5 * (arm == "heavy") + WIGGLE[s]) for s in range(3) for arm in ("uniform", "heavy")]
    table = stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")
    chosen = {(arm, "rank:8"): 1e-3 for arm in ("uniform", "heavy")}
    said = said_by(table, "uniform", chosen, {}, tuned=False)
    assert "That is the study's rate; none was tuned." in said[2] and "alidation chooses" not in " ".join(said)
    assert "Validation chooses" in " ".join(said_by(table, "uniform", chosen, {}))


def test_arms_with_wide_intervals_are_not_said_to_train() -> None:
    table = study({"heavy": {1e-2: LOST}, "wide": {}})
    spread(table, "wide", 1e-3, 0.0, 0.6, 0.1)
    said = said_of(table)
    assert said[1] == "At rank:8 no arm is shown to break up to 0.003."
    assert "At rank:8 uniform and wide are shown to break at no rate." in said


def test_a_difference_that_may_be_none_is_no_cause() -> None:
    table = study({"heavy": {1e-2: LOST}, "heavy-r": {}})
    spread(table, "heavy-r", 1e-2, 0.1, 0.75, 0.2)
    last = said_of(table)[-1]
    assert "it is not shown to break" in last and last.endswith("No effect of it is shown there.")


def test_divergence_breaks_and_few_seeds_show_no_cause() -> None:
    said = said_of(study({"heavy": {1e-2: None}, "heavy-r": {}}))
    assert said[2].startswith(
        "heavy (constant scaling) at rank:8 breaks first at 0.01: 3 of 3 runs diverged, the first at step 50. Valid"
    )
    assert "0 against 3 of 3 runs did not learn" in said[-1] and said[-1].endswith("No effect of it is shown there.")


def test_six_seeds_of_six_that_do_not_learn_show_a_cause() -> None:
    for loss, status in ((None, "diverged"), (3.0, "completed")):
        rows = [run("uniform", s) for s in range(6)] + [run("heavy-r", s, scaling="alpha-over-r") for s in range(6)]
        rows += [run("heavy", s, loss, status=status, step=9) for s in range(6)]
        table = stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")
        last = said_of(table, rate=1e-3)[-1]
        assert last.endswith("0 against 6 of 6 runs did not learn. The scaling rule is a cause of the break.")


def test_a_break_at_the_chosen_rate_is_no_matter_of_tuning() -> None:
    said = said_of(study({"heavy": {3e-3: LOST, 1e-2: LOST}}))
    assert "Validation chooses 0.003 for it, that very rate." in said[2]
    assert "At the rate that validation chooses, broken is heavy at rank:8." in said
    assert not [sentence for sentence in said if "at a tuned rate none" in sentence]


def test_rates_above_the_first_break_that_train_are_named() -> None:
    said = said_of(study({"heavy": {3e-3: LOST}}))
    assert " At 0.01 it is not shown to break." in said[2]


def test_more_budget_is_compared_where_one_of_both_breaks() -> None:
    small, large = study({"heavy": {}}), study({"heavy": {1e-2: LOST}}, budgets=["rank:16"])
    said = said_of(pd.concat([large, small], ignore_index=True))
    assert said[-1] == (
        "heavy is not shown to break at rank:8 and breaks first at 0.01 at rank:16; at 0.01 its loss at rank:16 less "
        "that at rank:8: +0.700 [+0.700, +0.700] over 3 seeds. More budget makes it worse there."
    )
    same = said_of(study({"heavy": {1e-2: LOST}}, budgets=["rank:16", "rank:8"]))
    assert not [sentence for sentence in same if "budget makes it" in sentence or "of the budget" in sentence]


def test_one_seed_says_nothing() -> None:
    said = said_of(study({"heavy": {1e-2: 0.5}}, seeds=1))
    assert said[1] == (
        "Whether anything breaks cannot be said: nowhere do two seeds have a gain over the frozen model to compare "
        "(2 arms with uniform, learning rates 0.001, 0.003 and 0.01, scaling constant, budget rank:8, 1 seed each)."
    )
    assert not [sentence for sentence in said if sentence.startswith("No arm")]


def test_a_rate_with_too_few_seeds_is_not_one_that_trains() -> None:
    table = study({"heavy": {}})
    table = table[~((table["learning_rate"] == 1e-2) & (table["seed"] > 0))]
    said = said_of(table)
    assert said[1].startswith("No arm is shown to break: ")
    assert said[-1] == "At 2 of 6 combinations fewer than two seeds have a gain to compare."


def test_without_a_run_there_is_nothing_to_say() -> None:
    (said,) = said_of(study({})[:0])
    assert said == "Nothing can be said of stability: no run has finished."
    assert said_of(study({}))[1].startswith("No arm breaks: ")  # the baseline alone


def test_a_baseline_that_diverges_is_reported() -> None:
    rows = [run("uniform", s, None if s else 2.0, 1e-2, status="diverged" if s else "completed", step=30 + s)
            for s in range(3)]  # fmt: skip
    rows += [run(arm, s, 2.0 + WIGGLE[s], rate) for s in range(3) for arm, rate in (("uniform", 1e-3), ("heavy", 1e-3))]
    said = said_of(stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform"), rate=1e-3)
    assert (
        "uniform (constant scaling) at rank:8 breaks first at 0.01: 2 of 3 runs diverged, the first at step 31. "
        "Validation chooses 0.001 for it, below that." in said
    )


def committed(study: str) -> StabilityFindings:
    with open_findings(superseded(study)) as found:
        return found.stability_findings


def first_breaks(found: StabilityFindings, arm: str) -> dict[str, float]:
    return {b.sweep.budget: b.cell.learning_rate for b in found.breaks if b.sweep.arm == arm}


def test_what_the_committed_stability_study_says() -> None:
    found = committed("stability")
    assert first_breaks(found, "uniform") == {"rank:2": 0.03, "rank:8": 0.03}
    assert (
        first_breaks(found, "empirical") == first_breaks(found, "attention-heavy") == {"rank:2": 0.03, "rank:8": 0.01}
    )
    assert first_breaks(found, "empirical-alpha-over-r") == {"rank:2": 0.03, "rank:8": 0.03}
    assert {b.sweep.label for b in found.less_stable} == {
        "empirical at rank:8", *(f"{arm}-lora-plus at {budget}" for arm in ("uniform", "attention-heavy")
                                 for budget in ("rank:2", "rank:8")),
    }  # fmt: skip
    causes = {(c.changed.arm, c.changed.budget) for c in found.variants.moved if c.effect is Effect.REMOVES}
    assert causes == {("empirical-alpha-over-r", "rank:8"), ("empirical-rank-aware", "rank:8")}


@pytest.mark.parametrize("study", ["stability", "alpaca-babyllama-full", "alpaca-stories260k", "gsm8k-stories260k"])
def test_no_committed_arm_breaks_at_the_rate_that_validation_chose_and_none_is_said_to(study: str) -> None:
    found = committed(study)
    assert not [b.sweep.label for b in found.breaks if b.at_chosen]
    said = " ".join(render_all("stability.findings", found))
    assert "At the rate that validation chooses, broken" not in said
    assert ("at a tuned rate none appears" in said) == bool(found.breaks)
