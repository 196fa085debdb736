"""Figures: what is drawn is what the tables say, every arm is marked and looks its own, nothing is drawn of nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from adaptive_lora.reporting.coverage import left_out
from adaptive_lora.reporting.figures import all as every
from adaptive_lora.reporting.figures import axes as shared
from adaptive_lora.reporting.figures.break_map import break_map
from adaptive_lora.reporting.figures.budgets import far_losses, frozen_fits, loss_by_budget
from adaptive_lora.reporting.figures.costs import costs
from adaptive_lora.reporting.figures.curves import curves_in_seconds, learning_curves
from adaptive_lora.reporting.figures.differences import paired_differences
from adaptive_lora.reporting.figures.looks import CROWD, looks_of
from adaptive_lora.reporting.figures.ranks import draws_of, overview, rank_heat_maps
from adaptive_lora.reporting.figures.rates import compared_settings, rate_curves, stability
from adaptive_lora.reporting.figures.scores import score_against_rank, score_points, spearman
from adaptive_lora.reporting.figures.theme import save, settle, themed, to_svg
from adaptive_lora.reporting.findings import read_findings
from adaptive_lora.stats.arms import summarise
from adaptive_lora.stats.metrics import TEST_LOSS
from adaptive_lora.stats.rate_sweeps import State, rate_sweeps
from adaptive_lora.stats.stability import stability_table
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import COST_COLUMNS, costs_table
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from tests.reporting.studies import NAMES, MadeStudy

BUDGET, BASELINE, MARGIN = "rank:8", "uniform", 0.01
MARGINS = dict.fromkeys(("rank:2", "rank:4", "rank:8", "rank:16"), MARGIN)
FIGURES: dict[str, Callable[[MadeStudy], Figure | None]] = {
    "overview": lambda s: overview(s.ranks, s.arms, s.looks, BASELINE, MARGINS),
    "ranks": lambda s: rank_heat_maps(s.ranks, s.names, BUDGET),
    "differences": lambda s: paired_differences(s.arms, s.looks, BASELINE, MARGINS),
    "loss": lambda s: loss_by_budget(s.runs, s.arms, s.looks),
    "curves": lambda s: learning_curves(s.curves, s.looks, BUDGET, BASELINE),
    "seconds": lambda s: curves_in_seconds(s.curves, s.runs, s.looks, BUDGET, BASELINE),
    "rates": lambda s: rate_curves(s.runs, s.looks, s.chosen),
    "scores": lambda s: score_against_rank(s.ranks, s.looks, BUDGET),
    "costs": lambda s: costs(s.costs, s.looks),
    "stability": lambda s: stability(s.stability, s.looks),
}


@pytest.fixture(scope="module")
def made() -> MadeStudy:
    return MadeStudy(5, seeds=4, blocks=3)


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def titled(figure: Figure, title: str) -> Axes:
    """The panel with this title."""
    found = [ax for ax in figure.axes if title in (ax.get_title(), ax.get_title(loc="left"))]
    assert len(found) == 1, title
    return found[0]


def of(ax: Axes | Figure, gid: str, kind: type[Artist] = Line2D) -> list[Artist]:
    """Artists whose mark begins so."""
    return [artist for artist in ax.findobj(kind) if str(artist.get_gid()).startswith(f"arm:{gid}")]


def points(ax: Axes | Figure, gid: str) -> list[tuple[float, float]]:
    """The places of marked points."""
    return [(float(a.get_xdata()[0]), float(a.get_ydata()[0])) for a in of(ax, gid)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_of_nothing_nothing_is_drawn(draw: Callable[[MadeStudy], Figure | None]) -> None:
    assert draw(MadeStudy(3, seeds=0, rates=())) is None


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_no_text_is_cut_at_the_edge(draw: Callable[[MadeStudy], Figure | None], made: MadeStudy) -> None:
    """At the size of print too: letters are not as wide there as they are measured on a screen."""
    figure = drawn(draw(made))
    settle(figure)
    with themed():
        figure.set_dpi(300)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = figure.bbox.size
        for ax in figure.axes:
            for text in (*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label):
                if text.get_text().strip():
                    box = text.get_window_extent(canvas.get_renderer())
                    assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("arms", [5, CROWD + 1])
def test_every_arm_is_marked_and_nothing_is_raster(draw: Callable[[MadeStudy], Figure | None], arms: int) -> None:
    study = MadeStudy(arms, seeds=3, blocks=2)
    svg = to_svg(drawn(draw(study)))
    marked = set(re.findall(r'<g class="arm" data-arm="([^"]*)">', svg))
    shown = set(study.names)
    if draw is FIGURES["scores"]:
        shown = set(score_points(study.ranks, BUDGET)["arm"])
    if draw is FIGURES["differences"]:
        shown -= {BASELINE}
    assert marked == shown
    assert "<image" not in svg


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_the_same_bytes_twice(draw: Callable[[MadeStudy], Figure | None], tmp_path: Path) -> None:
    made = MadeStudy(5, budgets=(BUDGET,), seeds=2, blocks=1)
    first = [path.read_bytes() for path in save(drawn(draw(made)), tmp_path / "a", kinds=("pdf", "svg"))]
    again = [path.read_bytes() for path in save(drawn(draw(made)), tmp_path / "b", kinds=("pdf", "svg"))]
    assert first == again


def test_looks_are_the_arms_own() -> None:
    looks = looks_of(NAMES)
    assert len(set(looks.values())) == len(NAMES) == 21
    assert len({(look.marker, look.fill) for look in looks.values()}) == 21  # all that grey leaves
    many = looks_of([f"arm-{i}" for i in range(147)])
    assert len({(look.colour, look.marker, look.fill) for look in many.values()}) == 147
    assert looks_of(["a", "b", "a"]) == looks_of(["a", "b"])


def test_an_arm_looks_the_same_in_every_figure(made: MadeStudy) -> None:
    for name in ("differences", "loss", "rates", "stability"):
        figure = drawn(FIGURES[name](made))
        for arm in set(made.names) - {BASELINE}:
            mean = next(a for a in of(figure, f"{arm}|") if "mean" in str(a.get_gid()))
            look = made.looks[arm]
            assert isinstance(mean, Line2D)
            assert (mean.get_color(), mean.get_marker()) == (look.colour, look.marker), name


def test_heat_maps_have_the_mean_ranks_on_one_scale(made: MadeStudy) -> None:
    figure = drawn(rank_heat_maps(made.ranks, made.names, BUDGET))
    own = made.ranks[(made.ranks["arm"] == "random") & (made.ranks["budget"] == BUDGET)]
    mesh = titled(figure, "random").findobj(QuadMesh)[0]
    assert isinstance(mesh, QuadMesh)
    means = own.groupby(["depth", "module"], sort=False)["rank"].mean().to_numpy()
    np.testing.assert_allclose(np.asarray(mesh.get_array()).ravel(), means)
    scales = {m.get_clim() for ax in figure.axes[: len(made.names)] for m in ax.findobj(QuadMesh)}  # type: ignore[attr-defined]
    assert len(scales) == 1


def test_a_module_left_out_is_no_low_rank() -> None:
    study = MadeStudy(17, seeds=2, blocks=2)
    figure = drawn(rank_heat_maps(study.ranks, study.names, BUDGET))
    ranked, grey = titled(figure, "attention-only").findobj(QuadMesh)
    assert isinstance(ranked, QuadMesh) and isinstance(grey, QuadMesh)
    holes = np.ma.getmaskarray(np.ma.masked_invalid(ranked.get_array()))
    assert holes[:, 4:].all() and not holes[:, :4].any()  # the four of attention come first
    assert (np.ma.getmaskarray(np.ma.masked_invalid(grey.get_array())) == ~holes).all()
    assert len(titled(figure, "uniform").findobj(QuadMesh)) == 1
    assert left_out(study.ranks) == {"attention-only": "6 of 14 modules: gate_proj, up_proj, down_proj"}


def test_differences_are_the_paired_ones_and_controls_stand_last(made: MadeStudy) -> None:
    figure = drawn(paired_differences(made.arms, made.looks, BASELINE, MARGINS))
    for budget in made.budgets:
        panel = titled(figure, budget)
        labels = [label.get_text() for label in panel.get_yticklabels()]
        assert labels == ["linear-decay", "empirical", "random", "shuffled"]
        rows = panel.get_yticks()
        assert rows[2] - rows[1] > rows[1] - rows[0] == rows[3] - rows[2]
        for arm in (a for a in made.arms if a.budget == budget and a.difference):
            seeds = [x for x, _ in points(panel, f"{arm.arm}|{arm.arm} at {budget}, seed")]
            assert seeds == [value for _, value in arm.differences]
            ((mean, _),) = points(panel, f"{arm.arm}|{arm.arm} at {budget}, mean")
            bars = [a.get_xdata() for a in of(panel, arm.arm) if len(a.get_xdata()) == 2]  # type: ignore[attr-defined]
            assert arm.difference is not None and mean == arm.difference.mean
            assert [arm.difference.low, arm.difference.high] in [list(bar) for bar in bars]


def test_own_arms_stand_first_wherever_controls_are_named() -> None:
    study = MadeStudy(4, budgets=(BUDGET,), seeds=2)
    backwards = list(reversed(study.arms))
    (panel,) = drawn(paired_differences(backwards, study.looks, BASELINE, MARGINS)).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["linear-decay", "shuffled", "random"]


def test_loss_stands_over_its_size_and_the_baseline_alone_at_the_outer_ones(made: MadeStudy) -> None:
    figure = drawn(loss_by_budget(made.runs, made.arms, made.looks))
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    for arm in made.arms:
        ((x, y),) = points(ax, f"{arm.arm}|{arm.arm} at {arm.budget}, {arm.trainable_parameters[0]:,} param")
        assert arm.loss is not None and y == arm.loss.mean
        assert x == arm.trainable_parameters[0]  # moved by nothing
        bars = [list(a.get_ydata()) for a in of(ax, arm.arm)]  # type: ignore[attr-defined]
        assert ([arm.loss.low, arm.loss.high] in bars) is (arm.arm == BASELINE)
    assert {a.budget for a in made.arms if a.arm == BASELINE} == {"rank:2", "rank:4", "rank:8", "rank:16"}
    unequal = [replace(a, trainable_parameters=(91_000,)) if a.arm == "random" else a for a in made.arms]
    (ax,) = drawn(loss_by_budget(made.runs, unequal, made.looks)).axes
    assert {x for x, _ in points(ax, "random|random at")} == {91_000.0}  # what it really spent


def test_the_frozen_model_stands_beside_the_arms_only_where_it_does_not_squash_them(made: MadeStudy) -> None:
    def texts(runs: pd.DataFrame) -> list[str]:
        return [t.get_text() for t in drawn(loss_by_budget(runs, made.arms, made.looks)).axes[0].texts]

    assert not frozen_fits(made.runs) and texts(made.runs) == []
    near = made.runs.assign(base_loss=2.05)
    assert frozen_fits(near) and texts(near) == ["frozen model 2.0500"]
    assert not frozen_fits(made.runs.assign(base_loss=None))


def test_curves_are_running_means_over_seeds_by_step_and_by_time(made: MadeStudy) -> None:
    own = made.curves[(made.curves["arm"] == "random") & (made.curves["budget"] == BUDGET)]
    smooth = own.pivot(index="step", columns="seed", values="loss").rolling(15, min_periods=1).mean()
    seconds = made.runs.loc[made.runs["run_id"].isin(own["run_id"]), "train_seconds"].astype(float).mean()
    for draw, end in ((FIGURES["curves"], 150), (FIGURES["seconds"], seconds)):
        (line,) = of(drawn(draw(made)).axes[0], "random|")
        assert isinstance(line, Line2D)
        np.testing.assert_allclose(np.asarray(line.get_ydata()), smooth.mean(axis=1))
        assert np.asarray(line.get_xdata())[-1] == pytest.approx(end)


def test_a_run_without_a_time_has_no_curve_in_seconds(made: MadeStudy) -> None:
    runs = made.runs.assign(train_seconds=made.runs["train_seconds"].where(made.runs["arm"] != "random"))
    figure = drawn(curves_in_seconds(made.curves, runs, made.looks, BUDGET, BASELINE))
    assert not of(figure, "random") and of(figure, "shuffled")


def test_many_arms_have_a_panel_each_with_the_baseline_behind() -> None:
    study = MadeStudy(CROWD + 1, seeds=2)
    figure = drawn(FIGURES["curves"](study))
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == study.names
    assert all(of(ax, "uniform|") for ax in panels)


def test_rates_have_means_ranges_the_choice_and_crosses(made: MadeStudy) -> None:
    ax = titled(drawn(rate_curves(made.runs, made.looks, made.chosen)), BUDGET)
    tuned = made.runs[(made.runs["phase"] == "tuning") & (made.runs["budget"] == BUDGET)]
    own = tuned[(tuned["arm"] == "random") & (tuned["learning_rate"] == 1e-3)]["validation_loss"].astype(float)
    ((x, y),) = points(ax, "random|random, rate 1e-3: mean")
    assert y == pytest.approx(own.mean()) and x == pytest.approx(1e-3, rel=0.3)
    bars = [list(a.get_ydata()) for a in of(ax, "random")]  # type: ignore[attr-defined]
    assert [own.min(), own.max()] in bars
    rings = [a for a in of(ax, "") if str(a.get_gid()).endswith("chosen")]
    assert len(rings) == 5 and all("rate 3e-3" in str(a.get_gid()) for a in rings)
    # `shuffled`, the fifth arm, diverged at the highest rate: a cross, and no mean there.
    crosses = [a for a in of(ax, "") if "diverged" in str(a.get_gid())]
    assert {str(a.get_gid()) for a in crosses} == {"arm:shuffled|shuffled, rate 1e-2: 3 of 3 seeds diverged"}
    assert not points(ax, "shuffled|shuffled, rate 1e-2: mean")


def test_an_arm_alone_at_a_budget_is_not_compared_and_takes_a_third_of_the_width() -> None:
    study = MadeStudy(CROWD + 1, seeds=3, blocks=1)
    alone = study.runs[(study.runs["arm"] == BASELINE) & (study.runs["budget"] == BUDGET)]
    runs = pd.concat([study.runs, *(alone.assign(budget=f"rank:{rank}") for rank in (1, 2, 16))])
    figure = drawn(rate_curves(runs, study.looks, study.chosen))
    settle(figure)
    *wide, first, second, third = figure.axes
    assert [ax.get_title() for ax in (first, second, third)] == ["rank:1", "rank:2", "rank:16"]
    assert first.get_position().y0 == third.get_position().y0
    assert all(ax.get_position().width > 2.5 * first.get_position().width for ax in wide)
    table = study.stability
    lone = table[(table["arm"] == BASELINE) & (table["budget"] == BUDGET)].assign(budget="rank:1")
    assert compared_settings(pd.concat([table, lone])) == compared_settings(table)
    assert compared_settings(lone) == [("rank:1", lone["scaling"].iloc[0])]
    assert len(drawn(stability(pd.concat([table, lone]), study.looks)).axes) == 3 * len(study.budgets)


def test_a_ligature_does_not_embed_its_font_again(tmp_path: Path) -> None:
    def fonts(text: str) -> int:
        figure = Figure(layout="constrained")
        figure.subplots().set_title(text)
        settle(figure)
        return save(figure, tmp_path / "a", kinds=("pdf",))[0].read_bytes().count(b"/FontFile2")

    assert fonts("fit: off") == fonts("plan") == 1


def test_a_rate_that_diverged_with_one_seed_has_no_mean(made: MadeStudy) -> None:
    runs = made.runs.copy()
    first = runs.index[(runs["phase"] == "tuning") & (runs["arm"] == "random") & (runs["budget"] == BUDGET)][0]
    runs.loc[first, ["status", "validation_loss"]] = ["diverged", None]
    ax = titled(drawn(rate_curves(runs, made.looks, {})), BUDGET)
    assert points(ax, "random|random, rate 1e-3: 1 of 3 seeds diverged")
    assert not points(ax, "random|random, rate 1e-3: mean")


def test_rates_end_at_the_frozen_model_with_a_caret_for_what_is_no_better(made: MadeStudy) -> None:
    runs = made.runs.copy()
    bad = (runs["phase"] == "tuning") & (runs["arm"] == "random") & (runs["learning_rate"] == 1e-2)
    runs.loc[bad, "validation_loss"] = 7.5
    ax = titled(drawn(rate_curves(runs, made.looks, {})), BUDGET)
    ((_, y),) = points(ax, "random|random, rate 1e-2: mean 7.5 of 3, no better than the frozen model")
    ((_, diverged),) = points(ax, "shuffled|shuffled, rate 1e-2: 3 of 3 seeds diverged")
    assert y == diverged == 2.9715 == ax.get_ylim()[1] and ax.get_ylim()[0] > 1.7
    signs = [a for a in ax.findobj(Line2D) if a.get_marker() == "^" and not a.get_clip_on()]  # type: ignore[attr-defined]
    faces = sorted(str(sign.get_markerfacecolor()) for sign in signs)  # type: ignore[attr-defined]
    assert faces == sorted([made.looks["random"].colour, "white"])
    assert "ends at the frozen model's loss, 2.97" in (caption := every.rates_caption(runs))
    assert "open caret: diverged" in caption and "Cross" not in caption
    unknown = every.rates_caption(runs.assign(base_loss=None))
    assert "frozen" not in unknown and "Cross at the top edge: diverged" in unknown
    calm = every.rates_caption(made.runs[made.runs["arm"] != "shuffled"])
    assert "diverged" not in calm and "frozen" not in calm


def test_of_plans_by_chance_one_draw_is_shown_and_said(made: MadeStudy) -> None:
    draws = draws_of(made.ranks, made.arms, BUDGET)
    assert draws == {"random": 3, "shuffled": 3}
    figures = (drawn(FIGURES["overview"](made)), drawn(rank_heat_maps(made.ranks, made.names, BUDGET, draws)))
    for figure, budget in zip(figures, (made.arms[0].budget, BUDGET), strict=True):
        own = made.ranks[(made.ranks["budget"] == budget) & (made.ranks["arm"] == "random")]
        mesh = titled(figure, "random").findobj(QuadMesh)[0]
        assert isinstance(mesh, QuadMesh)
        first = own[own["seed"] == own["seed"].min()]["rank"].to_numpy()
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).ravel(), first)
        said = [ax.get_title() for ax in figure.axes if ax.get_xlabel() == "one draw of 3"]
        assert said == ["random", "shuffled"]


def test_scores_stand_over_the_ranks_they_became() -> None:
    study = MadeStudy(7, seeds=3, blocks=3)
    figure = drawn(score_against_rank(study.ranks, study.looks, BUDGET))
    expected = score_points(study.ranks, BUDGET)
    own = expected[expected["arm"] == "eva"]
    correlation = f"eva\nSpearman {spearman(own):+.2f}"
    panel = titled(figure, correlation.replace("-", "−"))
    assert sorted(points(panel, "eva|")) == sorted(zip(own["rank"], own["score"], strict=True))
    assert len(own) == 21 and panel.get_yscale() == "log"
    negative = study.ranks.assign(score=-study.ranks["score"].astype(float))
    assert all(ax.get_yscale() == "linear" for ax in drawn(score_against_rank(negative, study.looks, BUDGET)).axes)


def test_spearman_by_hand() -> None:
    frame = pd.DataFrame({"score": [0.1, 0.2, 0.3, 0.4], "rank": [1, 1, 3, 2]})
    assert spearman(frame) == pytest.approx(0.7378647873726218)  # scipy.stats.spearmanr
    assert spearman(frame.assign(rank=4)) is None


def test_costs_are_medians_and_what_is_unknown_is_not_drawn() -> None:
    study = MadeStudy(8, budgets=(BUDGET,), seeds=3)
    table = study.costs
    table["plan_seconds"] = table["plan_seconds"].where(table["arm"] != "gora")
    times, memory = drawn(costs(table, study.looks)).axes

    def bars(ax: Axes, arm: str) -> list[tuple[float, float]]:
        return [(b.get_x(), b.get_width()) for b in of(ax, arm, Rectangle)]  # type: ignore[attr-defined]

    medians = table[table["arm"] == "eva"][["plan_seconds", "train_seconds"]].astype(float).median()
    planning, training = medians.tolist()
    assert sorted(bars(times, "eva|")) == [(0, planning), (planning, training)]
    assert len(bars(times, "gora|")) == 1
    assert any(t.get_text().startswith("? + ") for t in times.texts)
    assert bars(memory, "eva|") == [(0, 5.5)]
    assert bars(memory, "uniform|") == []
    assert len(drawn(costs(table.assign(score_bytes=None), study.looks)).axes) == 1


def test_costs_that_span_a_hundredfold_are_points_on_a_log_axis() -> None:
    study = MadeStudy(5, budgets=(BUDGET,), seeds=2)
    table = study.costs
    table.loc[table["arm"] == "random", "plan_seconds"] = 3000.0
    ax = drawn(costs(table, study.looks)).axes[0]
    assert ax.get_xscale() == "log" and not of(ax, "random|", Rectangle)
    assert 3000.0 in [x for x, _ in points(ax, "random|")]


def test_stability_has_means_over_the_runs_that_did_not_diverge(made: MadeStudy) -> None:
    table = made.stability
    figure = drawn(stability(table, made.looks))
    excess, clipped, norm = (figure.axes[2 * row + 1] for row in range(3))
    own = table[(table["arm"] == "random") & (table["budget"] == BUDGET) & (table["learning_rate"] == 3e-3)]
    for ax, measure in ((excess, "excess"), (clipped, "clipped"), (norm, "gradient_norm")):
        ((_, y),) = points(ax, "random|random, rate 3e-3: mean")
        assert y == pytest.approx(own[measure].mean()), measure
        assert [own[measure].min(), own[measure].max()] in [list(a.get_ydata()) for a in of(ax, "random")]  # type: ignore[attr-defined]
    assert norm.get_yscale() == "log"
    assert {str(a.get_gid()) for a in of(figure, "") if "diverged" in str(a.get_gid())} == {
        "arm:shuffled|shuffled, rate 1e-2: 3 of 3 runs diverged"
    }
    assert not points(figure, "shuffled|shuffled, rate 1e-2: mean")
    # Where some run diverged the mean is over the others.
    table.loc[own.index[0], "diverged"] = True
    ((_, y),) = points(drawn(stability(table, made.looks)).axes[3], "random|random, rate 3e-3: mean")
    assert y == pytest.approx(own["clipped"].iloc[1:].mean())
    assert len(drawn(stability(pd.concat([table, table.assign(scaling="rslora")]), made.looks)).axes) == 12


def test_an_arm_far_from_all_others_is_an_arrow_and_squashes_nothing(made: MadeStudy) -> None:
    def limits(runs: pd.DataFrame) -> list[tuple[float, float]]:
        arms = summarise(runs, BASELINE)
        figures = (
            drawn(paired_differences(arms, made.looks, BASELINE, MARGINS)),
            drawn(overview(made.ranks, arms, made.looks, BASELINE, MARGINS)),
            drawn(loss_by_budget(runs, arms, made.looks)),
        )
        arrows = [sum(str(a.get_gid()) == "arm:random" and a.get_marker() in "<>^v" and not a.get_clip_on()  # type: ignore[attr-defined]
                      for a in figure.findobj(Line2D)) for figure in figures]  # fmt: skip
        assert arrows == ([2, 1, 2] if runs is far else [0, 0, 0])  # at two budgets, at one, at two
        assert far_losses(arms) is (runs is far)
        return [figures[0].axes[0].get_xlim(), figures[1].axes[-2].get_ylim(), figures[2].axes[0].get_ylim()]

    far = made.runs.copy()
    far.loc[far["arm"] == "random", "test_loss"] += 5.0
    for (low, high), (low_far, high_far) in zip(limits(made.runs), limits(far), strict=True):
        assert high_far - low_far < 5 * (high - low) < 5.0


def test_raw_points_are_capped_and_the_caption_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    study = MadeStudy(4, budgets=(BUDGET,), seeds=6)
    assert len(points(drawn(FIGURES["differences"](study)), "random|random at rank:8, seed")) == 6
    monkeypatch.setattr(shared, "RAW_POINTS", 9)
    for name, groups in (("differences", 3), ("overview", 4)):
        assert len(points(drawn(FIGURES[name](study)), "random|random at rank:8, seed")) == 9 // groups, name
    assert shared.cap([6, 6, 6]) == 3 and shared.cap([3, 3, 3]) is shared.cap([]) is None


def drawn_all(found: Any) -> dict[str, tuple[Figure, str]]:
    made = ((wanted, wanted.draw()) for wanted in every.wanted_figures(found))
    return {wanted.name: (figure, wanted.caption) for wanted, figure in made if figure is not None}


def test_the_map_frames_what_breaks_and_says_how_much_is_kept(made: MadeStudy) -> None:
    table = stability_table(made.runs, made.curves.assign(gradient_norm=1.0), 1.0, BASELINE)
    arm, budget = next((a, b) for a, b in zip(table["arm"], table["budget"], strict=True) if a != BASELINE)
    own = (table["arm"] == arm) & (table["budget"] == budget)
    rate = table[own]["learning_rate"].max()
    worse = table.copy()
    worse.loc[own & (table["learning_rate"] == rate), "gain"] = 0.01
    figure = break_map(worse, BASELINE, 0.05, made.chosen)
    assert figure is not None
    frames = [p for ax in figure.axes for p in ax.patches if not p.get_fill()]
    courses = rate_sweeps(worse)
    states = [s for (_, of), course in courses.items() if of in made.budgets for s in course.states]
    assert courses[arm, budget].state_at(rate) is State.BREAKS
    assert len(frames) == states.count(State.BREAKS) > 0
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert "1 %" in words and words.count("100 %") >= len(made.names)
    lone = worse[worse["arm"] == BASELINE].assign(budget="rank:1")
    again = break_map(pd.concat([worse, lone]), BASELINE, 0.05, made.chosen)
    assert again is not None and [ax.get_title() for ax in again.axes] == [ax.get_title() for ax in figure.axes]
    assert again.get_size_inches().tolist() == figure.get_size_inches().tolist()
    assert break_map(table[table["learning_rate"] == rate], BASELINE, 0.05, made.chosen) is None
    assert break_map(table.assign(gain=np.nan), BASELINE, 0.05, made.chosen) is None


def test_every_figure_has_its_caption(made: MadeStudy) -> None:
    facts = {
        "spec": {
            "arms": [{"name": name} for name in made.names[:-2]], "budgets": list(made.budgets),
            "analysis": {"baseline": BASELINE, "margin": MARGIN, "alpha": 0.05},
        },
        "chosen_rates": [[arm, budget, rate] for (arm, budget), rate in made.chosen.items()],
    }  # fmt: skip
    found = SimpleNamespace(
        runs=made.runs, ranks=made.ranks, curves=made.curves, costs=made.costs, arms=made.arms, facts=facts,
        stability=stability_table(made.runs, made.curves.assign(gradient_norm=1.0), 1.0, BASELINE), baseline=BASELINE,
        analysis=facts["spec"]["analysis"], left_out=left_out(made.ranks),
        margin=MARGIN, margins=dict.fromkeys(made.budgets, MARGIN), decompositions=[], resampled="seeds",
        metric=TEST_LOSS, compared=[arm for arm in made.arms if arm.difference],
        base_loss=float(made.runs["base_loss"].dropna().iloc[0]), judged={}, differences={}, assays=[],
    )  # fmt: skip
    figures = drawn_all(found)
    by_budget = [f"{name}-{b}" for b in ("rank-4", "rank-8") for name in ("ranks", "scores", "curves", "seconds")]
    assert list(figures) == [
        "overview",
        "differences",
        "loss-by-budget",
        *by_budget,
        "rates",
        "costs",
        "stability-map",
        "stability",
    ]
    for name, (_, caption) in figures.items():
        assert caption.endswith(".") and len(caption) > 40, name
    assert "frozen model's loss is 2.9715" in figures["loss-by-budget"][1]
    assert "negative: better" in figures["differences"][1]
    assert "trained alone" in figures["costs"][1]
    found.runs = made.runs.assign(engine="bank of 4")
    captions = {name: caption for name, (_, caption) in drawn_all(found).items()}
    assert all("only on the reference engine" in captions[name] for name in ("seconds-rank-4", "costs"))
    assert "seconds-rank-8" not in captions  # shares of tokens: one budget shows all there is to see


def test_a_ledger_tells_what_planning_took_where_plans_say_so(study_file: Callable[..., Path], tmp_path: Path) -> None:
    arms = ("[uniform, linear-decay, empirical, random]", "[uniform, empirical]")
    run_study(load_study(study_file(arms, ("steps: 6", "steps: 2"))), tmp_path / "out")
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        table = costs_table(ledger)
        figures = drawn_all(read_findings(ledger))
        measured = [
            (ledger.plan(run_id) or {})["provenance"]["measured"]
            for run_id in table[table["arm"] == "empirical"]["run_id"]
        ]
    assert list(table.columns) == list(COST_COLUMNS) and len(table) == 4
    assert table[table["arm"] == "uniform"][["measure_seconds", "score_bytes"]].isna().all(axis=None)
    own = table[table["arm"] == "empirical"]
    assert own["score_bytes"].tolist() == [found["score_bytes"] for found in measured]
    assert own["measure_seconds"].tolist() == [sum(found["seconds"].values()) for found in measured]
    assert (own["measure_seconds"] <= own["plan_seconds"]).all()
    assert {"scores-rank-2", "seconds-rank-2", "costs"} <= set(figures) and "rates" not in figures
