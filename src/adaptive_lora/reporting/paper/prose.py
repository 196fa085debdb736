"""From templates and findings to the blocks of a manuscript.

A template prints nothing but facts and names, and whatever it prints is words, never markup. Sentences that claim
stand in conditions on the verdicts: a study in which no arm is better cannot be told to have one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import jinja2

from adaptive_lora.errors import PaperError
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.planning.strategies.base import check_options
from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.html.page import licence_text
from adaptive_lora.reporting.paper.document import Block, read_blocks
from adaptive_lora.reporting.paper.facts import Facts
from adaptive_lora.reporting.paper.other_studies import label_of
from adaptive_lora.reporting.paper.study_facts import contenders, winners
from adaptive_lora.reporting.paper.templates import Ours, text_environment
from adaptive_lora.reporting.paper.training import training_of
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.assays import untested_budgets
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.variants import variants_of
from adaptive_lora.stats.verdicts import Judgement, Verdict

PARTS = (
    "introduction", "related", "method", "protocol", "setup", "results", "stability", "further", "planted",
    "discussion", "limitations", "statements", "appendix",
)  # fmt: skip
Blocks = dict[str, list[Block]]


@dataclass(frozen=True)
class Outcome:
    """A primary comparison as sentences name it."""

    key: str
    """Of its facts: `ARM@BUDGET.verdict`."""
    name: str
    """The arm, with its budget where there are several."""
    significant: bool
    """Whether the mean differs from zero by the adjusted test, whatever its size."""
    diverged: str
    """`diverged on 4 of 12 seeds`; empty where no run of a pair diverged alone."""


@dataclass(frozen=True)
class Account:
    """A study as the text can describe it."""

    found: Findings
    facts: Facts
    tables: Sequence[str]
    """Names; those of a study beside the paper's own begin with its label."""
    figures: Sequence[str]

    def context(self) -> dict[str, Any]:
        """What templates know of it."""
        return {
            **self.facts.for_templates(), **_judged(self.found), **_setup(self.found, self.facts),
            **_controls(self.found), "tables": self.tables, "figures": self.figures,
        }  # fmt: skip


def write_blocks(
    own: Account, tools: str, beside: Sequence[Account] = (), planted: Mapping[str, Any] | None = None
) -> Blocks:
    """`title`, `abstract`, and all else under `body`; `planted` as `planted_context` gives it."""
    environment = text_environment()
    main = own.context()
    others = [{**account.context(), "own": Ours(label_of(account.found)), "main": main} for account in beside]
    models = list(dict.fromkeys([account.facts["model"].text for account in (own, *beside)]))
    elsewhere = [f"{c.name} in {other['n']('study')}" for other in others for c in other["better"]]
    wider = {"others": others, "better_elsewhere": elsewhere, "models": models, "planted": planted, "tools": tools}
    context = {**main, **wider}
    try:
        for other in others:
            other["text"] = Ours(_owned(environment.get_template("other.txt").render(other), other["own"]))
        text = {name: environment.get_template(f"{name}.txt").render(context) for name in ("title", "abstract", *PARTS)}
    except jinja2.UndefinedError as error:
        raise PaperError(f"The text needs what the study does not have: {error}.") from None
    return {
        "title": read_blocks(text["title"]),
        "abstract": read_blocks(text["abstract"]),
        "body": [block for name in PARTS for block in read_blocks(text[name])],
    }


def _owned(text: str, label: str) -> str:
    """`[[table:OWN-arms]]` and `::table OWN-arms` of a study beside the paper's own."""
    return re.sub(r"((?:\[\[|^::)(?:table|figure)[: ])OWN-", rf"\g<1>{label}-", text, flags=re.M)


def _setup(found: Findings, facts: Facts) -> dict[str, Any]:
    """What was planned, on what it was trained, and what else is known of it."""
    spec, own = found.facts["spec"], contenders(found)
    model, data = (str(found.facts[part][name]).lower() for part, name in (("model", "name"), ("data", "source")))
    strategies = [name for name in dict.fromkeys(arm["strategy"] for arm in spec["arms"]) if name in STRATEGIES]
    return {
        "listed": listed,
        "found": found,
        "budgets": list(spec["budgets"]),
        "strategies": strategies,
        "measuring": [name for name in strategies if _measures(name)],
        "summary": lambda name: STRATEGIES[name].summary,
        "options_of": functools.partial(_options_of, spec["arms"]),
        "contenders": own,
        "own_size": [arm["name"] for arm in spec["arms"] if arm["ranks"] is not None],
        "retreats": [f"{arm.arm}@{arm.budget}" for arm in found.arms if arm.same and arm.arm in own],
        "winners": winners(found, spec["budgets"][0], own),
        "tuned": facts["runs.tuning"].value != 0,
        "edges": [render("rates.at_edge", edge) for edge in found.edges],
        "worth_remarks": render_all("comparisons.no_parameter_equivalents", found),
        "licence": licence_text(found.facts).rstrip("."),
        "alpaca": "alpaca" in data,
        "gsm8k": "gsm8k" in data,
        "dialogpt": "dialogpt" in model,
        "stories": "stories" in model or "babyllama" in model,
        "variants": bool(variants_of(spec)),
        "training": training_of(found),
        "in_bank": any("bank" in str(engine) for engine in found.runs["engine"].dropna()),
        "scaling": spec["scaling"]["rule"],
    }


def _judged(found: Findings) -> dict[str, Any]:
    """Comparisons by their verdict; equivalent ones by what the assay of their budget says, open ones by why."""
    budgets = found.facts["spec"]["budgets"]
    named = functools.partial(_named, several=len(budgets) > 1)
    judged = [(_outcome(c, j, named), c.budget, j) for c, j in found.judged.items()]
    same = [(outcome.name, budget) for outcome, budget, j in judged if j.verdict is Verdict.EQUIVALENT]
    undecided = [(outcome.name, j) for outcome, _, j in judged if j.verdict is Verdict.UNDECIDED]
    telling, blind, unknown = (
        [a.budget for a in found.assays if a.sensitive is state] for state in (True, False, None)
    )
    return {
        **{str(kind): [outcome for outcome, _, j in judged if j.verdict is kind] for kind in Verdict},
        "primary": [outcome for outcome, *_ in judged],
        "several_budgets": len(budgets) > 1,
        "named": named,
        "assays": found.assays,
        "unsettled": [name for name, j in undecided if j.equivalence_interval and not j.diverged_pairs.any],
        "survivors": [name for name, j in undecided if j.diverged_pairs.any],
        "tells": telling,
        "cannot_tell": blind,
        "unknown": unknown,
        "untested": untested_budgets(list(budgets), found.assays),
        "sensed": [name for name, budget in same if budget in telling],
        "unsensed": [name for name, budget in same if budget in blind],
        "unsure": [name for name, budget in same if budget not in telling + blind],
    }


def _controls(found: Findings) -> dict[str, Any]:
    controls: Mapping[str, Any] = lock_of(found.facts).get("controls", {})
    by_chance, compute = list(controls.get("arms", {})), controls.get("compute", {})
    return {
        "controls": by_chance,
        "compute": [f"compute.{arm}@{budget}" for arm in compute for budget in found.facts["spec"]["budgets"]],
        "overtrained": _overtrained(found, set(compute.values())),
        "twins": bool(controls.get("twin")),
        "chance": _beside_chance(found, by_chance),
    }


def _beside_chance(found: Findings, controls: Sequence[str]) -> Mapping[str, list[str]]:
    """Own arms whose whole 95 % interval lies above, or below, those of every control by chance at the same budget."""
    seen: dict[str, list[str]] = {"above": [], "below": []}
    for budget in found.facts["spec"]["budgets"]:
        ends = {a.arm: (a.difference.low, a.difference.high) for a in found.arms if a.budget == budget and a.difference
                and a.difference.low is not None and a.difference.high is not None}  # fmt: skip
        others = [ends[name] for name in controls if name in ends]
        for name in contenders(found) if others else ():
            low, high = ends.get(name, (-float("inf"), float("inf")))
            if low > max(end for _, end in others):
                seen["above"].append(found.named(name, budget))
            if high < min(end for end, _ in others):
                seen["below"].append(found.named(name, budget))
    return seen


def _overtrained(found: Findings, controls: Set[str]) -> list[str]:
    """ARM@BUDGET of longer trained baselines that are worse for it, with the whole 95 % interval."""
    longer = [arm for arm in found.arms if arm.arm in controls and arm.difference]
    return [f"{arm.arm}@{arm.budget}" for arm in longer if arm.difference and (arm.difference.low or 0.0) > 0]


def _options_of(arms: Sequence[Mapping[str, Any]], strategy: str) -> Mapping[str, Mapping[str, Any]]:
    """Arm -> option -> value, for every arm of a strategy that has options of its own."""
    found = {}
    for arm in arms:
        if arm["strategy"] == strategy:
            options = check_options(STRATEGIES[strategy], arm["options"]).model_dump(mode="json")
            hidden = {"seed", "source_options", *({"min_rank"} if options.get("min_rank") == 1 else ())}
            if shown := {k: v for k, v in options.items() if v is not None and k not in hidden}:
                found[arm["name"]] = shown
    return found


def _measures(name: str) -> bool:
    strategy = STRATEGIES[name]
    return name not in ("shuffled", "inverted") and bool(strategy.needs(strategy.options()))


def _named(key: str, several: bool) -> str:
    """ARM@BUDGET in words; `several` is of budgets asked for, since controls are known by their names."""
    return key.replace("@", " at ") if several else key.split("@")[0]


def _outcome(comparison: Comparison, judged: Judgement, named: functools.partial[str]) -> Outcome:
    key = f"{comparison.arm}@{comparison.budget}"
    diverged = render("comparisons.diverged", judged.diverged_pairs)
    return Outcome(f"{key}.verdict", named(key), judged.significant, diverged)
