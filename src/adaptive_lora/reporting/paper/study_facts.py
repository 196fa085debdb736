"""From findings to named facts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.paper.facts import NATS, Facts
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.outcomes import count_no_better
from adaptive_lora.stats.power import POWER
from adaptive_lora.stats.rate_choice import STEP
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.stats.stability import summaries

Entries = Iterator[Mapping[str, Any]]
"""Name -> value, or (value, form, unit), of facts that belong together."""

_DATA_COUNTS = (
    "records", "unusable", "truncated_test", "rows", "duplicates", "empty", "idle", "truncated_validation",
    "truncated_training", "unknown_records", "unknown_tokens", "control_records",
)  # fmt: skip


def gather(found: Findings) -> Facts:
    """All facts of a finished study; PaperError where runs are still to come."""
    if missing := (status := found.status()).left:
        raise PaperError(
            f"{missing} of {status.expected} runs have no result, so that there is nothing to conclude yet; "
            "`adaptive-lora run` goes on with the study, `adaptive-lora report` shows what there is."
        )
    if not any(arm.arm in found.contenders for arm in found.compared):
        raise PaperError("No arm of this study has finished beside the baseline, so that there is nothing to compare.")
    parts = (_model_and_data, _training, _protocol_and_runs, _sizes, _stability)
    return Facts(*(entries for part in parts for entries in part(found)))


def short_name(source: str) -> str:
    """What a model or a source of data is called, without the place where it lies.

    >>> short_name("${ASSETS}/models/tiny"), short_name("${ASSETS}/alpaca_9k.json"), short_name("owner/name")
    ('tiny', 'alpaca_9k.json', 'owner/name')
    >>> short_name("${MINE:-owner/name}"), short_name("${ADAPTIVE_LORA_REASONING}")
    ('owner/name', 'reasoning')
    """
    if alone := re.fullmatch(r"\$\{(?:ADAPTIVE_LORA_)?(\w+)\}", source):
        return alone[1].lower()
    if source.startswith("${") and ":-" in source and source.endswith("}"):
        source = source.removesuffix("}").partition(":-")[2]
    return source.rsplit("/", 1)[-1] if source.startswith(("$", "/", ".", "~")) else source


def winners(found: Findings, budget: str, names: Sequence[str]) -> dict[str, int]:
    """Of these arms and the baseline: on how many seeds each has the lowest test loss, the most frequent first.

    Seeds that not all of them have are left out.
    """
    own = [arm for arm in found.arms if arm.budget == budget and arm.arm in names]
    differences = pd.DataFrame({arm.arm: dict(arm.differences) for arm in own}).dropna().sort_index()
    differences.insert(0, found.baseline, 0.0)
    return dict(Counter(differences.idxmin(axis=1)).most_common())


def _model_and_data(found: Findings) -> Entries:
    model, data, asked = found.facts["model"], found.facts["data"], found.facts["spec"]["data"]
    modules = found.ranks.drop_duplicates("module")
    note = f" ({model['note']})" if model.get("note") else ""  # stands wherever the model is named
    truncated = data.get("truncated_test")
    percent = 100 * truncated / asked["test"] if truncated and asked["test"] else None
    yield {
        "study": found.facts["name"], "identity": found.facts["identity"][:12],
        "model": ("the embedded demo model" if model["name"] == "demo" else short_name(model["name"])) + note,
        "model.parameters": (model["total_parameters"], ",d"), "model.context": (model["context"], ",d"),
        "model.dtype": model["dtype"],
        "model.revision": str(model.get("revision") or "").rpartition("sha256:")[2][:12],
        "modules": (model["target_modules"], ",d"), "blocks": (modules["depth"].nunique() or None, "d"),
        "data": short_name(data["source"]), "data.fingerprint": data["fingerprint"][:12],
        "data.licence": data.get("licence"), "data.template": data.get("template") or asked.get("template"),
        "data.template_date": data.get("template_date"),
        "data.truncated_percent": (percent, ".0f", "%"),
    }  # fmt: skip
    yield {f"modules.{kind}": (int((modules["kind"] == kind).sum()), "d") for kind in ("attention", "mlp", "other")}
    yield {f"data.{name}": (data.get(name), ",d") for name in _DATA_COUNTS}
    left_out = data.get("left_out")
    yield {
        "data.left_out": (None if left_out is None else sum(left_out.values()), ",d"),
        "data.unused_columns": (len(data.get("unused_columns") or ()) or None, ",d"),
    }
    yield {f"data.{name}": (asked.get(name), ",d") for name in ("train", "validation", "test", "max_length")}
    yield {f"versions.{name}": version for name, version in found.facts["versions"].items()}


def _training(found: Findings) -> Entries:
    spec, train = found.facts["spec"], found.facts["spec"]["train"]
    tuning = found.runs[found.runs["phase"] == Phase.TUNING]
    rates = sorted(set((tuning if len(tuning) else found.runs)["learning_rate"]))
    warmup, total = train["warmup"], found.facts["model"]["total_parameters"]
    yield {
        # Below 1 it is a share of the steps, else a number of them.
        "train.warmup": (100 * warmup if warmup < 1 else None, "g", "%"),
        "train.warmup_steps": (None if warmup < 1 else int(warmup), "d"),
        "train.schedule": train["schedule"], "train.rates": ", ".join(f"{rate:g}" for rate in rates),
        "scaling.rule": spec["scaling"]["rule"], "scaling.reference": (spec["scaling"]["reference"], "g"),
        "device": ", ".join(sorted(set(found.runs["device"].dropna()))),
    }  # fmt: skip
    if found.tuned_by_baseline:
        start = ", ".join(f"{rate:g}" for rate in train["learning_rate"])
        yield {"train.start": start, "train.step": (STEP, "g")}
    yield {f"train.{name}": (train.get(name), ",d") for name in ("steps", "batch_size")}
    yield {f"train.{name}": (train.get(name), "g") for name in ("epochs", "max_grad_norm", "dropout", "weight_decay")}
    for budget, size in found.facts["budgets"].items():
        percent = None if total is None else 100 * size / total
        yield {f"budget.{budget}": (size, ",d"), f"budget.{budget}.percent": (percent, ".2g", "%")}


def seeds_used(found: Findings) -> int:
    """The most evaluation seeds that any arm has: a study with looks may need fewer than it planned."""
    return max((arm.loss.n for arm in found.arms if arm.loss), default=0)


def _protocol_and_runs(found: Findings) -> Entries:
    seeds, comparisons = found.facts["spec"]["seeds"], len(found.judged)
    margin, alpha = found.margin, found.analysis["alpha"]
    records = max((own.records for own in found.differences.values()), default=1)
    twins = found.runs[(found.runs["replica"] > 0) & (found.runs["status"] == Status.COMPLETED)]
    yield {
        "baseline": found.baseline,
        "seeds": (len(seeds["evaluation"]), "d"), "seeds.used": (seeds_used(found), "d"),
        "seeds.tuning": (len(seeds["tuning"]), "d"), "alpha": (alpha, "g"),
        "margin": (margin, "g", NATS),
        "margin.perplexity": (None if margin is None else 100 * math.expm1(margin), ".1f", "%"),
        "yardstick": (found.yardstick, ".2g", NATS),
        "comparisons": (comparisons, "d"), "level": (95, "d", "%"), "level.verdict": (100 * (1 - alpha), "g", "%"),
        "level.breaks": (100 * (1 - alpha), "g", "%"),
        "level.equivalence": (100 * (1 - 2 * alpha), "g", "%"), "power": (100 * POWER, ".0f", "%"),
        # None where losses by record are not known, so that all is of one set of records.
        "records": (records if records > 1 else None, ",d"),
        "locked": found.lock.get("locked", "")[:10], "twins": (len(twins), "d"),
    }  # fmt: skip
    evaluation, diverged = evaluations(found.runs), found.runs["status"] == Status.DIVERGED
    yield {
        "runs": (len(found.runs), ",d"), "runs.tuning": (int((found.runs["phase"] == Phase.TUNING).sum()), ",d"),
        "runs.evaluation": (len(evaluation), ",d"), "runs.diverged": (int(diverged.sum()), ",d"),
        "runs.no_better": (count_no_better(found.runs), ",d"),
        "runs.no_better.evaluation": (count_no_better(evaluation), ",d"),
        "runs.diverged.evaluation": (int((evaluation["status"] == Status.DIVERGED).sum()), ",d"),
    }  # fmt: skip


def _sizes(found: Findings) -> Entries:
    """Of the differences of the study's own arms, and how these vary."""
    own, margins = [size for size in found.sizes if size.arm in found.contenders], found.margins
    inside = [size for size in own if size.budget in margins and abs(size.difference.mean) <= margins[size.budget]]
    spreads = [size.sd for size in own if size.sd is not None]
    tokens = {tokens for _, tokens in found.over_records.values()}
    yield {
        "compared": (len(own), "d"), "inside": (len(inside), "d"),
        "spread.median": (float(np.median(spreads)) if spreads else None, ".4f", NATS),
        "spread.largest": (max(spreads, default=None), ".4f", NATS),
        "data.test_tokens": (tokens.pop() if len(tokens) == 1 else None, ",d"),
    }  # fmt: skip


def _stability(found: Findings) -> Entries:
    seen = summaries(found.stability)
    spikes, clipped = ([v for s in seen if (v := getattr(s, name)) is not None] for name in ("spikes", "clipped"))
    if not seen:
        return
    yield {
        "stability.runs": (sum(s.seeds for s in seen), ",d"),
        "stability.diverged": (sum(s.diverged for s in seen), ",d"),
        "stability.no_better": (sum(s.no_better for s in seen), ",d"),
        "stability.spikes": (float(np.mean(spikes)) if spikes else None, ".2f"),
        "stability.clipped.least": (100 * min(clipped) if clipped else None, ".0f", "%"),
        "stability.clipped.most": (100 * max(clipped) if clipped else None, ".0f", "%"),
    }  # fmt: skip
