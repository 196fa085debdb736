"""The sentences on stability, by the rules of `stats.stability_findings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.reporting.templating import render_all
from adaptive_lora.stats.stability import stability_table
from adaptive_lora.stats.stability_findings import stability_findings
from adaptive_lora.stats.variants import Variant, variants_of
from tests.stats.test_stability import NO_CURVES, run, spiking_study

WIGGLE = (-0.004, 0.001, 0.003)
RATES = (1e-3, 3e-3, 1e-2)
LEVELS = {1e-3: 2.1, 3e-3: 2.0, 1e-2: 2.4}
"""The baseline's losses: validation chooses 3e-3, and 1e-2 is too high for it too."""
VARIANTS = {
    "heavy-r": Variant("heavy", (("scaling", "alpha-over-r"),)),
    "heavy-warm": Variant("heavy", (("warmup", 0.1),)),
}


def study(
    excesses: Mapping[str, Mapping[float, float | None]], seeds: int = 3, budgets: Sequence[str] = ("rank:8",)
) -> pd.DataFrame:
    """The table of a study: excess by arm and rate, 0 where not said, diverged where nothing."""
    rows = []
    for budget in budgets:
        for seed in range(seeds):
            for rate in RATES:
                rows.append(run("uniform", seed, LEVELS[rate] + WIGGLE[seed], rate, budget=budget))
                for arm, by_rate in excesses.items():
                    more = by_rate.get(rate, 0.0)
                    labels: dict[str, object] = {"budget": budget}
                    labels["scaling"] = "alpha-over-r" if arm.endswith("-r") else "constant"
                    if more is None:
                        rows.append(run(arm, seed, None, rate, **labels, status="diverged", step=50 + seed))
                    else:
                        loss = LEVELS[rate] + WIGGLE[seed] + more + WIGGLE[(seed + 1) % 3]
                        rows.append(run(arm, seed, loss, rate, **labels))
    return stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")


def said_by(*found: Any, **named: Any) -> list[str]:
    """The sentences on `stability_findings` of these arguments."""
    return render_all("stability.findings", stability_findings(*found, **named))


def said_of(table: pd.DataFrame, rate: float = 3e-3, margin: float = 0.01) -> list[str]:
    chosen = {(arm, budget): rate for arm in table["arm"].unique() for budget in table["budget"].unique()}
    return said_by(table, "uniform", margin, chosen, VARIANTS)


def test_when_no_arm_breaks_the_scope_is_named() -> None:
    said = said_of(study({"heavy": {}, "heavy-r": {}}), margin=0.02)
    assert said[0].startswith("Exploratory, and not corrected for its 6 comparisons: an arm breaks at a learning rate")
    assert said[1] == (
        "No arm breaks: the instability that the original study reports did not appear here (2 arms beside uniform, "
        "learning rates 0.001, 0.003 and 0.01, scaling constant and alpha-over-r, budget rank:8, 3 seeds each)."
    )
    assert not [sentence for sentence in said if "cause" in sentence or "breaks first" in sentence]


def test_what_the_intervals_leave_open_is_said() -> None:
    said = said_of(study({"heavy": {1e-3: 0.004}}), margin=0.01)
    assert said[1].startswith("No arm is shown to break: the instability")
    assert said[2] == (
        "An excess beyond the margin is not ruled out at 1 of 3 combinations of arm, budget and rate; the highest "
        "interval ends at 0.013 (heavy at rank:8, 0.001)."
    )


def test_spikes_are_described() -> None:
    runs, curves = spiking_study()
    calm = curves[curves["run_id"] != run("a", 2)["run_id"]]
    assert said_of(stability_table(runs, calm, 1.0, "uniform"))[-1] == "No loss spike in 5 runs."
    assert said_of(stability_table(runs, curves, 1.0, "uniform"))[-1] == (
        "2 loss spikes in 6 runs; most a run, 1.0, with a at rank:8, rate 0.001."
    )


def test_a_break_at_the_top_under_one_scaling_alone() -> None:
    said = said_of(study({"heavy": {1e-2: 0.08}, "heavy-r": {}, "linear": {}}))
    assert said[1:] == [
        "At rank:8 every arm trains as uniform does up to 0.003.",
        "heavy (constant scaling) at rank:8 breaks first at 0.01: worse than uniform by 0.080 [0.071, 0.089] over 3 "
        "seeds. Validation chooses 0.003 for it, below that.",
        "At rank:8 heavy-r and linear break at no rate that was tried.",
        "Every break lies above the rate that validation chooses for the arm: at a tuned rate none appears.",
        "From 0.01 on the rate is too high for uniform itself at rank:8: worse than at 0.003, its rate by validation, "
        "by 0.400 [0.400, 0.400] over 3 seeds.",
        "alpha-over-r scaling (heavy-r) at rank:8: it is not shown to break, heavy breaks first at 0.01; at 0.01 its "
        "loss less that of heavy: −0.080 [−0.080, −0.080] over 3 seeds. The scaling rule is a cause of the break.",
    ]


def test_changes_of_training_are_not_put_down_to_scaling() -> None:
    removed = said_of(study({"heavy": {1e-2: 0.08}, "heavy-warm": {}}))[-1]
    eased = said_of(study({"heavy": {1e-2: 0.08}, "heavy-warm": {1e-2: 0.05}}))[-1]
    worse = said_of(study({"heavy": {}, "heavy-warm": {1e-2: 0.05}}))[-1]
    nothing = said_of(study({"heavy": {1e-2: 0.08}, "heavy-warm": {1e-2: 0.08}}))[-1]
    assert removed.startswith("a warm-up of 10 % (heavy-warm)") and removed.endswith(
        "This change removes the break there."
    )
    assert eased.endswith("This change makes training easier there.")
    assert worse.endswith("This change causes the break there.")
    assert nothing.endswith("No effect of it is shown there.")
    neither = said_of(study({"heavy": {}, "heavy-warm": {}, "linear": {3e-3: 0.1}}))[-1]
    assert neither == (
        "No break is seen with or without what sets these apart from their plain arms: heavy-warm (a warm-up of "
        "10 %) at rank:8."
    )


def test_scaling_is_no_cause_where_training_differs_too() -> None:
    plain = {"name": "heavy", "strategy": "attention-heavy", "options": {}, "scaling": None, "train": None}
    changed = {**plain, "name": "heavy-r", "scaling": {"rule": "alpha-over-r"}}
    table = study({"heavy": {1e-2: 0.08}, "heavy-r": {}})
    for train, ends in (
        (None, "The scaling rule is a cause of the break."),
        ({"warmup": 0.3, "multipliers": {"b": 16.0}}, "This change removes the break there."),
    ):
        variants = variants_of({"arms": [plain, {**changed, "train": train}]})
        assert variants["heavy-r"].only_scaling == (train is None)
        assert said_by(table, "uniform", 0.01, {}, variants)[-1].endswith(ends)


def test_an_arm_that_no_rate_trains_is_named_and_no_sentence_claims_for_it() -> None:
    table = study({"heavy": {1e-2: 0.08}, "hopeless": dict.fromkeys(RATES)})
    chosen = {(arm, "rank:8"): 3e-3 for arm in ("uniform", "heavy")}
    said = said_by(table, "uniform", 0.01, chosen, {})
    assert "No rate that was tried trains hopeless at rank:8, so that none was chosen." in said
    assert next(s for s in said if s.startswith("hopeless")).endswith("A run diverged at every rate that was tried.")
    assert (
        "Every other break lies above the rate that validation chooses for the arm: at a tuned rate none of these "
        "appears." in said
    )
    alone = said_by(study({"hopeless": dict.fromkeys(RATES)}), "uniform", 0.01, chosen, {})
    assert not [s for s in alone if "Every break" in s or "none appears" in s]
    waiting = said_by(study({"heavy": {1e-2: 0.08}}), "uniform", 0.01, {}, {})
    assert "No rate is chosen yet for heavy at rank:8." in waiting and not [
        s for s in waiting if "No rate that was" in s
    ]


def test_where_nothing_was_tuned_validation_chose_nothing() -> None:
    rows = [run(arm, s, 2.0 + 0.5 * (arm == "heavy") + WIGGLE[s]) for s in range(3) for arm in ("uniform", "heavy")]
    table = stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")
    chosen = {(arm, "rank:8"): 1e-3 for arm in ("uniform", "heavy")}
    said = said_by(table, "uniform", 0.01, chosen, {}, tuned=False)
    assert "That is the study's rate; none was tuned." in said[2] and "alidation chooses" not in " ".join(said)
    assert "Validation chooses" in " ".join(said_by(table, "uniform", 0.01, chosen, {}))


def test_arms_with_wide_intervals_are_not_said_to_train_as_the_baseline_does() -> None:
    table = study({"heavy": {1e-2: 0.08}, "wide": {}})
    rows = (table["arm"] == "wide") & (table["learning_rate"] == 1e-3)
    table.loc[rows, "excess"] = [0.0, 0.3, -0.2]
    said = said_of(table)
    assert said[1] == "At rank:8 no arm is shown to break up to 0.003."
    assert "At rank:8 wide is shown to break at no rate." in said


def test_a_difference_that_may_be_none_is_no_cause() -> None:
    table = study({"heavy": {1e-2: 0.08}, "heavy-r": {}})
    top = (table["arm"] == "heavy-r") & (table["learning_rate"] == 1e-2)
    table.loc[top, "validation_loss"] += [0.0, 0.3, 0.05]
    table.loc[top, "excess"] += [0.0, 0.3, 0.05]
    last = said_of(table)[-1]
    assert "it is not shown to break" in last and last.endswith("No effect of it is shown there.")


def test_divergence_breaks_and_few_seeds_show_no_cause() -> None:
    said = said_of(study({"heavy": {1e-2: None}, "heavy-r": {}}))
    assert said[2].startswith(
        "heavy (constant scaling) at rank:8 breaks first at 0.01: 3 of 3 runs diverged, the first at step 50. Valid"
    )
    assert "0 against 3 of 3 runs diverged" in said[-1] and said[-1].endswith("No effect of it is shown there.")


def test_divergence_of_six_seeds_of_six_shows_a_cause() -> None:
    rows = [run("uniform", s) for s in range(6)] + [run("heavy-r", s, scaling="alpha-over-r") for s in range(6)]
    rows += [run("heavy", s, None, status="diverged", step=9) for s in range(6)]
    table = stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")
    assert said_of(table, rate=1e-3)[-1].endswith(
        "0 against 6 of 6 runs diverged. The scaling rule is a cause of the break."
    )


def test_a_break_at_the_chosen_rate_is_no_matter_of_tuning() -> None:
    said = said_of(study({"heavy": {3e-3: 0.08, 1e-2: 0.08}}))
    assert "Validation chooses 0.003 for it, that very rate." in said[2]
    assert "At the rate that validation chooses, broken is heavy at rank:8." in said
    assert not [sentence for sentence in said if "at a tuned rate none" in sentence]


def test_rates_above_the_first_break_that_train_are_named() -> None:
    said = said_of(study({"heavy": {3e-3: 0.08}}))
    assert said[2].endswith("At 0.01 it is not shown to break.")


def test_more_budget_is_compared_where_either_breaks() -> None:
    small, large = study({"heavy": {}}), study({"heavy": {1e-2: 0.08}}, budgets=["rank:16"])
    said = said_of(pd.concat([large, small], ignore_index=True))
    assert said[-1] == (
        "heavy is not shown to break at rank:8 and breaks first at 0.01 at rank:16; at 0.01 the excess at rank:16 less "
        "that at rank:8: +0.080 [+0.080, +0.080] over 3 seeds. More budget makes it worse there."
    )
    same = said_of(study({"heavy": {1e-2: 0.08}}, budgets=["rank:16", "rank:8"]))
    assert same[-1].endswith("No effect of the budget is shown there.")


def test_one_seed_says_nothing() -> None:
    said = said_of(study({"heavy": {1e-2: 0.5}}, seeds=1))
    assert said[1] == (
        "Too few seeds to say whether anything breaks: 1 arm beside uniform, learning rates 0.001, 0.003 and 0.01, "
        "scaling constant, budget rank:8, 1 seed each."
    )
    assert not [sentence for sentence in said if sentence.startswith("No arm")]


def test_a_rate_with_too_few_seeds_is_not_one_that_trains() -> None:
    table = study({"heavy": {}})
    table = table[~((table["arm"] == "uniform") & (table["learning_rate"] == 1e-2))]
    table.loc[table["learning_rate"] == 1e-2, "excess"] = np.nan
    said = said_of(table)
    assert said[1].startswith("No arm is shown to break: ")
    assert said[-1] == "At 1 of 3 combinations fewer than two seeds have a loss to compare."


def test_without_an_arm_beside_the_baseline_there_is_nothing_to_say() -> None:
    (said,) = said_of(study({}))
    assert said == "Nothing can be said of stability: no arm beside uniform has finished a run."


def test_a_baseline_that_diverges_is_reported() -> None:
    rows = [run("uniform", s, None if s else 2.0, 1e-2, status="diverged" if s else "completed", step=30 + s)
            for s in range(3)]  # fmt: skip
    rows += [run(arm, s, 2.0 + WIGGLE[s], rate) for s in range(3) for arm, rate in (("uniform", 1e-3), ("heavy", 1e-3))]
    said = said_of(stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform"), rate=1e-3)
    assert said[-1] == (
        "From 0.01 on the rate is too high for uniform itself at rank:8: 2 of 3 runs diverged, the first at step 31."
    )
