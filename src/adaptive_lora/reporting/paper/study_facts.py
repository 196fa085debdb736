"""From findings to named facts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.paper.facts import NATS, Facts
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.cost_equivalents import at_equal_compute
from adaptive_lora.stats.power import POWER, power_by_arm
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.stats.seeds import seeds_needed, smallest_p
from adaptive_lora.stats.stability import summaries
from adaptive_lora.study.results import plain_name

Entries = Iterator[Mapping[str, Any]]
"""Name -> value, or (value, form, unit), of facts that belong together."""


def gather(found: Findings) -> Facts:
    """All facts of a finished study; PaperError where runs are still to come."""
    if missing := (status := found.status()).left:
        raise PaperError(
            f"{missing} of {status.expected} runs have no result, so that there is nothing to conclude yet; "
            "`adaptive-lora run` goes on with the study, `adaptive-lora report` shows what there is."
        )
    if not any(arm.difference and arm.arm in contenders(found) for arm in found.arms):
        raise PaperError("No arm of this study has finished beside the baseline, so that there is nothing to compare.")
    parts = (_model_and_data, _training, _protocol_and_runs, _arms, _extremes, _comparisons, _controls, _stability)
    return Facts(*(entries for part in parts for entries in part(found)))


def short_name(source: str) -> str:
    """What a model or a source of data is called, without the place where it lies.

    >>> short_name("${ASSETS}/models/tiny"), short_name("${ASSETS}/alpaca_9k.json"), short_name("owner/name")
    ('tiny', 'alpaca_9k.json', 'owner/name')
    """
    return source.rsplit("/", 1)[-1] if source.startswith(("$", "/", ".", "~")) else source


def contenders(found: Findings) -> list[str]:
    """The study's own arms beside the baseline; controls, which may train longer, are none."""
    names = [plain_name(arm["name"]) for arm in found.facts["spec"]["arms"]]
    return [name for name in names if name != found.baseline]


def winners(found: Findings, budget: str, names: Sequence[str]) -> dict[str, int]:
    """Of these arms and the baseline: on how many seeds each has the lowest test loss, the most frequent first.

    Seeds that not all of them have are left out.
    """
    by_arm = {arm.arm: dict(arm.differences) for arm in found.arms if arm.budget == budget and arm.arm in names}
    seeds = set.intersection(*(set(by_seed) for by_seed in by_arm.values())) if by_arm else set()
    lowest: Counter[str] = Counter()
    for seed in sorted(seeds):
        differences = {found.baseline: 0.0, **{name: by_seed[seed] for name, by_seed in by_arm.items()}}
        lowest[min(differences, key=lambda name: differences[name])] += 1
    return dict(lowest.most_common())


def _model_and_data(found: Findings) -> Entries:
    model, data, asked = found.facts["model"], found.facts["data"], found.facts["spec"]["data"]
    modules = found.ranks.drop_duplicates("module")
    truncated = data.get("truncated_test")
    percent = 100 * truncated / asked["test"] if truncated and asked["test"] else None
    yield {
        "study": found.facts["name"], "identity": found.facts["identity"][:12],
        "model": "the embedded demo model" if model["name"] == "demo" else short_name(model["name"]),
        "model.parameters": (model["total_parameters"], ",d"), "model.context": (model["context"], ",d"),
        "model.dtype": model["dtype"],
        "model.revision": str(model.get("revision") or "").removeprefix("sha256:")[:12],
        "modules": (model["target_modules"], ",d"), "blocks": (modules["depth"].nunique() or None, "d"),
        "data": short_name(data["source"]), "data.fingerprint": data["fingerprint"][:12],
        "data.licence": data.get("licence"), "licence.alpaca": "CC BY-NC 4.0", "data.template": asked.get("template"),
        "data.truncated_percent": (percent, ".0f", "%"),
    }  # fmt: skip
    yield {f"modules.{kind}": (int((modules["kind"] == kind).sum()), "d") for kind in ("attention", "mlp", "other")}
    yield {f"data.{name}": (data.get(name), ",d") for name in ("records", "unusable", "truncated_test")}
    yield {f"data.{name}": (asked.get(name), ",d") for name in ("train", "validation", "test", "max_length")}
    yield {f"versions.{name}": version for name, version in found.facts["versions"].items()}


def _training(found: Findings) -> Entries:
    spec, train = found.facts["spec"], found.facts["spec"]["train"]
    tuning = found.runs[found.runs["phase"] == Phase.TUNING]
    rates = sorted(set((tuning if len(tuning) else found.runs)["learning_rate"]))
    warmup, total = train["warmup"], found.facts["model"]["total_parameters"]
    yield {
        "train.steps": (train.get("steps"), ",d"), "train.epochs": (train.get("epochs"), "g"),
        "train.batch_size": (train["batch_size"], "d"), "train.schedule": train["schedule"],
        # Below 1 it is a share of the steps, else a number of them.
        "train.warmup": (100 * warmup if warmup < 1 else None, "g", "%"),
        "train.warmup_steps": (None if warmup < 1 else int(warmup), "d"),
        "train.max_grad_norm": (train.get("max_grad_norm"), "g"), "train.dropout": (train["dropout"], "g"),
        "train.weight_decay": (train["weight_decay"], "g"), "train.rates": ", ".join(f"{rate:g}" for rate in rates),
        "scaling.rule": spec["scaling"]["rule"], "scaling.reference": (spec["scaling"]["reference"], "g"),
        "device": ", ".join(sorted(set(found.runs["device"].dropna()))),
    }  # fmt: skip
    for budget, size in found.facts["budgets"].items():
        percent = None if total is None else 100 * size / total
        yield {f"budget.{budget}": (size, ",d"), f"budget.{budget}.percent": (percent, ".2g", "%")}


def _protocol_and_runs(found: Findings) -> Entries:
    seeds, comparisons = found.facts["spec"]["seeds"], len(found.judged)
    margin, alpha = found.analysis["margin"], found.analysis["alpha"]
    twins = found.runs[(found.runs["replica"] > 0) & (found.runs["status"] == Status.COMPLETED)]
    yield {
        "baseline": found.baseline,
        "seeds": (len(seeds["evaluation"]), "d"), "seeds.tuning": (len(seeds["tuning"]), "d"), "alpha": (alpha, "g"),
        "margin": (margin, "g", NATS), "margin.perplexity": (100 * math.expm1(margin), ".1f", "%"),
        "comparisons": (comparisons, "d"), "smallest_p": (smallest_p(len(seeds["evaluation"])), ".2g"),
        "seeds.needed": (seeds_needed(alpha, max(comparisons, 1)), "d"), "level": (95, "d", "%"),
        "level.equivalence": (100 * (1 - 2 * alpha), "g", "%"), "deviations": (len(found.deviations), "d"),
        "locked": lock_of(found.facts).get("locked", "")[:10], "twins": (len(twins), "d"),
    }  # fmt: skip
    evaluation, diverged = evaluations(found.runs), found.runs["status"] == Status.DIVERGED
    yield {
        "runs": (len(found.runs), ",d"), "runs.tuning": (int((found.runs["phase"] == Phase.TUNING).sum()), ",d"),
        "runs.evaluation": (len(evaluation), ",d"), "runs.diverged": (int(diverged.sum()), ",d"),
        "runs.diverged.evaluation": (int((evaluation["status"] == Status.DIVERGED).sum()), ",d"),
        "frozen": (found.base_loss, ".4f", NATS),
    }  # fmt: skip


def _arms(found: Findings) -> Entries:
    """`ARM@BUDGET.loss` and the like."""
    for arm in found.arms:
        key, gain = f"{arm.arm}@{arm.budget}", None
        if arm.is_baseline and arm.loss and found.base_loss is not None:
            gain = found.base_loss - arm.loss.mean
        yield {
            f"{key}.loss": (arm.loss, ".4f", NATS), f"{key}.difference": (arm.difference, "+.4f", NATS),
            f"{key}.same": (arm.same or None, "d"), f"{key}.n": (arm.loss.n if arm.loss else 0, "d"),
            f"{key}.gain": (gain, ".3f", NATS),
        }  # fmt: skip
    for (name, budget), (interval, _) in found.over_records.items():
        yield {f"{name}@{budget}.over_records": (interval, "+.4f", NATS)}
    tokens = {tokens for _, tokens in found.over_records.values()}
    yield {"data.test_tokens": (tokens.pop() if len(tokens) == 1 else None, ",d")}


def _extremes(found: Findings) -> Entries:
    """The lowest and the highest difference of the study's own arms, and how these vary."""
    own = sorted((s for s in found.sizes if s.arm in contenders(found)), key=lambda s: s.over_seeds.mean)
    spreads = [size.sd for size in own if size.sd is not None]
    differences = {(arm.arm, arm.budget): arm.difference for arm in found.arms}
    for name, size in (("best", own[0]), ("worst", own[-1])):
        difference = differences[size.arm, size.budget]
        yield {f"{name}.arm": size.arm, f"{name}.budget": size.budget, f"{name}.difference": (difference, "+.4f", NATS)}
    effect, margin = own[0].effect, found.analysis["margin"]
    share, frozen = effect.share_of_gain, found.base_loss is not None
    yield {
        "compared": (len(own), "d"), "inside": (sum(abs(size.over_seeds.mean) <= margin for size in own), "d"),
        "spread.median": (float(np.median(spreads)) if spreads else None, ".4f", NATS),
        "spread.largest": (max(spreads, default=None), ".4f", NATS),
        "best.perplexity_percent": (effect.perplexity_percent if frozen else None, "+.2f", "%"),
        "best.share_of_gain": (None if share is None else 100 * share, "+.2f", "%"),
    }  # fmt: skip


def _comparisons(found: Findings) -> Entries:
    """`ARM@BUDGET.verdict.p` and the like, of primary comparisons."""
    for comparison, judged in found.judged.items():
        key = f"{comparison.arm}@{comparison.budget}.verdict"
        yield {
            f"{key}.size": (None if judged.mean is None else abs(judged.mean), ".4f"),
            f"{key}.equivalence_interval": (judged.equivalence_interval, "+.4f", NATS),
            f"{key}.interval": (judged.interval, "+.4f", NATS),
            f"{key}.p": (judged.p, ".3g"), f"{key}.holm": (judged.adjusted_p, ".3g"), f"{key}.n": (judged.n, "d"),
            f"{key}.needed": (judged.needed, ",d"),
            f"{key}.wins": (judged.improvement.mean * judged.n if judged.improvement else None, "g"),
        }  # fmt: skip


def _controls(found: Findings) -> Entries:
    """Half of a budget, equal compute, and power by the spread as found."""
    for assay in found.assays:
        yield {f"assay.{assay.budget}": (assay.loss_of_half, "+.4f", NATS)}
    controls: Mapping[str, str] = lock_of(found.facts).get("controls", {}).get("compute", {})
    for equal in at_equal_compute(found.runs, controls):
        key = f"compute.{equal.arm}@{equal.budget}"
        yield {key: (equal.difference, "+.4f", NATS), f"{key}.control": equal.control}
    if seen := sorted(power_by_arm(found.arms, found.design), key=lambda o: o.sd):
        median = seen[len(seen) // 2]
        yield {
            "power": (100 * POWER, ".0f", "%"), "power.detectable": (median.detectable, ".4f", NATS),
            "power.seeds_for_margin": (median.seeds_for_margin, ",d"),
            "power.seeds_for_equivalence": (median.seeds_for_equivalence, ",d"),
        }  # fmt: skip


def _stability(found: Findings) -> Entries:
    seen = summaries(found.stability)
    spikes, clipped = ([v for s in seen if (v := getattr(s, name)) is not None] for name in ("spikes", "clipped"))
    excess = [(s.excess.mean, s) for s in seen if s.excess is not None and s.excess.low is not None]
    if not seen:
        return
    yield {
        "stability.runs": (sum(s.seeds for s in seen), ",d"),
        "stability.diverged": (sum(s.diverged for s in seen), ",d"),
        "stability.spikes": (float(np.mean(spikes)) if spikes else None, ".2f"),
        "stability.clipped.least": (100 * min(clipped) if clipped else None, ".0f", "%"),
        "stability.clipped.most": (100 * max(clipped) if clipped else None, ".0f", "%"),
    }  # fmt: skip
    if excess:
        _, worst = max(excess, key=lambda pair: pair[0])
        yield {
            "stability.worst": (worst.excess, "+.4f", NATS), "stability.worst.arm": worst.arm,
            "stability.worst.budget": worst.budget, "stability.worst.rate": (worst.learning_rate, "g"),
        }  # fmt: skip
