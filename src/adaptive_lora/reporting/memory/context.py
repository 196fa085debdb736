"""What the templates of the memory bank print: numbers, names and lists from a study's findings."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from typing import Any

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.memory.next_steps import next_steps
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.cost_equivalents import at_equal_compute
from adaptive_lora.stats.power import POWER
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.status import StudyStatus


def memory_context(found: Findings, runs: StudyStatus) -> dict[str, Any]:
    """All names that the templates know."""
    spec = found.facts["spec"]
    tried = set(found.runs.loc[found.runs["phase"] == Phase.TUNING, "learning_rate"])
    return {
        "found": found, "facts": found.facts, "spec": spec, "analysis": found.analysis, "lock": found.lock,
        "runs": runs, "baseline": found.baseline, "arms": found.contenders,
        "scalings": [(arm["name"], arm["scaling"]["rule"]) for arm in spec["arms"] if arm.get("scaling")],
        "margin_percent": None if found.margin is None or not found.metric.is_loss else 100 * math.expm1(found.margin),
        "verdicts": Counter(str(judgement.verdict) for judgement in found.judged.values()),
        "rates_added": sorted(tried - set(spec["train"]["learning_rate"])),
        "arms_by_rate": arms_by_rate(found),
        "ranks": rank_shares(found),
        "equal_compute": at_equal_compute(found.runs, found.lock["controls"]["compute"], found.baseline, found.metric),
        "training": training(found),
        "licence": render("study.licence", found.facts["data"]).removesuffix("."),
        "use_of_data": render("study.use_of_data", found.facts["data"]),
        "power": POWER,
        **shared_sentences(found, runs),
        "steps": next_steps(found, runs),
    }  # fmt: skip


def shared_sentences(found: Findings, runs: StudyStatus) -> dict[str, list[str]]:
    """Sentences that the report has too."""
    verdicts, assays = render_all("comparisons.verdicts", found), [render("comparisons.assay", a) for a in found.assays]
    verdicts += [text for text in assays if text not in verdicts]
    if not found.judged:
        verdicts += render_all("comparisons.description", found)[:2]
    stable = render_all("stability.findings", found.stability_findings)
    return {
        "tomorrow": render_all("tomorrow.sentences", found, runs.left),
        "verdict_sentences": verdicts,
        # The first sentence is the rule, which the report prints above its table.
        "stability_sentences": stable[1:] or stable,
        "edge_sentences": [render("rates.at_edge", edge) for edge in found.edges] if runs.tuned else [],
    }


def arms_by_rate(found: Findings) -> dict[float, list[str]]:
    """Chosen rate -> arms, with their budgets where these have different rates."""
    chosen: dict[float, list[str]] = {}
    for name in dict.fromkeys(arm.arm for arm in found.arms):
        own = {arm.budget: arm.learning_rate for arm in found.arms if arm.arm == name}
        for rate in sorted(set(own.values())):
            budgets = [budget for budget, at in own.items() if at == rate]
            label = name if len(budgets) == len(own) else f"{name} at {' and '.join(budgets)}"
            chosen.setdefault(rate, []).append(label)
    return dict(sorted(chosen.items()))


def rank_shares(found: Findings) -> list[dict[str, Any]]:
    """Of every arm at the first planned budget, from which others differ little: its ranks, its parameters on attention
    and in the first half of the blocks as shares of all, and whether some module's rank differs between seeds.
    """
    ranks, budgets = found.ranks[found.ranks["phase"] == Phase.EVALUATION], found.facts["spec"]["budgets"]
    budget = next((b for b in budgets if (ranks["budget"] == b).any()), None)
    shares = []
    for arm, own in ranks[ranks["budget"] == budget].groupby("arm", sort=False):
        size, early = own["parameters"], own["depth"] < (own["depth"].max() + 1) / 2
        shares.append({
            "arm": str(arm), "budget": budget, "least": int(own["rank"].min()), "most": int(own["rank"].max()),
            "attention": size[own["kind"] == "attention"].sum() / size.sum(),
            "first_half": size[early].sum() / size.sum(),
            "by_seed": bool((own.groupby("module")["rank"].nunique() > 1).any()),
        })  # fmt: skip
    return shares


def training(found: Findings) -> dict[str, Any] | None:
    """Hours of planning and training, devices, and days in UTC by the ledger's own clock, which tables of an export do
    not have; None before the first run has ended.
    """
    done = found.runs[found.runs["status"] == Status.COMPLETED]
    if done.empty:
        return None
    days = [f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d}" for moment in found.period or ()]
    return {
        "days": list(dict.fromkeys(days)), "hours": float(done[["train_seconds", "plan_seconds"]].sum().sum()) / 3600,
        "median_seconds": float(done["train_seconds"].median()),
        "devices": list(dict.fromkeys(done["device"].dropna())),
    }  # fmt: skip
