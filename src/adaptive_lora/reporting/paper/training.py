"""How arms train over the rates that a study looked at, as a paper's sentences need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.rate_sweeps import State, first_harmful_rate, rate_sweeps, untrainable


@dataclass(frozen=True)
class Training:
    """Where arms break, over the rates that a study looked at; names with budgets."""

    breaking: tuple[str, ...]
    """At some rate, arms that some other rate trains."""
    untrained: tuple[str, ...]
    """Arms for which no rate could be chosen, because a run diverged at every one."""
    at_chosen: tuple[str, ...]
    """At the very rate they are evaluated at, arms that are trained as the study says."""
    changed: tuple[str, ...]
    """The same of arms with a training of their own."""
    baseline: tuple[str, ...]
    """Budgets at which the baseline does worse at a higher rate than at its own, or diverges there."""
    effects: Mapping[str, tuple[str, ...]]
    """What a change does where training breaks -> the changes that do it."""


def training_of(found: Findings) -> Training:
    """From all finished runs, tuning and evaluation."""
    chosen = {(arm.arm, arm.budget): arm.learning_rate for arm in found.arms if arm.learning_rate is not None}
    every = rate_sweeps(found.stability, found.baseline, found.analysis["margin"]) if len(found.stability) else {}
    others = {key: course for key, course in every.items() if key[0] != found.baseline}
    hit = [key for key, course in others.items() if course.state_at(chosen.get(key, 0.0)) is State.BREAKS]
    without = [course for course in others.values() if untrainable(course, chosen)]
    own_training = {arm["name"] for arm in found.facts["spec"]["arms"] if arm.get("train")}
    own = [course for key, course in every.items() if key[0] == found.baseline]
    effects: dict[str, tuple[str, ...]] = {}
    for c in found.stability_findings.variants:
        changed = f"{render('stability.differences', c.variant)} of {c.variant.of} at {c.changed.budget}"
        effect = render("stability.effect", c)
        effects[effect] = (*effects.get(effect, ()), changed)
    return Training(
        tuple(f"{arm} at {budget}" for (arm, budget), c in others.items() if c.first_break and c not in without),
        tuple(f"{course.arm} at {course.budget}" for course in without),
        tuple(f"{arm} at {budget}" for arm, budget in hit if arm not in own_training),
        tuple(f"{arm} at {budget}" for arm, budget in hit if arm in own_training),
        tuple(c.budget for c in own if first_harmful_rate(found.stability, c, chosen, found.analysis["margin"])),
        effects,
    )
