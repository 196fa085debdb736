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
from adaptive_lora.reporting.escaping import visible
from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.formatting import formatted, listed
from adaptive_lora.reporting.paper.beside import label_of
from adaptive_lora.reporting.paper.document import LITERAL, Block, read_blocks
from adaptive_lora.reporting.paper.facts import Facts
from adaptive_lora.reporting.paper.gather import contenders
from adaptive_lora.reporting.paper.manuscript import TOOLS_MISSING
from adaptive_lora.reporting.paper.training import training_of
from adaptive_lora.reporting.templating import environment, render, render_all
from adaptive_lora.stats.assays import untested_budgets
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.seeds import smallest_p
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
    arm: str
    budget: str
    name: str
    """The arm, with its budget where there are several."""
    size: str
    """Of the difference, as written in a list."""
    won: str
    """`2 of 10`: seeds with the lower loss."""
    significant: bool
    """Whether the mean differs from zero by the adjusted test, whatever its size."""
    lost: str
    """`diverged on 4 of 12 seeds`; empty where no seed is lost to one of the two alone."""


@dataclass(frozen=True)
class Account:
    """A study as the text can tell it."""

    found: Findings
    facts: Facts
    tables: Sequence[str]
    """Names; those of a study beside the paper's own begin with its label."""
    figures: Sequence[str]

    def context(self) -> dict[str, Any]:
        """What templates know of it."""
        return {**_context(self.found, self.facts), "tables": self.tables, "figures": self.figures}


def write_blocks(
    own: Account, tools: str, beside: Sequence[Account] = (), planted: Mapping[str, Any] | None = None
) -> Blocks:
    """`title`, `abstract`, and all else under `body`; `planted` as `planted_context` gives it."""
    templates = environment(
        "paper/text", autoescape=False, finalize=_literal, block_start_string="<%", block_end_string="%>",
        variable_start_string="<<", variable_end_string=">>", comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    main = own.context()
    others = [{**account.context(), "own": _Markup(label_of(account.found)), "main": main} for account in beside]
    models = list(dict.fromkeys([account.facts["model"].text for account in (own, *beside)]))
    elsewhere = [f"{c.name} in {other['n']('study')}" for other in others for c in other["better"]]
    wider = {"others": others, "better_elsewhere": elsewhere, "models": models, "planted": planted, "tools": tools}
    context = {**main, **wider}
    try:
        for other in others:
            other["text"] = _Markup(_owned(templates.get_template("other.txt").render(other), other["own"]))
        text = {name: templates.get_template(f"{name}.txt").render(context) for name in ("title", "abstract", *PARTS)}
    except jinja2.UndefinedError as error:
        raise PaperError(f"The text needs what the study does not have: {error}.") from None
    return {
        "title": read_blocks(text["title"]),
        "abstract": read_blocks(text["abstract"]),
        "body": [block for name in PARTS for block in read_blocks(text[name])],
    }


class _Markup(str):
    """Text that a template of ours has made, markup and all."""


def _owned(text: str, label: str) -> str:
    """`[[table:OWN-arms]]` and `::table OWN-arms` of a study beside the paper's own."""
    return re.sub(r"((?:\[\[|^::)(?:table|figure)[: ])OWN-", rf"\g<1>{label}-", text, flags=re.M)


def _literal(value: Any) -> str:
    """What an expression prints: words in which nothing is markup."""
    if isinstance(value, _Markup):
        return value
    return f"{LITERAL[0]}{visible(str(value), 2000)}{LITERAL[1]}"


def _context(found: Findings, facts: Facts) -> dict[str, Any]:
    spec = found.facts["spec"]
    several = len(spec["budgets"]) > 1
    outcomes = [_outcome(comparison, judged, several) for comparison, judged in found.judged.items()]
    lock = lock_of(found.facts)
    names = [arm["strategy"] for arm in spec["arms"]]
    controls: Mapping[str, Any] = lock.get("controls", {})
    strategies = [name for name in dict.fromkeys(filter(None, names)) if name in STRATEGIES]
    return {
        "n": lambda name: facts[name].text,
        "has": lambda name: name in facts,
        "count": lambda name: facts[name].value,
        "listed": listed,
        "primary": outcomes,
        **_by_verdict(found, outcomes),
        "several_budgets": several,
        "named": lambda key: _named(key, several),
        "budgets": list(spec["budgets"]),
        "strategies": strategies,
        "measuring": [name for name in strategies if _measures(name)],
        "summary": lambda name: STRATEGIES[name].summary,
        "options_of": functools.partial(_options_of, spec["arms"]),
        "arms": [arm["name"] for arm in spec["arms"]],
        "contenders": contenders(found),
        "own_size": [arm["name"] for arm in spec["arms"] if arm["ranks"] is not None],
        "retreats": [f"{a.arm}@{a.budget}" for a in found.arms if a.same and a.arm in contenders(found)],
        "every": [f"{arm.arm}@{arm.budget}" for arm in found.arms],
        "controls": list(controls.get("arms", {})),
        "compute": [f"compute.{arm}@{b}" for arm in controls.get("compute", {}) for b in spec["budgets"]],
        "overtrained": _overtrained(found, set(controls.get("compute", {}).values())),
        "twins": bool(controls.get("twin")),
        "assays": found.assays,
        "chance": _beside_chance(found, list(controls.get("arms", {}))),
        "tuned": facts["runs.tuning"].value != 0,
        "deviations": found.deviations,
        "locked_first": found.locked_first,
        "baseline_keys": [f"{arm.arm}@{arm.budget}" for arm in found.arms if arm.is_baseline],
        "edges": [render("rates.at_edge", edge) for edge in found.edges],
        "worth_remarks": render_all("comparisons.no_parameter_equivalents", found),
        "licence": render("study.licence", found.facts["data"]).rstrip("."),
        "alpaca": "alpaca" in str(found.facts["data"]["source"]).lower(),
        "gsm8k": "gsm8k" in str(found.facts["data"]["source"]).lower(),
        "dialogpt": "dialogpt" in str(found.facts["model"]["name"]).lower(),
        "variants": bool(variants_of(spec)),
        "training": training_of(found),
        "stories": any(word in str(found.facts["model"]["name"]).lower() for word in ("stories", "babyllama")),
        "tools_missing": TOOLS_MISSING,
        "smallest": smallest_p(len(spec["seeds"]["evaluation"])),
        "alpha": spec["analysis"]["alpha"],
        "best_key": _best(found),
        "in_bank": "bank" in str(facts["engine"].value),
        "scaling": spec["scaling"]["rule"],
    }


def _by_verdict(found: Findings, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Comparisons by their verdict; equivalent ones by what the assay of their budget says, open ones by why."""
    judged = list(zip(outcomes, found.judged.values(), strict=True))
    same = [c for c, j in judged if j.verdict is Verdict.EQUIVALENT]
    open_ = [(c.name, j) for c, j in judged if j.verdict is Verdict.UNDECIDED]
    telling = [assay.budget for assay in found.assays if assay.sensitive]
    blind = [assay.budget for assay in found.assays if assay.sensitive is False]
    return {
        **{str(kind): [c for c, j in judged if j.verdict is kind] for kind in Verdict},
        "unsettled": [name for name, j in open_ if j.equivalence_interval and not j.diverged_pairs.any],
        "survivors": [name for name, j in open_ if j.diverged_pairs.any],
        "tells": telling,
        "cannot_tell": blind,
        "unknown": [assay.budget for assay in found.assays if assay.sensitive is None],
        "untested": untested_budgets(list(found.facts["spec"]["budgets"]), found.assays),
        "sensed": [c.name for c in same if c.budget in telling],
        "unsensed": [c.name for c in same if c.budget in blind],
        "unsure": [c.name for c in same if c.budget not in telling + blind],
    }


def _beside_chance(found: Findings, controls: Sequence[str]) -> Mapping[str, list[str]]:
    """Own arms whose whole 95 % interval lies above, or below, those of every control by chance at the same budget."""
    seen: dict[str, list[str]] = {"above": [], "below": []}
    for budget in found.facts["spec"]["budgets"]:
        here = [arm for arm in found.arms if arm.budget == budget and arm.difference and arm.difference.low is not None]
        ends = [(a.difference.low, a.difference.high) for a in here if a.arm in controls and a.difference]
        for arm in here if ends else ():
            if arm.arm in contenders(found) and arm.difference:
                name = found.named(arm.arm, budget)
                if (arm.difference.low or 0.0) > max(high or 0.0 for _, high in ends):
                    seen["above"].append(name)
                if (arm.difference.high or 0.0) < min(low or 0.0 for low, _ in ends):
                    seen["below"].append(name)
    return seen


def _overtrained(found: Findings, controls: Set[str]) -> list[str]:
    """ARM@BUDGET of longer trained baselines that are worse for it, with the whole 95 % interval."""
    longer = [arm for arm in found.arms if arm.arm in controls and arm.difference]
    return [f"{arm.arm}@{arm.budget}" for arm in longer if arm.difference and (arm.difference.low or 0.0) > 0]


def _best(found: Findings) -> str:
    compared = [arm for arm in found.arms if arm.difference and arm.arm in contenders(found)]
    best = min(compared, key=lambda arm: arm.difference.mean if arm.difference else 0.0, default=None)
    return f"{best.arm}@{best.budget}" if best else ""


def _options_of(arms: Sequence[Mapping[str, Any]], strategy: str) -> list[str]:
    """`linear-decay: slope 1.0` for every arm of a strategy that has options of its own."""
    found = []
    for arm in arms:
        if arm["strategy"] == strategy:
            options = check_options(STRATEGIES[strategy], arm["options"]).model_dump(mode="json")
            told = [
                f"{name.replace('_', ' ')} {_shown(value)}" for name, value in options.items() if _tells(name, value)
            ]
            found += [f"{arm['name']}: {', '.join(told)}"] if told else []
    return found


def _tells(name: str, value: Any) -> bool:
    return value is not None and name not in ("seed", "source_options") and (name, value) != ("min_rank", 1)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measures(name: str) -> bool:
    strategy = STRATEGIES[name]
    return bool(strategy.needs(strategy.options())) if name not in ("shuffled", "inverted") else False


def _named(key: str, several: bool) -> str:
    """ARM@BUDGET in words; `several` is of budgets asked for, since those of controls are told by their names."""
    return key.replace("@", " at ") if several else key.split("@")[0]


def _outcome(comparison: Comparison, judged: Judgement, several: bool) -> Outcome:
    name = _named(f"{comparison.arm}@{comparison.budget}", several)
    key = f"{comparison.arm}@{comparison.budget}.verdict"
    lost = render("comparisons.diverged", judged.diverged_pairs)
    size = "" if judged.mean is None else formatted(abs(judged.mean), ".4f")
    won = f"{judged.improvement.mean * judged.n:g} of {judged.n}" if judged.improvement else ""
    return Outcome(key, comparison.arm, comparison.budget, name, size, won, judged.significant, lost)
