"""What a study decides, and the controls that let the decision be trusted.

**Primary comparisons** are the hypotheses: an arm against the baseline at a budget, one family over all budgets.
Everything else is exploratory. **Controls** check the study itself:

- `random` and `shuffled`: a plan without a reason, and one with the reason taken out of it;
- `own-shuffled`, in place of `shuffled`: that for every hypothesis that measures, so that its difference can be told
  apart into what uneven ranks cost and what it is worth to know where they go (`stats.decomposition`);
- `twin`: the baseline once more in the same bank, which must come out bit-equal;
- `half` and `double`: the baseline at half and at twice the budget. What half costs is the measure of the margin;
  where it is not shown to be worse, the task cannot tell ranks apart;
- `compute`: beside every arm that trains before it has a plan, the baseline trained for as many updates in all;
- `unclipped`, only by name: the baseline without clipping of gradients, which at the rates that are best may shorten
  every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_lora.errors import nearest_hint
from adaptive_lora.planning.budget_text import doubled, halved, parse_budget
from adaptive_lora.planning.strategies import StrategyOptions, check_options, find_strategy
from adaptive_lora.planning.strategies.transforms import why_no_source
from adaptive_lora.stats.metrics import POINTS, metric_of
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.study.schema import ArmPart, StudySpec
from adaptive_lora.study.schema_training import ArmTrainPart
from adaptive_lora.study.settings import steps_of
from adaptive_lora.study.yaml import Location

MOST_PRIMARY = 10
"""More hypotheses than this are no hypotheses."""
HALF_BUDGET = "half-budget"
"""`analysis.margin` of a study that measures it."""
LEAST_POINTS = 0.1
"""The smallest margin in percentage points: one record in a thousand."""


def control_arms(spec: StudySpec, budget: str | None = None) -> tuple[ArmPart, ...]:
    """The controls that are arms, on a budget or on any, but for those that are arms of the study already.

    Nothing is shuffled where the least rank is all that a budget pays for: every plan is the same there.
    """
    own = {arm.strategy for arm in spec.arms}
    budgets = [budget] if budget else spec.budgets
    found = []
    if "random" in spec.controls and "random" not in own:
        found.append(ArmPart(name=_free_name(spec, "random"), strategy="random"))
    if "own-shuffled" in spec.controls:
        found += [arm for arm in own_shuffles(spec, budgets).values() if arm not in spec.arms]
    elif "shuffled" in spec.controls and "shuffled" not in own:
        options = shuffled_options(spec)
        if not _all_least(budgets, options):
            found.append(ArmPart(name=_free_name(spec, "shuffled"), strategy="shuffled", options=options))
    longer = compute_controls(spec) if "compute" in spec.controls else {}
    return (*found, *{arm.name: arm for arm in longer.values()}.values(), *unclipped_controls(spec))


def unclipped_controls(spec: StudySpec) -> tuple[ArmPart, ...]:
    """The baseline without clipping of gradients, where that is asked for and gradients are clipped at all."""
    baseline = baseline_of(spec)
    own = baseline.train or ArmTrainPart()
    if "unclipped" not in spec.controls or spec.train.max_grad_norm is None or not own.clip:
        return ()
    name = _free_name(spec, f"{baseline.name[:50]}-unclipped")
    return (baseline.model_copy(update={"name": name, "train": own.model_copy(update={"clip": False})}),)


def own_shuffles(spec: StudySpec, budgets: Sequence[str] | None = None) -> dict[str, ArmPart]:
    """Name of a primary arm -> the control with its ranks at other places, trained and scaled as the arm is.

    Every primary arm that measures something has one, at the budgets where it is primary (`budgets`: some of them); one
    that the study has as an arm already is that arm. A shape has none: its ranks hold no information of the task.
    """
    wanted = spec.budgets if budgets is None else budgets
    found = {}
    for arm in spec.arms:
        own = [c.budget for c in primary_comparisons(spec) if c.arm == arm.name and c.budget in wanted]
        if not own or not _can_be_shuffled(arm) or not _measures(arm):
            continue
        options = {**source_options(arm), "must_differ": False}
        if not _all_least(own, options):
            name = _free_name(spec, f"shuffled-{arm.name}")
            made = arm.model_copy(update={"name": name, "strategy": "shuffled", "options": options})
            found[arm.name] = next((a for a in spec.arms if _same_run(a, made)), made)
    return found


def shadows(spec: StudySpec) -> dict[str, str]:
    """Control -> the arm whose own ranks it has at other places; empty without `own-shuffled`."""
    own = own_shuffles(spec) if "own-shuffled" in spec.controls else {}
    return {control.name: arm for arm, control in own.items()}


def _can_be_shuffled(arm: ArmPart) -> bool:
    return arm.strategy not in (None, "uniform") and why_no_source(find_strategy(arm.strategy or "")) is None


def _measures(arm: ArmPart) -> bool:
    strategy = find_strategy(arm.strategy or "")
    return bool(strategy.needs(check_options(strategy, arm.options)))


def _same_run(one: ArmPart, other: ArmPart) -> bool:
    return one.model_copy(update={"name": other.name}) == other


def _free_name(spec: StudySpec, wanted: str) -> str:
    """`wanted`, or where an arm of the study's own is called that, another name."""
    names = {arm.name for arm in spec.arms}
    wanted = wanted[:56]
    return f"{wanted}-control" if wanted in names else wanted


def compute_controls(spec: StudySpec) -> dict[str, ArmPart]:
    """Name of an arm that trains before it has a plan -> the baseline trained for as many updates in all.

    Updates cost alike, whatever the rank: nearly all of one is the frozen model's forward and backward pass.
    """
    baseline, found = baseline_of(spec), {}
    for arm in spec.arms:
        if arm.strategy is None or arm == baseline:
            continue
        steps = steps_of(spec, arm)
        search = check_options(find_strategy(arm.strategy), arm.options).measuring().updates(steps)
        if search:
            times = (steps + search) / steps_of(spec, baseline)
            own = (baseline.train or ArmTrainPart()).model_copy(update={"longer": times})
            found[arm.name] = baseline.model_copy(update={"name": f"{baseline.name[:50]}-x{times:.3g}", "train": own})
    return found


def shuffled_options(spec: StudySpec) -> dict[str, Any]:
    """Whose ranks `shuffled` puts elsewhere: the first arm's that plans without training, else `empirical`'s."""
    for arm in spec.arms:
        if _can_be_shuffled(arm):
            source = find_strategy(arm.strategy or "")
            if source.effort_of(check_options(source, arm.options)) != "training":
                return source_options(arm)
    return {"source": "empirical"}


def source_options(arm: ArmPart) -> dict[str, Any]:
    """Options of `shuffled` for an arm's ranks.

    With the arm's own options, as other ranks than the arm's would be no control of it. Bounds are said of the shuffled
    plan itself, which hands them on to its source. Defaults are left out: a study that says none keeps its runs.
    """
    options = check_options(find_strategy(arm.strategy or ""), arm.options)
    own = options.model_dump(mode="json", exclude_defaults=True)
    bounds = {name: own.pop(name) for name in StrategyOptions.model_fields if name in own}
    return {"source": arm.strategy, **bounds, **({"source_options": own} if own else {})}


def _all_least(budgets: Sequence[str], options: Mapping[str, Any]) -> bool:
    parsed = [parse_budget(budget) for budget in budgets]
    return all(unit == "rank" and number <= options.get("min_rank", 1) for unit, number in parsed)


def assay_budgets(spec: StudySpec) -> tuple[str, ...]:
    """Budgets that the baseline alone is trained at; none where its ranks are fixed and would be the same at each."""
    if baseline_of(spec).ranks is not None:
        return ()
    asked = []
    for budget in spec.budgets:
        asked += [halved(budget)] if "half" in spec.controls else []
        asked += [doubled(budget)] if "double" in spec.controls else []
    same = {parse_budget(text) for text in spec.budgets}
    return tuple(dict.fromkeys(text for text in asked if text is not None and parse_budget(text) not in same))


def baseline_of(spec: StudySpec) -> ArmPart:
    """The arm that all others are compared with."""
    return next(arm for arm in spec.arms if arm.name == spec.analysis.baseline)


def primary_comparisons(spec: StudySpec) -> tuple[Comparison, ...]:
    """The family that is judged: what `analysis.primary` names, by default every arm of the study's own.

    The baseline, controls and fixed ranks are never in it by default. Fixed ranks that are named stand under the first
    budget alone; that they cost what the baseline costs is checked once the model is known (`study.preflight`).
    """
    named = spec.analysis.primary
    fixed = {arm.name for arm in spec.arms if arm.ranks is not None}
    if named is not None:
        every = [(part.arm, spec.budgets[:1] if part.arm in fixed else spec.budgets, part.budget) for part in named]
        wanted = [(arm, [budget] if budget else budgets) for arm, budgets, budget in every]
    else:
        own = [arm for arm in spec.arms if arm.name != spec.analysis.baseline and arm.ranks is None]
        wanted = [(arm.name, spec.budgets) for arm in own if arm.strategy not in ("random", "shuffled", "inverted")]
    return tuple(dict.fromkeys(Comparison(arm, budget) for arm, budgets in wanted for budget in budgets))


def rule_complaints(spec: StudySpec) -> dict[Location, str]:
    """Looks and margins that the study's comparisons, controls or budgets leave without meaning."""
    found: dict[Location, str] = {}
    comparisons = primary_comparisons(spec)
    if spec.seeds.looks and not comparisons:
        found["seeds", "looks"] = (
            "the study has no primary comparison, so that there is nothing to decide at a look; leave `looks` out, or "
            "name hypotheses under `analysis.primary`"
        )
    if comparisons and spec.analysis.margin == HALF_BUDGET and (why := _why_unmeasured(spec, comparisons)):
        found["analysis", "margin"] = (
            f"`{HALF_BUDGET}`, the default, is measured by the baseline at half the budget, and {why}; give a number "
            "in the metric's unit (of `test_loss` nats per token), such as `margin: 0.01`"
        )
    return found | _ceiling_complaint(spec) | _metric_complaints(spec, comparisons)


def _ceiling_complaint(spec: StudySpec) -> dict[Location, str]:
    """A ceiling of arms that there are not, or without the yardstick that it is held to."""
    arms = {arm.name for arm in spec.arms} - {spec.analysis.baseline}
    place = "analysis", "ceiling"
    if unknown := [name for name in spec.analysis.ceiling if name not in arms]:
        hint = nearest_hint(unknown[0], arms)
        return {place: f"no arm beside the baseline is called {unknown[0]!r}{hint}; arms: {', '.join(sorted(arms))}"}
    if spec.analysis.ceiling and "half" not in spec.controls:
        return {place: "a ceiling is held to what half the budget costs; add `half` to `controls`"}
    return {}


def _metric_complaints(spec: StudySpec, comparisons: Sequence[Comparison]) -> dict[Location, str]:
    """A margin that was meant as a share, and arms that the metric leaves without values."""
    found: dict[Location, str] = {}
    metric, margin = metric_of(spec.analysis.model_dump(mode="json")), spec.analysis.margin
    if metric.unit == POINTS and isinstance(margin, float) and margin < LEAST_POINTS:
        found["analysis", "margin"] = (
            f"the margin of {metric.title} is in percentage points, and {margin:g} of one is less than any test shows; "
            f"write {100 * margin:g} if {margin:g} was meant as a share, else {LEAST_POINTS:g} or more"
        )
    known = {arm.name for arm in (*spec.arms, *control_arms(spec))}
    if unknown := [arm for arm in metric.arms if arm not in known]:
        hint = nearest_hint(unknown[0], known)
        found["analysis", "metric", "arms"] = f"no arm is called {unknown[0]!r}{hint}; arms: {', '.join(sorted(known))}"
    elif without := sorted({c.arm for c in comparisons if not metric.covers(c.arm)}):
        found["analysis", "metric", "arms"] = (
            f"{', '.join(without)} would get no verdict: a primary comparison needs values of {metric.title}; add "
            f"{'it' if len(without) == 1 else 'them'} here, or name others under `analysis.primary`"
        )
    return found


def _why_unmeasured(spec: StudySpec, comparisons: Sequence[Comparison]) -> str:
    """What keeps half the budget from being trained, and what would mend it; "" where nothing does."""
    if whole := [c.budget for c in comparisons if halved(c.budget) is None]:
        return f"{whole[0]} has no half"
    if baseline_of(spec).ranks is not None:
        return f"{spec.analysis.baseline!r} has fixed `ranks`, of one size"
    return "" if "half" in spec.controls else "`controls` are without `half`, which could be added"
