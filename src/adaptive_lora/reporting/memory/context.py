"""What the templates of the memory bank print: numbers, names and lists from a study's findings."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from typing import Any

from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.memory.next_steps import next_steps
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.cost_equivalents import at_equal_compute
from adaptive_lora.stats.power import MOST, POWER
from adaptive_lora.stats.run_table import Comparison, Phase, Status
from adaptive_lora.stats.seeds import smallest_p
from adaptive_lora.study.lock import verdicts_rest_on
from adaptive_lora.study.results import plain_name
from adaptive_lora.study.status import StudyStatus


def memory_context(found: Findings, runs: StudyStatus) -> dict[str, Any]:
    """All names that the templates know."""
    spec, analysis, lock = found.facts["spec"], found.analysis, lock_of(found.facts)
    rate = found.runs.loc[found.runs["phase"] == Phase.TUNING, "learning_rate"]
    compute = {plain_name(arm): plain_name(control) for arm, control in lock["controls"]["compute"].items()}
    return {
        "found": found, "facts": found.facts, "spec": spec, "analysis": analysis, "lock": lock, "runs": runs,
        "baseline": found.baseline,
        "arms": [name for arm in spec["arms"] if (name := plain_name(arm["name"])) != found.baseline],
        "scalings": [(plain_name(arm["name"]), arm["scaling"]["rule"]) for arm in spec["arms"] if arm.get("scaling")],
        "controls": [(plain_name(arm), source) for arm, source in lock["controls"]["arms"].items()],
        "compute_controls": sorted(set(compute.values())),
        "first_locked": lock.get("first", verdicts_rest_on(spec, lock["primary"])),
        "smallest_p": smallest_p(len(spec["seeds"]["evaluation"])),
        "margin_percent": 100 * math.expm1(analysis["margin"]),
        "verdicts": Counter(str(judgement.verdict) for judgement in found.judged.values()),
        "rates_added": sorted(set(rate) - set(spec["train"]["learning_rate"])),
        "arms_by_rate": arms_by_rate(found),
        "rank_budget": rank_budget(found),
        "rank_shares": rank_shares(found),
        "differences": differences(found),
        "equal_compute": at_equal_compute(found.runs, compute),
        "training": training(found),
        "relative_paths": has_relative_paths(spec),
        "licence": render("study.licence", found.facts["data"]).removesuffix("."),
        "power": POWER,
        "most_seeds": MOST,
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
        "verdict_sentences": verdicts,
        # The first sentence is the rule, which the report prints above its table.
        "stability_sentences": stable[1:] or stable,
        "edge_sentences": [render("rates.at_edge", edge) for edge in found.edges] if runs.tuned else [],
    }


def arms_by_rate(found: Findings) -> dict[float, list[str]]:
    """Chosen rate -> arms, with their budgets where these have different rates."""
    rates: dict[str, dict[str, float]] = {}
    for arm in found.arms:
        rates.setdefault(arm.arm, {})[arm.budget] = arm.learning_rate
    chosen: dict[float, list[str]] = {}
    for name, own in rates.items():
        for rate in sorted(set(own.values())):
            budgets = [budget for budget, at in own.items() if at == rate]
            chosen.setdefault(rate, []).append(
                name if len(budgets) == len(own) else f"{name} at {' and '.join(budgets)}"
            )
    return dict(sorted(chosen.items()))


def rank_budget(found: Findings) -> str | None:
    """The first budget of the study that has plans: what an arm does changes little from one to another."""
    planned = set(found.ranks["budget"])
    return next((b for b in map(plain_name, found.facts["spec"]["budgets"]) if b in planned), None)


def rank_shares(found: Findings) -> list[dict[str, Any]]:
    """Of every arm at `rank_budget`: its ranks, its parameters on attention and in the first half of the blocks as
    shares of all, and whether some module's rank differs between seeds.
    """
    ranks = found.ranks[(found.ranks["phase"] == Phase.EVALUATION) & (found.ranks["budget"] == rank_budget(found))]
    shares = []
    for arm, own in ranks.groupby("arm", sort=False):
        size, early = own["parameters"], own["depth"] < (own["depth"].max() + 1) / 2
        shares.append({
            "arm": str(arm), "least": int(own["rank"].min()), "most": int(own["rank"].max()),
            "attention": size[own["kind"] == "attention"].sum() / size.sum(),
            "first_half": size[early].sum() / size.sum(),
            "by_seed": bool((own.groupby("module")["rank"].nunique() > 1).any()),
        })  # fmt: skip
    return shares


def differences(found: Findings) -> dict[str, dict[str, tuple[Any, str | None]]]:
    """Arm -> budget -> its difference from the baseline, with the verdict where there is one."""
    table: dict[str, dict[str, tuple[Any, str | None]]] = {}
    for arm in found.arms:
        if arm.difference is not None:
            judged = found.judged.get(Comparison(arm.arm, arm.budget))
            table.setdefault(arm.arm, {})[arm.budget] = arm.difference, str(judged.verdict) if judged else None
    return table


def training(found: Findings) -> dict[str, Any] | None:
    """Days in UTC, hours of planning and training, and devices, by the ledger's own clock; None before the first run
    has ended, and of exports, which have no clock.
    """
    period, done = found.period, found.runs[found.runs["status"] == Status.COMPLETED]
    if period is None or done.empty:
        return None
    first, last = (datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat() for moment in period)
    hours = float(done["train_seconds"].sum() + done["plan_seconds"].sum()) / 3600
    return {
        "first": first, "last": last, "hours": hours, "median_seconds": float(done["train_seconds"].median()),
        "devices": list(dict.fromkeys(done["device"].dropna())),
    }  # fmt: skip


def has_relative_paths(spec: dict[str, Any]) -> bool:
    """Whether the study file names files by paths that start where it first stood."""
    named = [str(spec["data"]["source"]), str(spec["model"]["name"])]
    files = [name for name in named if name.startswith(".") or name.endswith((".json", ".jsonl", ".parquet"))]
    relative = any(not name.startswith(("/", "~", "$")) for name in files)
    return relative or any(arm.get("ranks") for arm in spec["arms"])
