"""The figures of a paper: those of the report that fit a page, and rates at the study's own budgets alone."""

from __future__ import annotations

from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.all import looks_in, main_figures
from adaptive_lora.reporting.figures.break_map import break_map
from adaptive_lora.reporting.figures.rates import rate_curves
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.variants import variants_of


def pictures(found: Findings) -> dict[str, tuple[Figure, str]]:
    """Name -> figure and caption; none that rests on whole curves, of which an export has every tenth step."""
    looks, budgets = looks_in(found), found.facts["spec"]["budgets"]
    made = {w.name: (figure, w.caption) for w in main_figures(found, looks) if (figure := w.draw())}
    runs = found.runs[found.runs["budget"].isin(budgets)]
    chosen = {(arm, budget): float(rate) for arm, budget, rate in found.facts.get("chosen_rates", [])}
    if (figure := rate_curves(runs, looks, chosen)) is not None:
        made["rates"] = (
            figure,
            (
                "Mean validation loss over tuning seeds against learning rate. Bars: range over seeds; ring: the rate "
                "chosen; cross at the top edge: diverged with some seed, and so no candidate. Arms are moved apart."
            ),
        )
    steady, margin = found.stability[found.stability["budget"].isin(budgets)], found.analysis["margin"]
    if (figure := break_map(steady, found.baseline, margin, chosen)) is not None:
        made["stability"] = figure, render("captions.stability_map", found.baseline, margin)
    return made


def beside_pictures(found: Findings) -> dict[str, tuple[Figure, str]]:
    """What a study beside another one shows: how training goes, if that was its question, or differences."""
    wanted = "stability" if variants_of(found.facts["spec"]) else "differences"
    return {name: made for name, made in pictures(found).items() if name == wanted}
