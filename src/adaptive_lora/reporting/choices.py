"""What choices change at equal parameters, as rows and cells to be drawn: the ladder and the ceiling of a study.

A choice is an arm, and what kind of choice it is follows from how the study file makes it: modules left out are a
choice of targets, a training or scaling of its own is that, everything else with uneven ranks is allocation. The
baseline at half and at double the budget, and the spread of its seeds, stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptive_lora.planning.budget_text import doubled, halved
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.reporting.figures.ceiling import CeilingCell
from adaptive_lora.reporting.figures.ladder import LadderRow
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.paper.study_facts import short_name
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.ceiling import Ceiling, ceilings
from adaptive_lora.stats.crossed import Crossed, crossed
from adaptive_lora.stats.differences import between
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.evidence import Cell
from adaptive_lora.stats.variants import Variant, variants_of

ALLOCATION, TARGETS, BUDGET, SEEDS = "allocation", "targets", "budget", "seeds"
_GROUPS = {"scaling": "scaling", "warmup": "warm-up", "b": "LoRA+", "clip": "clipping", "longer": "length"}


def ceilings_of(found: Findings) -> Sequence[Ceiling]:
    """By the arms that the study locked as its ceiling; none where it names none."""
    arms = found.analysis.get("ceiling", [])
    halves = [(budget, half) for budget in found.facts["spec"]["budgets"] if (half := halved(budget)) is not None]
    return ceilings(found.tables, found.baseline, arms, halves, found.analysis["alpha"]) if arms else []


def ceiling_cells(found: Findings) -> list[CeilingCell]:
    """One a budget of a study that locked a ceiling: its arms first, then the study's others."""
    known, level = {own.budget: own for own in ceilings_of(found)}, 1 - 2 * found.analysis["alpha"]
    if not known:
        return []
    arms = [*found.analysis["ceiling"], *(a for a in found.contenders if a not in found.analysis["ceiling"])]
    cells = []
    for budget in found.facts["spec"]["budgets"]:
        whole, own, twice = (found.baseline, budget), known.get(budget), doubled(budget)
        gains = {arm: _gain(found, whole, (arm, budget), level) for arm in arms}
        double = None if twice is None else _gain(found, whole, (found.baseline, twice), level)
        task = f"{short_name(found.facts['model']['name'])}, {short_name(found.facts['data']['source'])}"
        if own is None:
            cells.append(CeilingCell(task, budget, gains, double=double))
            continue
        cells.append(CeilingCell(task, budget, gains, own.cost_of_half, double, own.threshold, str(own.verdict)))
    return cells


def ladder_rows(found: Findings) -> list[LadderRow]:
    """At the first budget; empty where the study's arms are allocations alone, which is no ladder."""
    budget, variants = found.facts["spec"]["budgets"][0], variants_of(found.facts["spec"])
    arms = {arm["name"]: arm for arm in found.facts["spec"]["arms"] if arm["name"] != found.baseline}
    groups = {name: _group(arm, variants.get(name)) for name, arm in arms.items()}
    if set(groups.values()) <= {ALLOCATION}:
        return []
    rows = [_of_arm(found, budget, arm, groups[name], variants.get(name)) for name, arm in arms.items()]
    return [*rows, *_budgets(found, budget), *_seeds(found, budget)]


def _group(arm: Mapping[str, Any], variant: Variant | None) -> str:
    if variant is not None:
        name = variant.differences[0][0] if variant.differences else ""
        return _GROUPS.get(name, "rate")
    strategy = STRATEGIES.get(str(arm.get("strategy")))
    return TARGETS if strategy is not None and strategy.leaves_out else ALLOCATION


def _of_arm(found: Findings, budget: str, arm: Mapping[str, Any], group: str, variant: Variant | None) -> LadderRow:
    """Against the plain arm that it varies, or the baseline."""
    name = str(arm["name"])
    plain, label = found.baseline, name
    if variant is not None and variant.differences:
        plain, label = variant.of, _changed(arm, variant)
        label += "" if plain == found.baseline else f", on {plain}"
    seen = between(found.tables, (name, budget), (plain, budget))
    return _row(label, group, seen)


def _changed(arm: Mapping[str, Any], variant: Variant) -> str:
    """What a variant changes; one factor for all modules is a rate."""
    factors = set((((arm.get("train") or {}).get("multipliers") or {}).get("modules") or {}).values())
    if [setting for setting, _ in variant.differences] == ["modules"] and len(factors) == 1:
        return f"{factors.pop():.2g} times the learning rate"
    return render("stability.differences", variant)


def _budgets(found: Findings, budget: str) -> Iterator[LadderRow]:
    for words, other in (("half the budget", halved(budget)), ("double the budget", doubled(budget))):
        if other is not None:
            yield _row(words, BUDGET, between(found.tables, (found.baseline, other), (found.baseline, budget)))


def _seeds(found: Findings, budget: str) -> Iterator[LadderRow]:
    """How far single seeds of the baseline lie from their mean."""
    runs = found.tables.of((found.baseline, budget))
    values = [float(v) for v in runs[runs["status"] == "completed"][_column(found)].dropna()]
    if len(values) > 1:
        mean = sum(values) / len(values)
        ends = min(values) - mean, max(values) - mean
        yield LadderRow("another seed", SEEDS, 0.0, *ends, n=len(values), kind="range")


def _column(found: Findings) -> str:
    return "test_loss" if found.metric.is_loss else found.metric.column


def _row(label: str, group: str, seen: Crossed | None) -> LadderRow:
    if seen is None:
        return LadderRow(label, group, None)
    interval = seen.interval(0.95)
    return LadderRow(label, group, interval.mean, interval.low, interval.high, n=interval.n)


def _gain(found: Findings, baseline: Cell, other: Cell, level: float) -> Interval | None:
    """Positive is better, whatever the metric."""
    table = found.tables.paired(baseline, other)
    return None if table is None else crossed(table).interval(level)
