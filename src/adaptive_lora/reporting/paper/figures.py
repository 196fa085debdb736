"""The figures of a paper: those of the report that fit a page, and rates at the study's own budgets alone."""

from __future__ import annotations

from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.all import looks_in, main_figures, rates_caption
from adaptive_lora.reporting.figures.break_map import break_map
from adaptive_lora.reporting.figures.rates import rate_curves
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.templating import render


def study_figures(found: Findings) -> dict[str, tuple[Figure, str]]:
    """Name -> figure and caption; none that rests on whole curves, of which an export has every tenth step."""
    looks, budgets, alpha = looks_in(found), found.facts["spec"]["budgets"], found.analysis["alpha"]
    runs, steady = (table[table["budget"].isin(budgets)] for table in (found.runs, found.stability))
    chosen = {(arm, budget): float(rate) for arm, budget, rate in found.facts.get("chosen_rates", [])}
    drawn = {wanted.name: (wanted.draw(), wanted.caption) for wanted in main_figures(found, looks)}
    drawn["rates"] = rate_curves(runs, looks, chosen), rates_caption(runs)
    caption = render("captions.stability_map", alpha)
    drawn["stability"] = break_map(steady, found.baseline, alpha, chosen), caption
    return {name: (figure, caption) for name, (figure, caption) in drawn.items() if figure is not None}
