"""Recovered ranks told: shares worked by hand, files that are no comparison, what the table and the figure say."""

from __future__ import annotations

import copy
import csv
import io
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.figures.recovery import recovery_figure
from adaptive_lora.reporting.figures.theme import COLOURS, settle, themed
from adaptive_lora.reporting.recovered import Recovered, read_recovered, recovery_table
from adaptive_lora.reporting.tables import to_csv, to_latex, to_markdown
from adaptive_lora.stats.estimators import mean_interval
from tests.fresh import NEVER_ASKED, READING, fresh

SCRIPT = Path(__file__).parents[2] / "bench" / "recovery_figure.py"
GREY = "#8c8c8c"
SHARES = {
    "uniform": 0.0, "even": 0.0, "random": 0.2, "half": 0.5, "inverted": -0.4, "right": 1.0,
    "oracle": 1.0, "floor": 0.9,
}  # fmt: skip
"""Of a gain, on every truth and seed unless told otherwise; in another order than the table's."""
CLEAR, VAGUE = (0.50, 0.52, 0.48), (0.50, 0.01, 0.90)
"""Gains of the oracle by seed: one that counts, and one that does not."""


def result(truth: str, seed: int, gain: float, **others: float) -> dict[str, Any]:
    """Divergences from 1 down; planning takes ten times the share plus the seed."""
    shares = SHARES | others
    return {
        "truth": truth, "seed": seed,
        "divergence": {name: 1.0 - share * gain for name, share in shares.items()},
        "correlation": dict.fromkeys(shares),
        "plan_seconds": {n: 10 * abs(s) + seed for n, s in shares.items() if n not in ("oracle", "floor")},
    }  # fmt: skip


def over(truth: str, gains: Sequence[float], **others: float) -> list[dict[str, Any]]:
    return [result(truth, seed, gain, **others) for seed, gain in enumerate(gains, 1)]


def flat(*uneven: float) -> list[dict[str, Any]]:
    """The uniform truth, where `half` loses so much."""
    found = [result("uniform", seed, 0.0) for seed in range(1, len(uneven) + 1)]
    for own, worse in zip(found, uneven, strict=True):
        own["divergence"]["half"] += worse
    return found


MIXED = Recovered(
    {"model": "tiny"},
    [*over("growing", CLEAR), *over("two-blocks", VAGUE), *over("last-mlp", CLEAR), *over("few-modules", CLEAR[:2]),
     *flat(0.1, 0.05, 0.15)],
)  # fmt: skip
"""`few-modules` lacks a seed."""
PROVISIONAL = Recovered({}, [*over("two-blocks", VAGUE), *over("few-modules", VAGUE[:2])])


def written_to(path: Path, held: Any) -> Path:
    path.write_text(held if isinstance(held, str) else json.dumps(held))
    return path


def held_of(found: Recovered) -> dict[str, Any]:
    return {"circumstances": dict(found.circumstances), "results": copy.deepcopy(list(found.results))}


def test_which_truths_count_and_what_means_are_over() -> None:
    assert MIXED.shown == ("two-blocks", "last-mlp", "few-modules", "growing")
    assert MIXED.counting == ("last-mlp", "few-modules", "growing")
    assert (MIXED.concentrated, MIXED.provisional, MIXED.seeds) == (("last-mlp", "few-modules"), False, (1, 2))
    assert PROVISIONAL.counting == ()
    assert (PROVISIONAL.concentrated, PROVISIONAL.provisional) == (("two-blocks", "few-modules"), True)
    other = Recovered({}, [*over("growing", CLEAR), *over("two-blocks", VAGUE)])  # one counts that is not concentrated
    assert (other.counting, other.concentrated, other.provisional) == (("growing",), ("two-blocks",), True)


@pytest.mark.parametrize("found", [MIXED, PROVISIONAL])
def test_what_equals_the_oracle_has_share_one_and_what_equals_uniform_none(found: Recovered) -> None:
    for name, share in SHARES.items():
        whole = found.concentrated_share(name)
        assert whole is not None and (whole.mean, whole.n) == (pytest.approx(share), 2)
        for truth in found.shown:
            own = found.share(truth, name)
            assert own is not None and own.n == found.truths[truth]["seeds"]
            assert (own.mean, own.low, own.high) == pytest.approx((share,) * 3)
    assert found.order() == ["right", "half", "even", "random", "inverted"]  # chance last, whatever it recovers


def test_the_concentrated_share_is_the_mean_over_truths_on_the_seeds_that_have_them_all() -> None:
    first, second = [0.8, 0.4, 0.0], [0.2, 0.8]
    results = [
        *(result("last-mlp", seed, 0.5, half=share) for seed, share in enumerate(first, 1)),
        *(result("few-modules", seed, 0.2, half=share) for seed, share in enumerate(second, 1)),
    ]
    found = Recovered({}, results)
    both, expected = found.concentrated_share("half"), mean_interval([0.5, 0.6])  # (.8 + .2) / 2 and (.4 + .8) / 2
    assert both is not None and both.n == 2
    assert (both.mean, both.low, both.high) == pytest.approx((expected.mean, expected.low, expected.high))
    own = found.share("last-mlp", "half")
    assert own is not None and own.mean == pytest.approx(0.4)
    apart = Recovered({}, [result("last-mlp", 1, 0.5), result("few-modules", 2, 0.5)])
    assert apart.seeds == () and apart.concentrated_share("half") is None
    assert apart.order() == ["even", "half", "right", "random", "inverted"]  # as in the file


def test_the_excess_is_in_units_of_the_median_gain_of_all_concentrated_truths() -> None:
    median = float(np.median([np.mean(VAGUE), 0.5, 0.51]))
    excess, even = MIXED.excess("half"), MIXED.excess("even")
    assert excess is not None and excess.mean == pytest.approx(0.1 / median)
    assert even is not None and (even.mean, even.low, even.high) == (0, 0, 0)
    assert PROVISIONAL.excess("half") is None


def test_a_student_that_diverged_leaves_its_cells_empty(tmp_path: Path) -> None:
    held = held_of(MIXED)
    torn = next(r for r in held["results"] if r["truth"] == "last-mlp")
    torn["divergence"]["half"] = float("nan")
    found = read_recovered(written_to(tmp_path / "a.json", held))
    assert found.share("last-mlp", "half") is found.concentrated_share("half") is None
    assert found.share("few-modules", "half") is not None and found.concentrated_share("right") is not None
    assert found.order() == ["right", "even", "half", "random", "inverted"]
    assert "| half |  | " in to_markdown(recovery_table(found))
    recovery_figure(found)


def test_shares_are_made_anew_whatever_the_file_says_of_them(tmp_path: Path) -> None:
    held = held_of(MIXED) | {"truths": {"last-mlp": {"counts": False}}, "best_strategy": "random"}
    found = read_recovered(written_to(tmp_path / "a.json", held))
    assert (found.truths, found.circumstances) == (MIXED.truths, {"model": "tiny"})


Change = Callable[[dict[str, Any]], Any]


def without(*keys: str | int) -> Change:
    def change(held: Any) -> Any:
        place = held
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        return held

    return change


def with_value(value: Any, *keys: str | int) -> Change:
    def change(held: Any) -> Any:
        place = held
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return held

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: json.dumps(held)[:-20], "Invalid JSON: EOF"),
        (lambda held: "[" * 100_000, "Invalid JSON: recursion"),
        (lambda held: [held], "should be an object"),
        (without("circumstances"), "circumstances Field required"),
        (with_value({}, "results"), "results Input should be a valid array"),
        (with_value([1], "results"), r"results\.0 Input should be an object"),
        (without("results", 4, "divergence"), r"results\.4\.divergence Field required"),
        (without("results", 4, "plan_seconds"), r"results\.4\.plan_seconds Field required"),
        (without("results", 4, "divergence", "oracle"), r"results\.4 lacks a divergence or correlation of one of"),
        (without("results", 4, "divergence", "floor"), r"results\.4 lacks a divergence or correlation of one of"),
        (with_value(float("nan"), "results", 4, "divergence", "oracle"), r"results\.4 has no finite divergence"),
        (
            with_value("0.5", "results", 4, "divergence", "half"),
            r"results\.4\.divergence\.half Input should be a valid n",
        ),
        (
            with_value(True, "results", 4, "divergence", "half"),
            r"results\.4\.divergence\.half Input should be a valid n",
        ),
        (without("results", 4, "correlation", "half"), r"results\.4 lacks a divergence or correlation of one of"),
        (with_value("x", "results", 4, "correlation", "half"), r"results\.4\.correlation\.half Input should be"),
        (with_value(None, "results", 4, "plan_seconds", "half"), r"results\.4\.plan_seconds\.half Input should be"),
        (without("results", 4, "divergence", "half"), r"results\.4 lacks a divergence or correlation of one of"),
        (
            with_value(0.5, "results", 4, "divergence", "more"),
            r"results\.4 lacks a divergence or correlation of one of",
        ),
        (with_value(1, "results", 1, "seed"), "growing with seed 1 more than once"),
        (with_value([], "results"), "no concentrated truth, but no result at all"),
        (with_value(over("growing", CLEAR) + flat(0.1), "results"), "no concentrated truth, but growing and uniform"),
    ],
)
def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    path = written_to(tmp_path / "a.json", change(held_of(MIXED)))
    with pytest.raises(PaperError, match=said) as caught:
        read_recovered(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as a comparison on planted models: ")
    assert message.endswith("with at least one of last-mlp, two-blocks and few-modules in --truths.")


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PaperError, match=r"a\.json cannot be read .*: No such file or directory\. Make one with"):
        read_recovered(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PaperError, match="codec can't decode"):
        read_recovered(tmp_path / "b.json")


def test_the_table_has_every_strategy_controls_last_and_the_floor() -> None:
    table = recovery_table(MIXED)
    assert (table.name, table.title) == ("recovery", "Recovery of planted ranks on tiny")
    head, *rows = csv.reader(io.StringIO(to_csv(table)))
    ends = ("", "_low", "_high")
    figures = ("concentrated", "two_blocks", "last_mlp", "few_modules", "growing", "excess")
    assert head == ["strategy", *(f"{name}{end}" for name in figures for end in ends), "plan_seconds"]
    assert [row[0] for row in rows] == ["right", "half", "even", "random", "inverted", "floor"]
    assert [row.marked for row in table.rows] == [False] * 3 + [True] * 3
    half = dict(zip(head, rows[1], strict=True))
    assert [float(half[f"concentrated{end}"]) for end in ends] == pytest.approx([0.5] * 3)
    excess = mean_interval(np.array([0.1, 0.05, 0.15]) / 0.5)
    assert [float(half[f"excess{end}"]) for end in ends] == pytest.approx([excess.mean, excess.low, excess.high])
    assert float(half["plan_seconds"]) == 7.0  # five and the middle seed
    assert rows[-1][-1] == "" and float(rows[-1][1]) == pytest.approx(0.9)


def test_the_table_says_what_counts_and_what_figures_mean() -> None:
    text = to_markdown(recovery_table(MIXED))
    assert text.splitlines()[0] == (
        "| strategy | concentrated | two-blocks, does not count | last-mlp | few-modules | growing | "
        "uniform truth: excess | planning, s |"
    )
    assert "| half | 0.50 \\[0.50, 0.50\\] | " in text and "| 7.0 |\n" in text
    for part in (
        "0 is uniform, 1 the oracle, which trains at the planted ranks themselves; floor is",
        "the mean over last-mlp and few-modules, over the 2 seeds that have them all.",
        "Excess: by how much",
        "exceeds 5 standard errors over seeds: in nats per token last-mlp (0.5000 ± 0.0115), few-modules (0.5100 ± "
        "0.0100) and growing (0.5000 ± 0.0115) count; two-blocks (0.4700 ± 0.2574) does not.",
        "Seeds: two-blocks 3, last-mlp 3, few-modules 2, growing 3, uniform 3.",
        "Planning: median seconds.",
        "Controls, which spend rank without a reason: random and inverted.",
    ):
        assert part in text, part
    assert "provisional" not in text
    assert "\\label{tab:recovery}" in to_latex(recovery_table(MIXED))


def test_a_provisional_table_says_so_and_has_no_column_of_nothing() -> None:
    alone = Recovered({}, [{**result("last-mlp", 1, 0.5), "plan_seconds": {}}])
    text = to_markdown(recovery_table(alone))
    assert text.startswith("| strategy | concentrated, provisional | last-mlp, does not count |\n")
    assert "| half | 0.50 | 0.50 |" in text  # one seed has no interval
    assert "the mean over last-mlp, over the 1 seed that has it." in text
    assert "last-mlp (0.5000, one seed) does not. No concentrated truth counts" in text
    assert "1 seed a truth." in text and "Excess" not in text and "Planning" not in text
    assert recovery_table(alone).title == "Recovery of planted ranks"


def lines(ax: Axes) -> dict[str, Line2D]:
    """By label, of what the legend names."""
    return dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # type: ignore[arg-type]


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_figure_marks_truths_that_do_not_count() -> None:
    figure = recovery_figure(MIXED)
    left, right = figure.axes
    assert figure.get_figwidth() == 7.2
    assert legend_of(figure) == [
        "mean of the concentrated truths that count,\n95 % interval over seeds",
        "two-blocks (does not count)", "last-mlp", "few-modules", "growing",
    ]  # fmt: skip
    drawn = lines(left)
    truths = [line for label, line in drawn.items() if not label.startswith("mean")]
    assert truths[0].get_markeredgecolor() == GREY
    assert all(line.get_markeredgecolor() in COLOURS[1:] for line in truths[1:])
    assert {line.get_markerfacecolor() for line in truths} == {"none"}
    assert len({line.get_marker() for line in truths}) == 4
    rows = [label.get_text() for label in left.get_yticklabels()]
    assert rows == ["right", "half", "even", "random", "inverted"]
    assert np.asarray(drawn["last-mlp"].get_xdata()) == pytest.approx([SHARES[name] for name in rows])
    colours = [label.get_color() for label in left.get_yticklabels()]
    assert colours[3:] == [GREY, GREY] and GREY not in colours[:3]
    assert {text.get_text() for text in left.texts} == {"uniform", "oracle", "floor"}
    dots = [line for line in right.get_lines() if line.get_marker() == "o"]
    assert [float(np.asarray(dot.get_xdata()).item()) for dot in dots] == pytest.approx([0, 0.2, 0, 0, 0])


def test_a_provisional_figure_says_so() -> None:
    figure = recovery_figure(PROVISIONAL)
    left, right = figure.axes
    assert legend_of(figure) == [
        "mean of the concentrated truths (provisional),\n95 % interval over seeds",
        "two-blocks (does not count)", "few-modules (does not count)",
    ]  # fmt: skip
    truths = [line for label, line in lines(left).items() if not label.startswith("mean")]
    assert {line.get_markeredgecolor() for line in truths} == {GREY}
    assert [text.get_text() for text in right.texts] == ["not measured"]
    assert [label.get_text() for label in left.get_yticklabels()][:1] == ["right"]


def test_means_beyond_the_limits_are_arrows_at_the_edge() -> None:
    far = Recovered({}, [*over("last-mlp", CLEAR, half=-9.0, right=7.0), *flat(5.0, 5.5, 6.0)])
    left, right = recovery_figure(far).axes
    arrows = {str(line.get_marker()): line for line in left.get_lines() if line.get_marker() in ("<", ">")}
    assert [float(np.asarray(arrows[m].get_xdata()).item()) for m in ("<", ">")] == [-1.5, 1.5]
    assert np.isnan(np.asarray(lines(left)["last-mlp"].get_xdata(), dtype=float)).sum() == 2
    assert [line.get_marker() for line in right.get_lines()].count(">") == 1
    assert left.get_xlim()[0] > -1.7 and right.get_xlim()[1] < 3.2


ALL = ("last-mlp", "two-blocks", "few-modules", "attention-only", "mlp-only", "growing", "real")
CROWDED = Recovered({}, [r for truth in ALL for r in over(truth, VAGUE)] + flat(0.1, 0.2))
LONELY = Recovered({}, [result("last-mlp", 1, 0.5), result("uniform", 1, 0.0)])  # an excess of 0 and no interval
CLOSE = Recovered({}, over("last-mlp", CLEAR, floor=0.99))  # the names of two lines at one place


@pytest.mark.parametrize("found", [MIXED, PROVISIONAL, CROWDED, LONELY, CLOSE])
def test_nothing_is_cut_and_no_name_lies_upon_another(found: Recovered) -> None:
    figure = recovery_figure(found)
    settle(figure)
    with themed():
        figure.set_dpi(300)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = figure.bbox.size
        (legend,) = figure.legends
        texts = [t for ax in figure.axes for t in (*ax.texts, ax.xaxis.label)]
        texts += [*figure.axes[0].get_yticklabels(), *legend.get_texts()]
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :]), texts[place].get_text()


def test_the_script_draws_beside_the_file_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written_to(tmp_path / "found.json", held_of(MIXED))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.strip() == to_markdown(recovery_table(MIXED)).strip()
    assert {p.name for p in tmp_path.iterdir()} == {
        "found.json", "found.svg", "found.png", "found-map.svg",
    }  # fmt: skip
    path.write_text("{")
    with pytest.raises(SystemExit, match="cannot be read as a comparison"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_it_needs_no_torch() -> None:
    code = "import adaptive_lora.reporting.recovered, adaptive_lora.reporting.figures.recovery\n"
    done = fresh(READING).run(code + NEVER_ASKED)
    assert done.returncode == 0, done.stderr
