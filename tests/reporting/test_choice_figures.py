"""The figures of verdicts with their yardstick, of planted truths, of choices and of the ceiling: what they show is
what they were given, and what was not run has no mark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptive_lora.reporting.choices import ceiling_cells, ladder_rows
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.figures.all import looks_in, main_figures
from adaptive_lora.reporting.figures.budgets import loss_by_budget
from adaptive_lora.reporting.figures.ceiling import DOUBLE, HALF, CeilingCell, ceiling, ceiling_caption
from adaptive_lora.reporting.figures.differences import Evidence, paired_differences
from adaptive_lora.reporting.figures.ladder import LadderRow, ladder, ladder_caption
from adaptive_lora.reporting.figures.planted import recovery_heat_map, recovery_map_caption
from adaptive_lora.reporting.figures.theme import settle, themed, to_svg
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.recovered import Recovered
from adaptive_lora.stats.differences import between
from adaptive_lora.stats.estimators import Interval
from tests.committed import RESULTS
from tests.reporting.test_recovered import MIXED, PROVISIONAL

_RUN_ON = re.compile(r"[.;:][A-Za-z]|\.\.|  | [.,;]")
"""What a template leaves where a part of it is missing."""


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def lines(figure: Figure, ends: Sequence[float | None]) -> list[Any]:
    """Those along the x axis with these ends."""
    return [a for a in figure.findobj(Line2D) if np.asarray(a.get_xdata()).tolist() == list(ends)]  # type: ignore[attr-defined]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def check_inside(figure: Figure) -> None:
    """No text is cut at the edge, at the size of print."""
    settle(figure)
    with themed():
        figure.set_dpi(300)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = figure.bbox.size
        for ax in figure.axes:
            low, high = sorted(ax.get_ylim())
            names = [label for label in ax.get_yticklabels() if low <= label.get_position()[1] <= high]
            for text in (*ax.texts, ax.title, ax.xaxis.label, *names):
                if text.get_text().strip():
                    box = text.get_window_extent(canvas.get_renderer())
                    assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()


@pytest.fixture(scope="module")
def found() -> Iterator[Findings]:
    with open_findings(RESULTS / "alpaca-babyllama-full") as read:
        yield read


def test_verdicts_stand_with_both_intervals_and_half_the_budget(found: Findings) -> None:
    """Of a committed study: the numbers are those that its verdicts and its assays rest on."""
    wanted = next(w for w in main_figures(found, looks_in(found)) if w.name == "differences")
    figure = drawn(wanted.draw())
    said, judged, assays = texts(figure), found.judged, found.assays
    between = [found.between((found.baseline, a.half), (found.baseline, a.budget)) for a in assays]
    assert len(judged) > 5 and len(assays) == 2
    for j in judged.values():
        assert j.interval and j.equivalence_interval and said.count(str(j.verdict)) >= 1
        for own in (j.interval, j.equivalence_interval):
            assert len(lines(figure, [own.low, own.high])) == 1
    assert [a.difference for a in assays] == between
    for assay in assays:
        wide, narrow = assay.difference, assay.shown
        assert wide and narrow and wide.mean == narrow.mean
        assert wide.mean == pytest.approx(np.mean([value for _, value in assay.by_seed]))
        for own in (wide, narrow):
            assert len(lines(figure, [own.low, own.high])) == 1
    labels = [[label.get_text() for label in ax.get_yticklabels()][-1] for ax in figure.axes]
    assert labels == ["half the budget"] * 2 and "Last, the yardstick" in wanted.caption
    assert not _RUN_ON.search(wanted.caption), wanted.caption
    assert 'data-arm="half the budget"' not in to_svg(figure)
    check_inside(figure)


def test_figures_fit_a_column_of_a_page(found: Findings) -> None:
    looks, beside = looks_in(found), Evidence(found.judged, found.differences, found.assays)
    narrow = paired_differences(found.arms, looks, found.baseline, found.margins, found.metric, beside, width=3.4)
    for figure in (drawn(narrow), drawn(loss_by_budget(found.runs, found.arms, looks, width=3.4))):
        check_inside(figure)
        assert figure.get_size_inches()[0] == 3.4
        (ax, *_) = figure.axes
        assert ax.get_position().width > 0.4  # of the column is for the data
        sizes = [text.get_fontsize() for text in (*ax.texts, *ax.get_yticklabels()) if text.get_text()]
        assert min(sizes) >= 6


def with_costs(found: Recovered) -> Recovered:
    planning: dict[str, dict[str, int]] = {name: {} for name in found.results[0]["divergence"]}
    planning[found.order()[0]] = {"short_run_tokens": 1600, "race_tokens": 400, "calibration_tokens": 20, "passes": 10}
    said = {**found.circumstances, "steps": 10, "batch_size": 2, "length": 10}
    return Recovered(said, [{**r, "planning": planning} for r in found.results])


def test_a_map_of_planted_truths_has_every_share_and_its_cost() -> None:
    found = with_costs(MIXED)
    figure = recovery_heat_map(found)
    (ax,) = figure.axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [*found.order(), "floor"]
    for name in names:
        for truth in found.shown:
            share = found.share(truth, name)
            assert (f"{share.mean:.2f}".replace("-", "−") if share else "diverged") in texts(figure)
    cells = [float(np.asarray(mesh.get_array()).ravel()[0]) for mesh in ax.findobj(QuadMesh)]  # type: ignore[attr-defined]
    assert len(cells) >= len(names) * (1 + len(found.shown)) and np.nanmax(np.abs(cells)) <= 1
    assert found.cost(found.order()[0]) == (1600 + 400 + 200) / 200 and found.cost("uniform") == 0
    assert found.cost("uniform-x1.25") == 0.25 and found.cost("uniform-x12") == 11
    assert texts(figure).count("11") == 1
    for caption in (recovery_map_caption(found), recovery_map_caption(PROVISIONAL)):
        assert not _RUN_ON.search(caption), caption
    assert "Cost: tokens" in recovery_map_caption(found)
    grey = {label.get_text() for label in ax.get_xticklabels() if label.get_color() != "black"}
    assert grey == set(found.shown) - set(found.counting)
    check_inside(figure)


def test_what_a_file_does_not_say_of_costs_is_not_drawn() -> None:
    for found in (MIXED, PROVISIONAL):
        assert found.cost(found.order()[0]) is None
        figure = recovery_heat_map(found)
        assert "cost of a plan" not in [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert "Cost" not in recovery_map_caption(found)
    assert to_svg(recovery_heat_map(MIXED)) == to_svg(recovery_heat_map(MIXED))


ROWS = (
    LadderRow("warm-up", "warm-up", 0.001, -0.003, 0.005, 8),
    LadderRow("LoRA+", "ratio", None),
    LadderRow("query and value alone, nothing else", "targets", 0.021, 0.015, 0.027, 8),
    LadderRow("three times the rate", "rate", 0.9, 0.7, 1.1, 8, note="2 of 8 diverged"),
    LadderRow("worst plan", "allocation", 0.024, 0.017, 0.031, 8),
    LadderRow("double the budget", "budget", -0.006, -0.010, -0.002, 8),
    LadderRow("single seeds", "seeds", 0.0, -0.012, 0.013, 8, kind="range"),
)
IN_ORDER = [
    "three times the rate", "worst plan", "query and value alone, nothing else", "single seeds", "double the budget",
    "warm-up", "LoRA+",
]  # fmt: skip


@pytest.mark.parametrize("width", [3.4, 7.2])
def test_the_ladder_is_sorted_by_size_and_lists_what_was_not_run(width: float) -> None:
    figure = drawn(ladder(ROWS, "uniform ranks", width=width))
    (ax,) = figure.axes
    assert [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()] == IN_ORDER
    for row in ROWS:
        at: list[Any] = [a for a in ax.get_lines() if list(a.get_ydata()) == [IN_ORDER.index(row.label)]]
        means = [(float(a.get_xdata()[0]), a.get_marker()) for a in at if a.get_marker() in "o<>"]
        if row.kind == "range" or not row.measured:
            assert means == []
        else:
            assert means == [(ax.get_xlim()[1], ">") if row.effect == 0.9 else (row.effect, "o")]
    assert texts(figure).count("not run") == 1
    check_inside(figure)
    caption = ladder_caption(ROWS, "uniform ranks", width=width)
    assert "Not run: LoRA+." in caption and "Arrows: beyond the axis." in caption and "ranges: single seeds." in caption
    assert not _RUN_ON.search(caption), caption


def test_a_ladder_says_no_more_than_it_has() -> None:
    assert ladder([LadderRow("LoRA+", "ratio", None)], "uniform") is None and ladder([], "uniform") is None
    caption = ladder_caption(ROWS[:1], "uniform")
    assert not any(word in caption for word in ("Not run", "Arrows", "range", "allocation"))
    first, second = (to_svg(drawn(ladder(rows, "uniform"))) for rows in (ROWS, ROWS[::-1]))
    assert first == second and "<image" not in first


def gain(mean: float) -> Interval:
    return Interval(mean, mean - 0.003, mean + 0.003, 8, 0.95, "seeds and records")


GAINS = {"hindsight": gain(0.004), "best of 8 random": gain(0.001), "published signal": None}
CELLS = (
    CeilingCell("Alpaca", "rank:1", GAINS, gain(0.016), gain(0.006), 0.004, "open: pays 0.004"),
    CeilingCell("Alpaca", "rank:2", {**GAINS, "hindsight": gain(0.0)}, gain(0.018), None, 0.0045, "closed"),
    CeilingCell("GSM8K", "rank:1", dict.fromkeys(GAINS)),
)


@pytest.mark.parametrize("width", [3.4, None])
def test_the_ceiling_has_a_panel_a_cell_with_yardsticks_and_verdicts(width: float | None) -> None:
    cells = CELLS if width is None else CELLS[:2]
    figure = drawn(ceiling(cells, width=width))
    assert [v for ax in figure.axes if (v := ax.get_title(loc="right"))] == ["open: pays 0.004", "closed"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [*GAINS, HALF, DOUBLE]
    for cell in cells:
        for value in (*cell.gains.values(), cell.half, cell.double):
            assert value is None or lines(figure, [value.low, value.high])
    # Two signals and a doubled budget, and each cell that was not run.
    assert texts(figure).count("not run") == (5 if width is None else 3)
    empty = [ax for ax in figure.axes if not ax.get_title(loc="right")]
    assert len(empty) == (2 if width is None else 0) and not any(ax.get_lines() for ax in empty)
    check_inside(figure)


def test_the_caption_of_the_ceiling_says_what_was_not_run() -> None:
    caption = ceiling_caption(CELLS)
    assert "95 % intervals over new seeds and records" in caption
    assert "Not run: GSM8K at rank:1." in caption and "Band: up to the threshold" in caption
    assert not _RUN_ON.search(caption), caption
    bare = ceiling_caption([replace(CELLS[0], threshold=None)])
    assert "Not run" not in bare and "Band" not in bare and not _RUN_ON.search(bare), bare
    assert ceiling(CELLS[2:]) is None


def test_the_ladder_of_a_study_is_sorted_by_what_its_arms_change() -> None:
    """Of the committed study of stability: scaling and training against the arm they vary, ranks against uniform."""
    with open_findings(RESULTS / "stability") as found:
        rows = {row.label: row for row in ladder_rows(found)}
        lora_plus = between(found.tables, ("uniform-lora-plus", "rank:2"), ("uniform", "rank:2"))
        scaled = between(found.tables, ("empirical-rslora", "rank:2"), ("empirical", "rank:2"))
    assert lora_plus is not None and rows["LoRA+ (B at 16 times the rate)"].effect == lora_plus.mean
    assert scaled is not None and rows["rslora scaling, on empirical"].effect == scaled.mean
    groups = {label: row.group for label, row in rows.items()}
    assert groups["empirical"] == "allocation" and groups["a warm-up of 20 %"] == "warm-up"
    assert not rows["half the budget"].measured and rows["another seed"].kind == "range"
    with open_findings(RESULTS / "gsm8k-stories260k") as found:
        assert ladder_rows(found) == [] and ceiling_cells(found) == []  # allocations alone, and no ceiling locked
