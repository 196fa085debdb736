"""From templates and findings to the blocks of a manuscript.

A template prints nothing but facts and names, and whatever it prints is words, never markup. Sentences that claim
stand in conditions on the verdicts: a study in which no arm is better cannot be told to have one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from adaptive_lora.errors import PaperError, StrategyError
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.planning.strategies.base import check_options
from adaptive_lora.reporting.choices import ceilings_of
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.paper.document import Block, read_blocks
from adaptive_lora.reporting.paper.facts import Facts
from adaptive_lora.reporting.paper.other_studies import label_of
from adaptive_lora.reporting.paper.study_facts import winners
from adaptive_lora.reporting.paper.text_environment import text_environment
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.assays import untested_budgets
from adaptive_lora.stats.cost_equivalents import AtEqualCompute, at_equal_compute
from adaptive_lora.stats.decomposition import Decomposition
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.variants import variants_of
from adaptive_lora.stats.verdicts import Verdict

PARTS = (
    "introduction", "related", "method", "protocol", "setup", "results", "stability", "further", "planted",
    "discussion", "limitations", "statements",
)  # fmt: skip
_OWN = re.compile(r"((?:\[\[|^::)(?:table|figure)[: ])OWN-", re.M)
"""`[[table:OWN-arms]]` and `::table OWN-arms` of a study beside the paper's own."""


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
        several = len(self.found.facts["spec"]["budgets"]) > 1  # controls, which may have others, have telling names

        def named(what: Comparison | ArmSummary | AtEqualCompute | Decomposition) -> str:
            return f"{what.arm} at {what.budget}" if several else what.arm

        return {
            # n("x") writes a fact, count("x") is its value, has("x") says whether there is one.
            "n": lambda name: self.facts[name].text,
            "count": lambda name: self.facts[name].value,
            "has": self.facts.__contains__,
            "found": self.found, "tables": self.tables, "figures": self.figures,
            "named": named, "several_budgets": several, "listed": listed, "ceilings": list(ceilings_of(self.found)),
            **_setup(self.found), **_judged(self.found, named), **_controls(self.found), **_extremes(self.found),
        }  # fmt: skip


def write_blocks(
    own: Account, tools: str, beside: Sequence[Account] = (), planted: Mapping[str, Any] | None = None
) -> dict[str, list[Block]]:
    """`title`, `abstract`, and all else under `body`; `planted` as `planted_context` gives it."""
    main, template = own.context(), text_environment().get_template
    others = [{**account.context(), "own": Markup(label_of(account.found)), "main": main} for account in beside]
    models = list(dict.fromkeys([account.facts["model"].text for account in (own, *beside)]))
    elsewhere = [f"{c['name']} in {other['n']('study')}" for other in others for c in other["better"]]
    context = {**main, "others": others, "better_elsewhere": elsewhere, "models": models, "planted": planted,
               "tools": tools}  # fmt: skip
    try:
        for other in others:
            other["text"] = Markup(_OWN.sub(rf"\g<1>{other['own']}-", template("other.txt").render(other)))
        text = {name: template(f"{name}.txt").render(context) for name in ("title", "abstract", *PARTS)}
    except jinja2.UndefinedError as error:
        raise PaperError(f"The text needs what the study does not have: {error}.") from None
    return {
        "title": read_blocks(text["title"]),
        "abstract": read_blocks(text["abstract"]),
        "body": [block for name in PARTS for block in read_blocks(text[name])],
    }


def _setup(found: Findings) -> dict[str, Any]:
    """What was planned, on what it was trained, and what else is known of it."""
    spec, own = found.facts["spec"], found.contenders
    judged = {comparison.arm for comparison in found.judged}
    strategies = [name for name in dict.fromkeys(arm["strategy"] for arm in spec["arms"]) if name in STRATEGIES]
    return {
        "budgets": list(spec["budgets"]),
        "strategies": strategies,
        "measuring": [name for name in strategies if name not in ("shuffled", "inverted", "by-kind", "by-depth")
                      and STRATEGIES[name].needs(STRATEGIES[name].options())],
        "summary": lambda name: STRATEGIES[name].summary,
        "options": _options(spec["arms"]),
        # Fixed ranks that are a hypothesis cost what the baseline costs; the others have a size of their own.
        "own_size": [arm["name"] for arm in spec["arms"] if arm["ranks"] is not None and arm["name"] not in judged],
        "retreats": [arm for arm in found.arms if arm.same and arm.arm in own],
        "winners": winners(found, spec["budgets"][0], own),
        "licence": render("study.licence", found.facts["data"]).rstrip("."),
        "model_name": str(found.facts["model"]["name"]).lower(),
        # A limit that there is not differs from one that is missing, which stops the build.
        "unlimited_context": found.facts["model"].get("unlimited_context", False),
        "source": str(found.facts["data"]["source"]).lower(),
        "variants": bool(variants_of(spec)),
        "training": _training(found),
        "in_bank": any("bank" in str(engine) for engine in found.runs["engine"].dropna()),
    }  # fmt: skip


def _training(found: Findings) -> Mapping[str, Any]:
    """Arms that break at some rate, those with a training of their own separately, and what changes do there."""
    seen, own_way = found.stability_findings, {arm["name"] for arm in found.facts["spec"]["arms"] if arm.get("train")}
    breaks = [b for b in seen.breaks if b.sweep.arm != found.baseline]
    hit = [b.sweep for b in seen.breaks if b.at_chosen]
    first = [b.sweep for b in seen.less_stable]
    effects: dict[str, list[str]] = {}
    for c in seen.variants.moved:
        changed = f"{render('stability.differences', c.variant)} of {c.variant.of} at {c.changed.budget}"
        effects.setdefault(render("stability.effect", c), []).append(changed)
    return {
        "breaking": [b.sweep.label for b in breaks if not b.untrainable],
        "untrained": [b.sweep.label for b in seen.breaks if b.untrainable],
        "at_chosen": [sweep.label for sweep in hit if sweep.arm not in own_way],
        "changed": [sweep.label for sweep in hit if sweep.arm in own_way],
        "baseline": [f"{b.sweep.budget} from {b.cell.learning_rate:g}" for b in seen.breaks
                     if b.sweep.arm == found.baseline and not b.untrainable],
        "less_stable": [sweep.label for sweep in first if sweep.arm not in own_way],
        "changed_less_stable": [sweep.label for sweep in first if sweep.arm in own_way],
        "effects": effects,
        "broken": bool(seen.breaks),
    }  # fmt: skip


def _judged(found: Findings, named: Callable[[Comparison], str]) -> dict[str, Any]:
    """Comparisons by their verdict, open ones by why, and budgets by what their assay says."""
    outcomes: list[dict[str, Any]] = [
        {"name": named(c), "budget": c.budget, "judged": judged} for c, judged in found.judged.items()
    ]
    undecided = [(named(c), j) for c, j in found.judged.items() if j.verdict is Verdict.UNDECIDED]
    tells, blind, unknown = ([a.budget for a in found.assays if a.sensitive is known] for known in (True, False, None))
    return {
        **{str(verdict): [o for o in outcomes if o["judged"].verdict is verdict] for verdict in Verdict},
        "unsettled": [name for name, j in undecided if j.interval and not j.diverged_pairs.any],
        "beyond": [o for o in outcomes if o["judged"].beyond_margin and o["judged"].verdict is not Verdict.UNDECIDED],
        "cautioned": _cautioned(found, named),
        "costly": _as_costly_as_half(found, named),
        "conditional": [o["name"] for o in outcomes if o["judged"].records is None and o["judged"].mean is not None],
        "survivors": [name for name, j in undecided if j.diverged_pairs.any],
        "tells": tells,
        "cannot_tell": blind,
        "unknown": unknown,
        "untested": untested_budgets(found.facts["spec"]["budgets"], found.assays),
    }


def _as_costly_as_half(found: Findings, named: Callable[[Comparison], str]) -> list[str]:
    """Arms that are worse, and by no less than the baseline at half of their budget."""
    half = {assay.budget: assay.loss_of_half.mean for assay in found.assays if assay.loss_of_half and assay.sensitive}
    return [
        named(c) for c, j in found.judged.items()
        if j.verdict is Verdict.WORSE and j.mean is not None and c.budget in half and j.mean >= half[c.budget]
    ]  # fmt: skip


def _cautioned(found: Findings, named: Callable[[Comparison], str]) -> Mapping[str, list[str]]:
    """Caution -> the comparisons that it is about."""
    seen: dict[str, list[str]] = {}
    for comparison, cautions in found.cautions.items():
        for caution in cautions:
            seen.setdefault(str(caution), []).append(named(comparison))
    return seen


def _controls(found: Findings) -> dict[str, Any]:
    by_chance, compute = list(found.lock["controls"]["arms"]), found.lock["controls"]["compute"]
    longer = [arm for arm in found.compared if arm.arm in compute.values()]
    return {
        "controls": by_chance,
        # What was shuffled stands with it: the lock knows its source.
        "controls_named": [
            f"{name} ({source}'s ranks)" if (source := found.lock["controls"]["arms"][name]) else name
            for name in by_chance
        ],
        "equal_compute": at_equal_compute(found.runs, compute, found.baseline),
        # Longer trained baselines that are worse for it, with the whole 95 % interval.
        "overtrained": [arm for arm in longer if arm.difference and (arm.difference.low or 0.0) > 0],
        "chance": _beside_chance(found, by_chance),
    }


def _extremes(found: Findings) -> dict[str, Any]:
    """The study's own arms with the lowest and the highest difference, and what stands in the middle or out."""
    own = sorted((size for size in found.sizes if size.arm in found.contenders), key=lambda size: size.difference.mean)
    arms = {(arm.arm, arm.budget): arm for arm in found.arms}
    powers = sorted(found.powers, key=lambda power: power.half_width)
    return {
        "best": arms[own[0].arm, own[0].budget],
        "best_size": own[0],
        "worst": arms[own[-1].arm, own[-1].budget],
        "typical": powers[len(powers) // 2] if powers else None,
    }


def _beside_chance(found: Findings, controls: Sequence[str]) -> Mapping[str, list[str]]:
    """Own arms that are worse (`above`), or better (`below`), than every control by chance at the same budget, each
    paired with it: the whole interval of the difference of the two says so, at the study's level."""
    seen: dict[str, list[str]] = {"above": [], "below": []}
    for arm in found.compared:
        if arm.arm in found.contenders:
            pairs = [found.between((arm.arm, arm.budget), (control, arm.budget)) for control in controls]
            ends = [(i.low, i.high) for i in pairs if i is not None and i.low is not None and i.high is not None]
            name = [found.named(arm.arm, arm.budget)] if ends else []
            seen["above"] += name if all(low > 0 for low, _ in ends) else []
            seen["below"] += name if all(high < 0 for _, high in ends) else []
    return seen


def _options(arms: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Arm -> option -> value, for every arm of a strategy that has options of its own."""
    found = {}
    for arm in arms:
        if arm["strategy"] in STRATEGIES:
            try:
                options = check_options(STRATEGIES[arm["strategy"]], arm["options"]).model_dump(mode="json")
            except StrategyError:  # the source is a file of the study's author, which reading does not load
                options = arm["options"]
            hidden = {"seed", "source_options", *(n for n in ("min_rank", "power") if options.get(n) == 1)}
            if shown := {k: v for k, v in options.items() if v is not None and k not in hidden}:
                found[arm["name"]] = shown
    return found
