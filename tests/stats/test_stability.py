"""Stability: spikes, clipping, divergence and excess by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_lora.stats.estimators import Floats, mean_interval
from adaptive_lora.stats.loss_spikes import FLOOR, count_spikes, rises, row_medians, spikes
from adaptive_lora.stats.stability import STABILITY_COLUMNS, stability_table, summaries
from adaptive_lora.stats.stability_findings import stability_findings

RESULTS = Path(__file__).parents[2] / "results"
STEPS = 150
FROZEN = 3.0
"""The frozen model's loss."""
TUNED = {"phase": "tuning", "budget": "rank:8", "scaling": "constant", "status": "completed", "replica": 0}


def run(arm: str, seed: int, loss: float | None = 2.0, rate: float = 1e-3, **other: object) -> dict[str, object]:
    """A row of the table of runs."""
    losses = {"validation_loss": loss, "test_loss": loss, "base_loss": FROZEN}
    labels = {**TUNED, **losses, "arm": arm, "seed": seed, "learning_rate": rate, "step": STEPS, **other}
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
@settings(max_examples=40)
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
@settings(max_examples=15)
def test_the_order_of_rows_changes_nothing(random: object) -> None:
    runs, curves = spiking_study()
    seed = random.randint(0, 10**6)  # type: ignore[attr-defined]
    shuffled = stability_table(runs.sample(frac=1, random_state=seed), curves.sample(frac=1, random_state=seed), 1.0,
                               "uniform")  # fmt: skip
    expected = stability_table(runs, curves, 1.0, "uniform")
    by_run = [t.sort_values("run_id", ignore_index=True) for t in (expected, shuffled)]
    pd.testing.assert_frame_equal(*by_run)
    found = [stability_findings(t, "uniform", {}, {}) for t in by_run]
    assert found[0] == found[1]


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
