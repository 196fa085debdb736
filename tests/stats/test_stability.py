"""Stability: spikes, clipping, divergence and excess by hand; sentences by their rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_lora.stats.causes import findings
from adaptive_lora.stats.estimators import Floats, mean_interval
from adaptive_lora.stats.spikes import FLOOR, count_spikes, rises, row_medians, spikes
from adaptive_lora.stats.stability import STABILITY_COLUMNS, stability_table, summaries
from adaptive_lora.stats.variants import Variant, variants_of

RESULTS = Path(__file__).parents[2] / "results"
STEPS = 150
TUNED = {"phase": "tuning", "budget": "rank:8", "scaling": "constant", "status": "completed", "replica": 0}


def run(arm: str, seed: int, loss: float | None = 2.0, rate: float = 1e-3, **other: object) -> dict[str, object]:
    """A row of the table of runs."""
    labels = {**TUNED, "arm": arm, "seed": seed, "learning_rate": rate, "validation_loss": loss, "step": STEPS, **other}
    return {"run_id": "-".join(str(labels[k]) for k in ("phase", "arm", "budget", "learning_rate", "seed")), **labels}


def curve(run_id: object, losses: Sequence[float] | Floats, norms: Sequence[float] | None = None) -> pd.DataFrame:
    columns = {"run_id": run_id, "step": range(len(losses)), "loss": losses}
    return pd.DataFrame({**columns, "gradient_norm": 0.5 if norms is None else norms})


NO_CURVES = curve("nobody", [])


def falling(steps: int = STEPS, time: float = 20.0) -> Floats:
    return np.asarray(1.8 + 1.2 * np.exp(-np.arange(steps) / time), dtype=np.float64)


def hard_batches(seed: int, steps: int = STEPS) -> Floats:
    """As on real records: differences between batches have a standard deviation of 0.25 nats."""
    return np.random.default_rng(seed).normal(0, 0.25, steps)


def quiet(runs: int, seed: int = 0, steps: int = STEPS) -> Floats:
    """Runs that share their batches and have 0.03 nats of noise of their own."""
    own = np.random.default_rng([1, seed]).normal(0, 0.03, (runs, steps))
    return np.asarray(falling(steps) + hard_batches(seed, steps) + own, dtype=np.float64)


def together(losses: Floats) -> Floats:
    return rises(losses, np.zeros(len(losses), dtype=np.int64))


# Spikes


def test_a_planted_spike_is_found_where_and_as_large_as_it_is() -> None:
    losses = quiet(4)
    losses[2, 80] += 0.6
    rise = together(losses)
    spiking = spikes(rise)
    assert np.argwhere(spiking).tolist() == [[2, 80]]
    assert rise[2, 80] == pytest.approx(0.6, abs=0.1)
    alone = rises(losses, np.arange(4))
    assert not spikes(alone).any()  # among hard batches it cannot be told from one


def test_a_spike_of_several_steps_is_one_and_a_lasting_jump_too() -> None:
    losses = quiet(5)
    losses[1, 60:64] += [0.5, 1.0, 0.9, 0.6]
    losses[3, 90:] += 1.0
    assert count_spikes(spikes(together(losses))).tolist() == [0, 1, 0, 1, 0]


def test_the_other_runs_do_not_spike_where_one_does() -> None:
    losses = quiet(2)
    losses[0, 70] += 2.0
    assert count_spikes(spikes(together(losses))).tolist() == [1, 0]


def test_a_hard_batch_is_no_spike() -> None:
    losses = quiet(3)
    losses[:, 100] += 3.0
    assert not spikes(together(losses)).any()
    assert spikes(rises(losses, np.arange(3)))[:, 100].all()  # one run alone cannot know


def test_runs_of_other_seeds_take_no_part() -> None:
    losses = np.vstack([quiet(3, seed=0), quiet(3, seed=1)])
    losses[1, 50] += 0.6
    found = spikes(rises(losses, np.array([7, 7, 7, 9, 9, 9])))
    assert np.argwhere(found).tolist() == [[1, 50]]


def test_a_run_that_lags_behind_the_others_does_not_spike() -> None:
    own = np.random.default_rng(5).normal(0, 0.02, (9, STEPS))
    curves = np.array([falling(time=time) for time in (200.0, 30, 30, 20, 10, 10, 10, 5, 5)])
    assert not spikes(together(curves + own + hard_batches(3))).any()


def test_a_quiet_run_has_no_spike_below_the_floor() -> None:
    losses = np.tile(falling() + hard_batches(2), (3, 1))
    losses[0, 75] += 0.9 * FLOOR
    losses[1, 100] += 1.1 * FLOOR
    assert count_spikes(spikes(together(losses))).tolist() == [0, 1, 0]


def test_the_median_of_the_others_by_hand() -> None:
    # The last step, without its level: 4 less the median of (1, 3) and of 1, 3 likewise; the missing run is not there.
    losses = np.zeros((4, 7))
    losses[:, 6] = [4.0, 1.0, 3.0, np.nan]
    assert together(losses)[:3, 6].tolist() == [2.0, -2.5, 0.5]


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_what_is_missing_spikes_nowhere_and_hides_nothing(missing: float) -> None:
    losses = quiet(5)
    losses[0, 100:] = missing
    losses[1, 40] = missing
    losses[1, 80] += 0.6
    losses[2] = missing
    rise = together(losses)
    assert np.argwhere(spikes(rise)).tolist() == [[1, 80]]
    assert np.isnan(rise[2]).all() and np.isnan(rise[0, 100:]).all() and np.isfinite(rise[0, 5:100]).all()


def test_medians_of_rows_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=(40, 9))
    values[np.random.default_rng(1).random(values.shape) < 0.5] = np.nan
    there = ~np.isnan(values).all(axis=1)
    np.testing.assert_array_equal(row_medians(values)[there], np.nanmedian(values[there], axis=1))
    assert row_medians(np.empty((2, 0))).size == 2 and np.isnan(row_medians(np.full((1, 3), np.nan))).all()


@given(
    planted=st.lists(st.tuples(st.integers(0, 3), st.integers(10, 149), st.floats(0.5, 3)), max_size=5),
    noise=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 4.0]), min_size=STEPS, max_size=STEPS),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_batches_that_all_share_change_no_spike(
    planted: list[tuple[int, int, float]], noise: list[float], seed: int
) -> None:
    losses = quiet(4, seed)
    for row, step, size in planted:
        losses[row, step] += size
    before, after = together(losses), together(losses + np.array(noise))
    np.testing.assert_allclose(before, after, atol=1e-12)
    np.testing.assert_array_equal(spikes(before), spikes(after))


def real_curves(study: str) -> tuple[Floats, np.ndarray]:
    """(runs, every tenth step) of a study that was run, and the seed of each run."""
    curves = pd.read_csv(RESULTS / study / "curves.csv")
    losses = curves.pivot(index=["arm", "budget", "seed"], columns="step", values="loss")
    return losses.to_numpy(), losses.index.get_level_values("seed").to_numpy()


@pytest.mark.parametrize("study", ["alpaca-babyllama", "demo"])
def test_real_curves_of_calm_training_have_no_spikes(study: str) -> None:
    losses, seeds = real_curves(study)
    assert not spikes(rises(losses, seeds)).any()
    assert not spikes(rises(losses, np.arange(len(losses)))).any()


def test_the_other_runs_know_how_hard_a_real_batch_is() -> None:
    losses, seeds = real_curves("alpaca-babyllama")
    others, alone = (np.nanmedian(np.abs(rises(losses, batches))) for batches in (seeds, np.arange(len(losses))))
    assert others < alone / 5


@pytest.mark.parametrize(("freedom", "most"), [(100, 0.01), (5, 0.02), (3, 0.1)])
def test_false_spikes_are_rare_under_noise_with_tails(freedom: int, most: float) -> None:
    found = 0
    for seed in range(20):
        rng = np.random.default_rng([freedom, seed])
        levels = np.array([falling(time=time) for time in (100.0, 30.0, 10.0, 5.0) for _ in range(6)])
        shared = 0.25 * rng.standard_t(freedom, STEPS) * (1 + 0.15 * rng.normal(size=(24, 1)))
        found += int(
            count_spikes(spikes(together(levels + shared + 0.03 * rng.standard_t(freedom, (24, STEPS))))).sum()
        )
    assert found / (20 * 24) <= most  # a run of 150 steps


# The table


def test_excess_is_beside_the_baseline_with_all_else_the_same() -> None:
    runs = pd.DataFrame([
        run("uniform", 1, 2.0), run("a", 1, 2.5), run("uniform", 2, 2.1), run("a", 2, 2.0),
        run("a", 3, 2.0),  # no baseline at this seed
        run("a", 1, 3.0, rate=1e-2), run("a", 1, 4.0, budget="rank:16"), run("a", 1, 5.0, phase="evaluation"),
        run("uniform", 4, None, status="diverged", step=7), run("a", 4, 2.0),
    ])  # fmt: skip
    table = stability_table(runs, NO_CURVES, 1.0, "uniform")
    assert tuple(table.columns) == STABILITY_COLUMNS
    assert table["excess"].dropna().tolist() == pytest.approx([0.5, -0.1])
    assert table.loc[table["excess"].notna(), "arm"].tolist() == ["a", "a"]


def test_divergence_is_told_with_its_step_and_gives_no_numbers() -> None:
    runs = pd.DataFrame([run("a", 1, None, status="diverged", step=57), run("uniform", 1)])
    assert stability_table(runs[:1], NO_CURVES, 1.0, "uniform")["excess"].isna().all()  # not even a baseline
    table = stability_table(runs, curve(run("uniform", 1)["run_id"], quiet(1)[0]), 1.0, "uniform")
    assert table["diverged"].tolist() == [True, False]
    assert table["diverged_at"].tolist() == [57, pd.NA]
    empty = ["spikes", "largest_spike", "gradient_norm", "largest_gradient_norm", "clipped", "excess", "update"]
    assert table.loc[0, empty].isna().all()
    assert table.loc[1, "spikes"] == 0 and pd.isna(table.loc[1, "largest_spike"])


def test_twins_and_unfinished_runs_are_no_rows() -> None:
    rows = [run("uniform", 1), run("uniform", 1, replica=1), *(run("a", 1, status=s) for s in ("pending", "failed"))]
    assert stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")["arm"].tolist() == ["uniform"]
    nothing = stability_table(pd.DataFrame(rows[1:]), NO_CURVES, 1.0, "uniform")
    assert nothing.empty and tuple(nothing.columns) == STABILITY_COLUMNS and summaries(nothing) == []


def test_gradients_and_clipping_by_hand() -> None:
    row = run("uniform", 1)
    norms = [0.5, 1.0, 1.5, 4.0, np.nan, np.inf]
    curves = curve(row["run_id"], [2.0] * 6, norms)
    (found,) = stability_table(pd.DataFrame([row]), curves, 1.0, "uniform").to_dict("records")
    assert (found["gradient_norm"], found["largest_gradient_norm"], found["clipped"]) == (1.25, 4.0, 0.5)
    (free,) = stability_table(pd.DataFrame([row]), curves, None, "uniform").to_dict("records")
    assert np.isnan(free["clipped"]) and free["gradient_norm"] == 1.25


def test_updates_are_by_module() -> None:
    rows = [run("uniform", 1), run("a", 1), run("b", 1)]
    ranks = pd.DataFrame({"run_id": [rows[0]["run_id"]] * 3 + [rows[1]["run_id"]] * 2,
                          "update": [0.1, 0.3, 0.2, np.nan, np.nan]})  # fmt: skip
    table = stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform", ranks)
    assert table.loc[0, ["update", "largest_update"]].tolist() == [0.2, 0.3]
    assert table.loc[1:, ["update", "largest_update"]].isna().all(axis=None)
    without = stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform", ranks.drop(columns="update"))
    assert without["update"].isna().all()


def spiking_study() -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, curves = [], []
    for seed in (1, 2):
        for index, arm in enumerate(("uniform", "a", "b")):
            losses = quiet(3, seed)[index]
            if (arm, seed) == ("a", 2):
                losses[[40, 90]] += [0.7, 1.4]
            rows.append(run(arm, seed, 2.0 + 0.1 * index))
            curves.append(curve(rows[-1]["run_id"], losses))
    return pd.DataFrame(rows), pd.concat(curves)


def test_spikes_reach_the_table_and_the_summary() -> None:
    runs, curves = spiking_study()
    table = stability_table(runs, curves, 1.0, "uniform").set_index(["arm", "seed"])
    assert table["spikes"].to_dict() == {
        (a, s): 2 * ((a, s) == ("a", 2)) for a in ("uniform", "a", "b") for s in (1, 2)
    }
    assert table.loc[("a", 2), "largest_spike"] == pytest.approx(1.4, abs=0.15)
    found = {s.arm: s for s in summaries(table.reset_index())}
    assert {arm: s.spikes for arm, s in found.items()} == {"uniform": 0.0, "a": 1.0, "b": 0.0}
    assert found["uniform"].excess is None and found["uniform"].largest_update is None
    assert found["a"].excess is not None and found["a"].excess.mean == pytest.approx(0.1)
    assert (found["a"].seeds, found["a"].diverged, found["a"].clipped, found["a"].gradient_norm) == (2, 0, 0.0, 0.5)


@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_the_order_of_rows_changes_nothing(random: object) -> None:
    runs, curves = spiking_study()
    seed = random.randint(0, 10**6)  # type: ignore[attr-defined]
    shuffled = stability_table(runs.sample(frac=1, random_state=seed), curves.sample(frac=1, random_state=seed), 1.0,
                               "uniform")  # fmt: skip
    expected = stability_table(runs, curves, 1.0, "uniform")
    by_run = [t.sort_values("run_id", ignore_index=True) for t in (expected, shuffled)]
    pd.testing.assert_frame_equal(*by_run)
    said = [findings(t, "uniform", 0.01, {}, {}) for t in by_run]
    assert said[0] == said[1]


def test_summaries_have_rates_rising_and_intervals_by_t() -> None:
    excesses = [0.1, 0.2, 0.4]
    rows = [run("uniform", s, 2.0, rate) for s in range(3) for rate in (1e-2, 1e-3)]
    rows += [run("a", s, 2.0 + e, rate) for s, e in enumerate(excesses) for rate in (1e-2, 1e-3)]
    found = summaries(stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform"))
    assert [(s.arm, s.learning_rate) for s in found] == [("uniform", 1e-3), ("uniform", 1e-2), ("a", 1e-3), ("a", 1e-2)]
    assert found[2].excess is not None
    expected = mean_interval(excesses)
    assert (found[2].excess.low, found[2].excess.high) == pytest.approx((expected.low, expected.high))
    assert found[2].spikes is None and found[2].clipped is None


# The sentences

WIGGLE = (-0.004, 0.001, 0.003)
RATES = (1e-3, 3e-3, 1e-2)
LEVELS = {1e-3: 2.1, 3e-3: 2.0, 1e-2: 2.4}
"""The baseline's losses: validation chooses 3e-3, and 1e-2 is too high for it too."""
VARIANTS = {
    "heavy-r": Variant("heavy", "alpha-over-r scaling", scaling_alone=True),
    "heavy-warm": Variant("heavy", "warm-up of 10 %", scaling_alone=False),
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


def said_of(table: pd.DataFrame, rate: float = 3e-3, margin: float = 0.01) -> list[str]:
    chosen = {(arm, budget): rate for arm in table["arm"].unique() for budget in table["budget"].unique()}
    return findings(table, "uniform", margin, chosen, VARIANTS)


def test_when_nothing_breaks_it_is_said_with_where_it_was_looked_for() -> None:
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
        "At rank:8 heavy-r and linear break at no rate looked at.",
        "Every break lies above the rate that validation chooses for the arm: at a tuned rate none appears.",
        "From 0.01 on the rate is too high for uniform itself at rank:8: worse than at 0.003, its rate by validation, "
        "by 0.400 [0.400, 0.400] over 3 seeds.",
        "alpha-over-r scaling (heavy-r) at rank:8: it is not seen to break, heavy breaks first at 0.01; at 0.01 its "
        "loss less that of heavy: −0.080 [−0.080, −0.080] over 3 seeds. The scaling rule is a cause of the break.",
    ]


def test_other_training_is_told_apart_from_scaling() -> None:
    removed = said_of(study({"heavy": {1e-2: 0.08}, "heavy-warm": {}}))[-1]
    eased = said_of(study({"heavy": {1e-2: 0.08}, "heavy-warm": {1e-2: 0.05}}))[-1]
    worse = said_of(study({"heavy": {}, "heavy-warm": {1e-2: 0.05}}))[-1]
    nothing = said_of(study({"heavy": {1e-2: 0.08}, "heavy-warm": {1e-2: 0.08}}))[-1]
    assert removed.startswith("warm-up of 10 % (heavy-warm)") and removed.endswith(
        "This change removes the break there."
    )
    assert eased.endswith("This change eases training there.")
    assert worse.endswith("This change brings the break about.")
    assert nothing.endswith("No effect of it is shown there.")
    neither = said_of(study({"heavy": {}, "heavy-warm": {}, "linear": {3e-3: 0.1}}))[-1]
    assert neither == (
        "No break is seen with or without what sets these apart from their plain arms: heavy-warm (warm-up of 10 %) at "
        "rank:8."
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
        assert variants["heavy-r"].scaling_alone == (train is None)
        assert findings(table, "uniform", 0.01, {}, variants)[-1].endswith(ends)


def test_an_arm_that_no_rate_trains_is_named_and_no_sentence_claims_for_it() -> None:
    table = study({"heavy": {1e-2: 0.08}, "hopeless": dict.fromkeys(RATES)})
    chosen = {(arm, "rank:8"): 3e-3 for arm in ("uniform", "heavy")}
    said = findings(table, "uniform", 0.01, chosen, {})
    assert "No rate looked at trains hopeless at rank:8, so that none was chosen." in said
    assert next(s for s in said if s.startswith("hopeless")).endswith(
        "No rate looked at trains it: at each of them a run diverged."
    )
    assert (
        "Every other break lies above the rate that validation chooses for the arm: at a tuned rate none of these "
        "appears." in said
    )
    alone = findings(study({"hopeless": dict.fromkeys(RATES)}), "uniform", 0.01, chosen, {})
    assert not [s for s in alone if "Every break" in s or "none appears" in s]
    waiting = findings(study({"heavy": {1e-2: 0.08}}), "uniform", 0.01, {}, {})
    assert "No rate is chosen yet for heavy at rank:8." in waiting and not [s for s in waiting if "No rate looked" in s]


def test_where_nothing_was_tuned_validation_chose_nothing() -> None:
    rows = [run(arm, s, 2.0 + 0.5 * (arm == "heavy") + WIGGLE[s]) for s in range(3) for arm in ("uniform", "heavy")]
    table = stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform")
    chosen = {(arm, "rank:8"): 1e-3 for arm in ("uniform", "heavy")}
    said = findings(table, "uniform", 0.01, chosen, {}, tuned=False)
    assert "That is the study's rate; none was tuned." in said[2] and "alidation chooses" not in " ".join(said)
    assert "Validation chooses" in " ".join(findings(table, "uniform", 0.01, chosen, {}))


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
    assert "it is not seen to break" in last and last.endswith("No effect of it is shown there.")


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


def test_a_break_that_does_not_last_is_told() -> None:
    said = said_of(study({"heavy": {3e-3: 0.08}}))
    assert said[2].endswith("At 0.01 it is not shown to break.")


def test_more_budget_is_compared_where_either_breaks() -> None:
    small, large = study({"heavy": {}}), study({"heavy": {1e-2: 0.08}}, budgets=["rank:16"])
    said = said_of(pd.concat([large, small], ignore_index=True))
    assert said[-1] == (
        "heavy is not seen to break at rank:8 and breaks first at 0.01 at rank:16; at 0.01 the excess at rank:16 less "
        "that at rank:8: +0.080 [0.080, 0.080] over 3 seeds. More budget makes it worse there."
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


def test_a_cell_that_cannot_be_told_is_not_one_that_trains() -> None:
    table = study({"heavy": {}})
    table = table[~((table["arm"] == "uniform") & (table["learning_rate"] == 1e-2))]
    table.loc[table["learning_rate"] == 1e-2, "excess"] = np.nan
    said = said_of(table)
    assert said[1].startswith("No arm is shown to break: ")
    assert said[-1] == "At 1 of 3 combinations fewer than two seeds have a loss to compare."


def test_without_an_arm_beside_the_baseline_there_is_nothing_to_say() -> None:
    (said,) = said_of(study({}))
    assert said == "Nothing can be said of stability: no arm beside uniform has finished a run."


def test_a_baseline_that_diverges_is_told() -> None:
    rows = [run("uniform", s, None if s else 2.0, 1e-2, status="diverged" if s else "completed", step=30 + s)
            for s in range(3)]  # fmt: skip
    rows += [run(arm, s, 2.0 + WIGGLE[s], rate) for s in range(3) for arm, rate in (("uniform", 1e-3), ("heavy", 1e-3))]
    said = said_of(stability_table(pd.DataFrame(rows), NO_CURVES, 1.0, "uniform"), rate=1e-3)
    assert said[-1] == (
        "From 0.01 on the rate is too high for uniform itself at rank:8: 2 of 3 runs diverged, the first at step 31."
    )
