"""How the study is made: what was trained, how each arm spent its ranks, on what, with what, for how long."""

from __future__ import annotations

import datetime
from typing import Any

import pandas as pd

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.formatting import counted, listed
from adaptive_lora.reporting.memory.standing import AGAIN, Standing
from adaptive_lora.reporting.memory.words import bullets, code, few, safe
from adaptive_lora.reporting.tables import Column, Row, Table, to_markdown
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.results import plain_name

MOST_ARMS = 12
"""Rows of a table of the bank."""


def system_patterns(found: Findings, standing: Standing) -> str:
    """Model, targets, scaling, training, and each arm's ranks."""
    spec, model = found.facts["spec"], found.facts["model"]
    scaling, targets = spec["scaling"], spec["targets"]
    named = safe(targets if isinstance(targets, str) else ", ".join(targets))
    said = [
        f"Frozen model: {code(model['name'])}, {model['total_parameters']:,} parameters, {safe(model['dtype'])}. "
        f"Targets: {named}, {counted(model['target_modules'], 'module')}.",
        f"Scaling: {safe(scaling['rule'])}, {scaling['reference']:g} at the rank of a uniform plan"
        f"{_own_scalings(found)}.",
        f"Training: {_training(spec['train'])}. Engine: {safe(spec['engine'])}.",
    ]
    table = _ranks(found)
    return "\n\n".join([bullets(said), table or "No plan is recorded yet."])


def _own_scalings(found: Findings) -> str:
    own = [f"{plain_name(arm['name'])} has {safe(arm['scaling']['rule'])}"
           for arm in found.facts["spec"]["arms"] if arm.get("scaling")]  # fmt: skip
    return f"; {few(own, 4)}" if own else ""


def _training(train: dict[str, Any]) -> str:
    length = counted(train["steps"], "step") if train.get("steps") else f"{train['epochs']:g} epochs"
    said = [f"{length} of {counted(train['batch_size'], 'sequence')}", f"{safe(train['schedule'])} schedule"]
    warmup = train.get("warmup")
    if warmup:
        said.append(f"warm-up of {100 * warmup:g} %" if warmup < 1 else f"warm-up of {warmup:g} steps")
    said += [f"{name} {train[key]:g}" for key, name in (("dropout", "dropout"), ("weight_decay", "weight decay"),
             ("max_grad_norm", "gradients clipped at")) if train.get(key)]  # fmt: skip
    return ", ".join(said)


def _ranks(found: Findings) -> str:
    """At one budget: what an arm does with it changes little from one to another."""
    ranks = found.ranks
    ranks = ranks[ranks["phase"] == Phase.EVALUATION] if len(ranks) else ranks
    if ranks.empty:
        return ""
    budget = next((b for b in map(plain_name, found.facts["spec"]["budgets"]) if (ranks["budget"] == b).any()), None)
    ranks = ranks[ranks["budget"] == budget] if budget else ranks
    arms = list(dict.fromkeys(ranks["arm"]))
    columns = (
        Column("arm", "arm", "text"),
        Column("ranks", "ranks", "text"),
        Column("attention", "on attention", form=".0%"),
        Column("early", "in the first half of blocks", form=".0%"),
    )
    rows = tuple(Row(_spent(arm, ranks[ranks["arm"] == arm])) for arm in arms[:MOST_ARMS])
    more = f" {len(arms) - MOST_ARMS} more arms in the report." if len(arms) > MOST_ARMS else ""
    where = f" at {budget}" if found.several_budgets and budget else ""
    drawn = [arm for arm in arms if _differ(ranks[ranks["arm"] == arm])]
    seeds = f" Made anew for every seed: {few(drawn)}." if drawn else ""
    caption = f"Ranks{where}, and shares of the trainable parameters.{seeds}{more}"
    return to_markdown(Table("spent", "Ranks", columns, rows, caption)).strip()


def _spent(arm: str, ranks: pd.DataFrame) -> tuple[str, str, float, float]:
    total = ranks["parameters"].sum()
    low, high = int(ranks["rank"].min()), int(ranks["rank"].max())
    attention = ranks.loc[ranks["kind"] == "attention", "parameters"].sum() / total
    early = ranks.loc[ranks["depth"] < (ranks["depth"].max() + 1) / 2, "parameters"].sum() / total
    return arm, f"{low}" if low == high else f"{low} to {high}", attention, early


def _differ(ranks: pd.DataFrame) -> bool:
    return bool((ranks.groupby("module", sort=False)["rank"].nunique() > 1).any())


def tech_context(found: Findings, standing: Standing) -> str:
    """Versions, fingerprints, times, and how to do it again."""
    facts, spec = found.facts, found.facts["spec"]
    data, model = facts["data"], facts["model"]
    versions = ", ".join(f"{safe(name, 40)} {safe(version, 40)}" for name, version in facts["versions"].items())
    done = found.runs[found.runs["status"] == Status.COMPLETED]
    devices = [safe(device) for device in dict.fromkeys(done["device"].dropna())]
    return bullets(
        [
            f"Versions: {versions}.",
            f"Device: {listed(devices) if devices else 'none yet'}. {_times(found, done)}",
            f"Model: {code(model['name'])}, revision {code(model['revision'])}.",
            f"Data: {code(data['source'])}, {data['records']:,} records, {spec['data']['train']:,} train, "
            f"{spec['data']['validation']:,} validation, {spec['data']['test']:,} test, disjoint by content. "
            f"Fingerprint {code(data['fingerprint'])}.",
            f"Study file: study.yaml, content {code(facts['identity'])}.",
            f"To go on, from this folder: {AGAIN}.{_paths(found)} To repeat, name an empty folder: all randomness "
            "follows from the seeds by name, so that the same versions on the same device train the same adapters.",
            "Report, tables and these texts follow from study.db alone, byte for byte.",
        ]
    )


def _paths(found: Findings) -> str:
    """The folder's copy of the study file has the paths that the first one had."""
    spec = found.facts["spec"]
    named = [str(spec["data"]["source"]), str(spec["model"]["name"])]
    relative = [name for name in named if name.startswith(".") or name.endswith((".json", ".jsonl", ".parquet"))]
    relative = [name for name in relative if not name.startswith(("/", "~", "$"))]
    if relative or any(arm.get("ranks") for arm in spec["arms"]):
        return " (Relative paths in it start where the study file first stood: name that one.)"
    return ""


def _times(found: Findings, done: pd.DataFrame) -> str:
    """From the ledger's own clock, so that the same ledger says the same."""
    period = found.source.period()
    if period is None or done.empty:
        return "Nothing has been trained yet."
    first, last = (datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat() for moment in period)
    when = f"on {first}" if first == last else f"from {first} to {last}"
    hours = float(done["train_seconds"].sum() + done["plan_seconds"].sum()) / 3600
    spent = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    median = float(done["train_seconds"].median())
    return (
        f"Trained {when} (UTC), {spent} in all; median {median:.1f} s a run, by share of tokens where runs share a "
        "bank."
    )
