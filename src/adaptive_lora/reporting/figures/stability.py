"""How calmly arms train: divergence, clipping and gradient norms over learning rates."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.axes import plain_log, rate_axis, short
from adaptive_lora.reporting.figures.looks import CROWD, Looks, diverged_cross, join, legend, legend_height
from adaptive_lora.reporting.figures.theme import mark, themed

_MEASURES = {
    "excess": "validation loss minus\nthe baseline's, nats per token",
    "clipped": "share of clipped steps",
    "gradient_norm": "gradient norm\n(median of a run)",
}


def stability(table: pd.DataFrame, looks: Looks) -> Figure | None:
    """Over learning rates, mean and range over runs: excess loss, share of clipped steps, median gradient norm (log).

    `table` has a row a run: arm, budget, scaling, learning_rate, seed, phase, diverged, spikes, gradient_norm,
    clipped (a share), excess (validation loss minus the baseline's at the same rate, budget and seed). One column
    of panels a budget, and a scaling where there are several; where one arm trained alone there is nothing to
    compare and no panel, unless that is so everywhere. A cross at the top edge is a rate at which some run diverged;
    its mean is over the others. Nothing where there are no runs.
    """
    table = table[table["arm"].isin(list(looks))]
    names = [arm for arm in looks if (table["arm"] == arm).any()]
    if not names:
        return None
    settings = compared_settings(table)
    scalings = table["scaling"].nunique() > 1
    with themed():
        # Many arms need the whole width for their points to stand beside each other.
        stacked = len(names) > CROWD
        size = (10.4, 6.4 * len(settings)) if stacked else (1.8 + 3.2 * len(settings), 6.6)
        figure = Figure(figsize=(size[0], max(size[1], legend_height(len(names)))), layout="constrained")
        if stacked:
            panels = list(figure.subplots(3 * len(settings), 1, squeeze=False).reshape(len(settings), 3))
        else:
            panels = list(figure.subplots(3, len(settings), squeeze=False, sharex="col", sharey="row").T)
        for column, (budget, scaling) in zip(panels, settings, strict=True):
            own = table[(table["budget"] == budget) & (table["scaling"] == scaling)]
            for ax, measure in zip(column, _MEASURES, strict=True):
                _panel(ax, own, measure, looks)
            column[0].set_title(f"{budget}, {scaling}" if scalings else budget)
            column[-1].set_xlabel("learning rate")
        for column in panels if stacked else panels[:1]:
            for ax, (measure, label) in zip(column, _MEASURES.items(), strict=True):
                ax.set_ylabel(label)
                if measure == "gradient_norm" and (table[measure] > 0).any():
                    plain_log(ax.yaxis)
        legend(figure, looks, names)
    return figure


def compared_settings(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(budget, scaling) at which several arms trained; all where they did so nowhere."""
    arms = table.groupby(["budget", "scaling"], sort=False)["arm"].nunique()
    return [(str(budget), str(scaling)) for budget, scaling in arms.index[(arms > 1) | (arms.max() == 1)]]


def _panel(ax: Axes, own: pd.DataFrame, measure: str, looks: Looks) -> None:
    names = [arm for arm in looks if (own["arm"] == arm).any()]
    shifts = rate_axis(ax, own["learning_rate"].tolist(), len(names))
    if measure == "excess":
        ax.margins(y=0.15)  # crosses stand above the data
        ax.axhline(0, color="black", lw=0.8)
    for arm, shift in zip(names, shifts, strict=True):
        _arm(ax, own[own["arm"] == arm], measure, looks, shift, len(names))
    if measure == "clipped":
        ax.set_ylim(-0.04, 1.04)


def _arm(ax: Axes, own: pd.DataFrame, measure: str, looks: Looks, shift: float, crowd: int) -> None:
    arm = str(own["arm"].iloc[0])
    look, xs, ys = looks[arm], list[float](), list[float]()
    for rate in sorted(set(own["learning_rate"].astype(float))):
        runs = own[own["learning_rate"] == rate]
        x, values = rate * shift, runs.loc[~runs["diverged"].astype(bool), measure].dropna().astype(float)
        if measure == "excess" and (diverged := int(runs["diverged"].sum())):
            diverged_cross(ax, x, arm, look, f"{arm}, rate {short(rate)}: {diverged} of {len(runs)} runs diverged")
        xs.append(x)
        ys.append(float(values.mean()) if len(values) else float("nan"))
        if values.empty:
            continue
        mark(ax.plot([x, x], [values.min(), values.max()], color=look.colour, lw=1.3)[0], arm)
        title = f"{arm}, rate {short(rate)}: mean {ys[-1]:.4g} of {len(values)}"
        mark(ax.plot(x, ys[-1], **look.marked(4.5), zorder=4)[0], arm, title)
    join(ax, xs, ys, arm, looks, crowd)
