"""From findings to named facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.paper.beside import winners
from adaptive_lora.reporting.paper.facts import Collected, Facts
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.stats.cost_equivalents import at_equal_compute
from adaptive_lora.stats.estimators import effects
from adaptive_lora.stats.power import POWER, Design, power_by_arm
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.stats.seeds import seeds_needed, smallest_p
from adaptive_lora.stats.stability import summaries
from adaptive_lora.study.results import plain_name

NATS = "nats per token"


def gather(found: Findings) -> Facts:
    """All facts of a finished study; PaperError where runs are still to come."""
    _check_whole(found)
    facts = Collected()
    for part in (_material, _training, _protocol, _runs, _arms, _comparisons, _beside, _alone, _stability):
        part(facts, found)
    return facts.done()


def _check_whole(found: Findings) -> None:
    unfinished = found.runs[~found.runs["status"].isin([Status.COMPLETED, Status.DIVERGED])]
    missing = max(found.expected - len(found.runs), 0) + len(unfinished)
    if missing:
        raise PaperError(
            f"{missing} of {found.expected} runs have no result, so that there is nothing to conclude yet; "
            "`adaptive-lora run` goes on with the study, `adaptive-lora report` shows what there is."
        )


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


def _material(facts: Collected, found: Findings) -> None:
    model, data, spec = found.facts["model"], found.facts["data"], found.facts["spec"]
    facts.add("study", found.facts["name"])
    facts.add("identity", str(found.facts["identity"])[:12])
    facts.add("model", "the embedded demo model" if model["name"] == "demo" else short_name(model["name"]))
    facts.add("model.parameters", model.get("total_parameters"), ",d")
    facts.add("model.context", model.get("context"), ",d")
    facts.add("model.dtype", model.get("dtype"))
    facts.add("model.revision", str(model.get("revision") or "").removeprefix("sha256:")[:12])
    facts.add("modules", model.get("target_modules"), ",d")
    own = found.ranks.drop_duplicates("module")
    facts.add("blocks", own["depth"].nunique() or None, "d")
    for kind in ("attention", "mlp", "other"):
        facts.add(f"modules.{kind}", int((own["kind"] == kind).sum()), "d")
    facts.add("data", short_name(data["source"]))
    for name in ("records", "unusable", "duplicates", "truncated_test"):
        facts.add(f"data.{name}", data.get(name), ",d")
    facts.add("data.truncated_percent", _share(data.get("truncated_test"), spec["data"]["test"]), ".0f", "%")
    facts.add("data.fingerprint", str(data.get("fingerprint") or "")[:12])
    facts.add("data.licence", data.get("licence"))
    facts.add("licence.alpaca", "CC BY-NC 4.0")
    facts.add("data.template", spec["data"].get("template"))
    for name in ("train", "validation", "test", "max_length"):
        facts.add(f"data.{name}", spec["data"].get(name), ",d")
    for name, version in found.facts["versions"].items():
        facts.add(f"versions.{name}", version)


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else 100 * part / whole


def _training(facts: Collected, found: Findings) -> None:
    spec = found.facts["spec"]
    train = spec["train"]
    facts.add("train.steps", train.get("steps"), ",d")
    facts.add("train.epochs", train.get("epochs"), "g")
    facts.add("train.batch_size", train.get("batch_size"), "d")
    facts.add("train.schedule", train.get("schedule"))
    facts.add("train.warmup", *_warmup(train["warmup"]))
    facts.add("train.max_grad_norm", train.get("max_grad_norm"), "g")
    facts.add("train.dropout", train.get("dropout"), "g")
    facts.add("train.weight_decay", train.get("weight_decay"), "g")
    tuning = found.runs[found.runs["phase"] == Phase.TUNING]
    rates = sorted(set(tuning["learning_rate"] if len(tuning) else found.runs["learning_rate"]))
    facts.add("train.rates", ", ".join(f"{rate:g}" for rate in rates))
    facts.add("train.rates.count", len(rates), "d")
    facts.add("scaling.rule", spec["scaling"]["rule"])
    facts.add("scaling.reference", spec["scaling"]["reference"], "g")
    engines = sorted({str(engine).split(" ")[0] for engine in found.runs["engine"].dropna()})
    facts.add("engine", " and ".join(engines))
    facts.add("device", ", ".join(sorted(set(found.runs["device"].dropna()))))
    total = found.facts["model"].get("total_parameters")
    for budget, size in found.facts["budgets"].items():
        facts.add(f"budget.{budget}", size, ",d")
        facts.add(f"budget.{budget}.percent", _share(size, total), ".2g", "%")


def _warmup(warmup: float) -> tuple[float, str, str]:
    """Value, form and unit: below 1 it is a share of the steps, else a number of them."""
    if warmup < 1:
        return 100 * warmup, "g", "% of the steps"
    return int(warmup), "d", "step" if int(warmup) == 1 else "steps"


def _protocol(facts: Collected, found: Findings) -> None:
    seeds = len(found.facts["spec"]["seeds"]["evaluation"])
    margin, alpha = found.analysis["margin"], found.analysis["alpha"]
    facts.add("baseline", found.baseline)
    facts.add("seeds", seeds, "d")
    facts.add("seeds.tuning", len(found.facts["spec"]["seeds"]["tuning"]), "d")
    facts.add("margin", margin, "g", NATS)
    facts.add("margin.bare", margin, "g")
    facts.add("margin.perplexity", 100 * math.expm1(margin), ".1f", "%")
    facts.add("alpha", alpha, "g")
    facts.add("comparisons", len(found.judged), "d")
    facts.add("smallest_p", smallest_p(seeds), ".2g")
    facts.add("seeds.needed", seeds_needed(alpha, max(len(found.judged), 1)), "d")
    facts.add("level", 95, "d", "%")
    facts.add("level.equivalence", 100 * (1 - 2 * alpha), "g", "%")
    facts.add("deviations", len(found.deviations), "d")
    facts.add("locked", str(lock_of(found.facts).get("locked", ""))[:10])
    twins = found.runs[(found.runs["replica"] > 0) & (found.runs["status"] == Status.COMPLETED)]
    facts.add("twins", len(twins), "d")


def _runs(facts: Collected, found: Findings) -> None:
    counted = evaluations(found.runs)
    facts.add("runs", len(found.runs), ",d")
    facts.add("runs.tuning", int((found.runs["phase"] == Phase.TUNING).sum()), ",d")
    facts.add("runs.evaluation", len(counted), ",d")
    facts.add("runs.diverged", int((found.runs["status"] == Status.DIVERGED).sum()), ",d")
    facts.add("runs.diverged.evaluation", int((counted["status"] == Status.DIVERGED).sum()), ",d")
    facts.add("frozen", found.base_loss, ".4f", NATS)


def _arms(facts: Collected, found: Findings) -> None:
    """`ARM@BUDGET.loss` and the like."""
    for arm in found.arms:
        key = f"{arm.arm}@{arm.budget}"
        facts.add(f"{key}.loss", arm.loss, ".4f", NATS)
        facts.add(f"{key}.loss.mean", arm.loss.mean if arm.loss else None, ".4f")
        facts.add(f"{key}.perplexity", arm.perplexity, ".2f")
        facts.add(f"{key}.difference", arm.difference, "+.4f", NATS)
        facts.add(f"{key}.same", arm.same or None, "d")
        facts.add(f"{key}.n", arm.loss.n if arm.loss else 0, "d")
        facts.add(f"{key}.rate", arm.learning_rate, "g")
        facts.add(f"{key}.plan_seconds", arm.plan_seconds, ".3g", "s")
        facts.add(f"{key}.train_seconds", arm.train_seconds, ".3g", "s")
        facts.add(f"{key}.exact_match", arm.exact_match, ".1%")
        if arm.is_baseline and arm.loss and found.base_loss is not None:
            facts.add(f"{key}.gain", found.base_loss - arm.loss.mean, ".3f", NATS)
    own = [a for a in found.arms if a.difference and a.arm in contenders(found)]
    if not own:
        raise PaperError("No arm of this study has finished beside the baseline, so that there is nothing to compare.")
    compared = sorted(own, key=lambda a: a.difference.mean if a.difference else 0)
    for name, one in (("best", compared[:1]), ("worst", compared[-1:])):
        for arm in one:
            facts.add(f"{name}.arm", arm.arm)
            facts.add(f"{name}.budget", arm.budget)
            facts.add(f"{name}.difference", arm.difference, "+.4f", NATS)
    margin = found.analysis["margin"]
    facts.add("compared", len(compared), "d")
    facts.add("inside", sum(abs(a.difference.mean) <= margin for a in compared if a.difference), "d")
    spreads = [float(np.std([d for _, d in a.differences], ddof=1)) for a in compared if len(a.differences) > 1]
    if spreads:
        facts.add("spread.median", float(np.median(spreads)), ".4f", NATS)
        facts.add("spread.largest", max(spreads), ".4f", NATS)
    if compared and found.base_loss is not None:
        _worth(facts, found, compared[0].budget, compared[0].difference.mean if compared[0].difference else 0.0)


def _worth(facts: Collected, found: Findings, budget: str, difference: float) -> None:
    """What the lowest difference is in other units."""
    base = next(a.loss.mean for a in found.arms if a.is_baseline and a.budget == budget and a.loss)
    effect = effects(difference, base, found.base_loss, None, None)
    facts.add("best.perplexity_percent", effect.perplexity_percent, "+.2f", "%")
    facts.add("best.share_of_gain", None if effect.share_of_gain is None else 100 * effect.share_of_gain, "+.2f", "%")


def _comparisons(facts: Collected, found: Findings) -> None:
    """`ARM@BUDGET.verdict.p` and the like, of primary comparisons."""
    for comparison, judged in found.judged.items():
        key = f"{comparison.arm}@{comparison.budget}.verdict"
        facts.add(key, render("comparisons.verdict", judged))
        facts.add(f"{key}.size", abs(judged.mean) if judged.mean is not None else None, ".4f", NATS)
        facts.add(f"{key}.interval90", judged.equivalence_interval, "+.4f", NATS)
        facts.add(f"{key}.interval95", judged.interval, "+.4f", NATS)
        facts.add(f"{key}.p", judged.p, ".3g")
        facts.add(f"{key}.holm", judged.adjusted_p, ".3g")
        facts.add(f"{key}.n", judged.n, "d")
        facts.add(f"{key}.needed", judged.needed, ",d")
        facts.add(f"{key}.wins", judged.improvement.mean * judged.n if judged.improvement else None, "g")


def _beside(facts: Collected, found: Findings) -> None:
    """Controls, power, and what the differences are over test records."""
    for assay in found.assays:
        facts.add(f"assay.{assay.budget}", assay.loss_of_half, "+.4f", NATS)
        facts.add(f"assay.{assay.budget}.half", assay.half)
    controls: Mapping[str, str] = lock_of(found.facts).get("controls", {}).get("compute", {})
    for equal in at_equal_compute(found.runs, controls):
        facts.add(f"compute.{equal.arm}@{equal.budget}", equal.difference, "+.4f", NATS)
        facts.add(f"compute.{equal.arm}@{equal.budget}.control", equal.control)
    question = Design(
        len(found.facts["spec"]["seeds"]["evaluation"]), found.analysis["alpha"], max(1, len(found.judged)),
        found.analysis["margin"],
    )  # fmt: skip
    seen = sorted(power_by_arm(found.arms, question), key=lambda o: o.sd)
    if seen:
        facts.add("power", 100 * POWER, ".0f", "%")
        facts.add("power.detectable", seen[len(seen) // 2].detectable, ".4f", NATS)
        facts.add("power.seeds_for_margin", seen[len(seen) // 2].seeds_for_margin, ",d")
        facts.add("power.seeds_for_equivalence", seen[len(seen) // 2].seeds_for_equivalence, ",d")
    for (arm, budget), (interval, _) in found.over_records.items():
        facts.add(f"{arm}@{budget}.over_records", interval, "+.4f", NATS)
    tokens_seen: set[Any] = {tokens for _, tokens in found.over_records.values()}
    facts.add("data.test_tokens", next(iter(tokens_seen)) if len(tokens_seen) == 1 else None, ",d")


def _alone(facts: Collected, found: Findings) -> None:
    """What each seed would have said by itself, as a study of one run an arm does."""
    for budget in found.facts["spec"]["budgets"]:
        lowest = winners(found, budget, contenders(found))
        facts.add(f"alone.{budget}", listed([f"{arm} on {n}" for arm, n in lowest.items()]) if lowest else None)
        facts.add(f"alone.{budget}.different", len(lowest) or None, "d")
        facts.add(f"alone.{budget}.seeds", sum(lowest.values()) or None, "d")


def _stability(facts: Collected, found: Findings) -> None:
    seen = summaries(found.stability)
    if not seen:
        return
    facts.add("stability.rows", len(seen), "d")
    facts.add("stability.runs", sum(s.seeds for s in seen), ",d")
    facts.add("stability.diverged", sum(s.diverged for s in seen), ",d")
    spikes = [s.spikes for s in seen if s.spikes is not None]
    facts.add("stability.spikes", float(np.mean(spikes)) if spikes else None, ".2f")
    clipped = [s.clipped for s in seen if s.clipped is not None]
    facts.add("stability.clipped.least", 100 * min(clipped) if clipped else None, ".0f", "%")
    facts.add("stability.clipped.most", 100 * max(clipped) if clipped else None, ".0f", "%")
    excess = [s for s in seen if s.excess is not None and s.excess.low is not None]
    worst = max(excess, key=lambda s: s.excess.mean if s.excess else 0.0, default=None)
    if worst is not None:
        facts.add("stability.worst.arm", worst.arm)
        facts.add("stability.worst.budget", worst.budget)
        facts.add("stability.worst.rate", worst.learning_rate, "g")
        facts.add("stability.worst", worst.excess, "+.4f", NATS)
