"""Ceilings of several studies side by side: what the best ranks gain, by model, task and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adaptive_lora.reporting.figures.axes import reach
from adaptive_lora.reporting.figures.ceiling import mark_interval
from adaptive_lora.reporting.figures.theme import COLOURS, MARKERS, themed
from adaptive_lora.stats.ceiling import Ceiling

_ROW, _WIDTH = 0.115, 6.5
"""Inches of an arm's line, and of the figure."""
_APART = 0.8
"""Lines between two budgets."""
_COLUMN = 40
"""Lines that one column holds, before studies stand in two."""

_Study = tuple[str, Sequence[Ceiling]]


def several_ceilings(studies: Mapping[str, Sequence[Ceiling]], unit: str = "nats per token") -> Figure | None:
    """Every study's budgets from top to bottom, each with the gains of the arms that stand for the best.

    Lines are the intervals of the locked rule, bands reach to its threshold, and the verdict stands at the right. Many
    studies stand in two columns, each with an axis of its own. None without any budget.
    """
    shown = [(label, cells) for label, cells in studies.items() if cells]
    if not shown:
        return None
    arms = list(dict.fromkeys(own.arm for _, cells in shown for cell in cells for own in cell.arms))
    columns = _columns(shown)
    lines = max(sum(map(_lines, column)) for column in columns)
    with themed():
        figure = Figure(figsize=(_WIDTH, 0.9 + _ROW * lines), layout="constrained")
        for ax, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
            ax.set(xlim=_limits(column), ylim=(lines, 0))
            _column(ax, column, arms)
            ax.set_xlabel(f"gain over uniform, {unit} (right: better)", fontsize=8)
        figure.legend(handles=_keys(arms), loc="outside upper left", ncols=3 if len(columns) > 1 else 4, fontsize=8)
    return figure


def _lines(study: _Study) -> float:
    """Its heading, and every budget's arms."""
    return 1.8 + sum(len(cell.arms) + _APART for cell in study[1])


def _columns(studies: Sequence[_Study]) -> list[Sequence[_Study]]:
    """One, or the two nearest to equal heights."""
    if sum(map(_lines, studies)) <= _COLUMN or len(studies) == 1:
        return [studies]
    cut = min(
        range(1, len(studies)), key=lambda at: max(sum(map(_lines, studies[:at])), sum(map(_lines, studies[at:])))
    )
    return [studies[:cut], studies[cut:]]


def _limits(column: Sequence[_Study]) -> tuple[float, float]:
    cells = [cell for _, own in column for cell in own]
    ends = [[v for v in (own.gain.mean, own.gain.low, own.gain.high) if v is not None]
            for cell in cells for own in cell.arms]  # fmt: skip
    return reach([*ends, *([cell.threshold] for cell in cells)], room=0.04)


def _column(ax: Axes, column: Sequence[_Study], arms: Sequence[str]) -> None:
    ax.axvline(0, color="black", lw=0.8, zorder=1)
    top, middles, budgets = 0.0, list[float](), list[str]()
    for label, cells in column:
        ax.text(0.01, top + 0.9, label, transform=ax.get_yaxis_transform(), fontsize=8, va="center", style="italic",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        top += 1.8
        for cell in cells:
            middles.append(top + len(cell.arms) / 2)
            budgets.append(cell.budget)
            _cell(ax, cell, arms, top)
            top += len(cell.arms) + _APART
        ax.axhline(top - _APART / 2, color="#dddddd", lw=0.5, zorder=0)
    ax.set_yticks(middles, budgets, fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)


def _cell(ax: Axes, cell: Ceiling, arms: Sequence[str], top: float) -> None:
    middle = top + len(cell.arms) / 2
    ax.barh(middle, cell.threshold, len(cell.arms), color="#999999", alpha=0.25, lw=0, zorder=0)
    ax.text(1.01, middle, str(cell.verdict), transform=ax.get_yaxis_transform(), fontsize=8, fontweight="bold",
            va="center")  # fmt: skip
    for line, own in enumerate(sorted(cell.arms, key=lambda own: arms.index(own.arm))):
        mark_interval(ax, top + line + 0.5, own.gain, *_look(arms.index(own.arm)))


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of an arm."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _keys(arms: Sequence[str]) -> list[Line2D | Patch]:
    looks = [(arm, *_look(number)) for number, arm in enumerate(arms)]
    marks = [Line2D([], [], color=c, marker=m, ms=4.5, lw=1.5, label=arm) for arm, c, m in looks]
    return [*marks, Patch(facecolor="#999999", alpha=0.25, lw=0, label="up to a quarter of what half costs")]
