"""What a study says of one of its trained adapters, for the card that goes with it elsewhere."""

from __future__ import annotations

from pathlib import Path

from adaptive_lora.export.card import Story
from adaptive_lora.export.study_runs import TrainedRun
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.formatting import counted, formatted, interval_ends, interval_mean, percent
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.run_table import Comparison


def story_of(folder: Path, run: TrainedRun, base_named: str) -> Story:
    """The story of a run: its study, data and licence, training, losses, and the verdict on its arm."""
    with open_findings(folder) as found:
        verdict = verdict_on(found, run.arm, run.budget)
    spec, data = run.facts["spec"], run.facts.get("data", {})
    rows = (
        ("study", str(spec["name"])),
        ("arm", f"{run.arm} at {run.budget}"),
        ("run", f"seed {run.seed}, {run.chosen}"),
        (
            "data",
            f"{data.get('source', spec['data']['source'])}: {counted(spec['data']['train'], 'record')} trained on",
        ),
        ("licence of the data", render("study.licence", data) if data else "not recorded"),
        ("learning rate", f"{run.learning_rate:g}"),
        ("validation loss", _nats(run.validation_loss)),
        ("test loss", _nats(run.test_loss)),
        ("test loss of the base model", _nats(found.base_loss)),
    )
    return Story(
        name=run.name,
        title=f"{run.arm} at {run.budget}, on {base_named}",
        facts=tuple((label, text) for label, text in rows if text),
        verdict=verdict,
    )


def verdict_on(found: Findings, arm: str, budget: str) -> str:
    """One sentence: what is known of an arm beside the baseline, with its interval."""
    beside = f"Beside `{found.baseline}` at {budget}"
    if arm == found.baseline:
        return "This arm is the baseline that the study's other arms are compared with."
    judged = found.judged.get(Comparison(arm, budget))
    if judged is not None:
        told = render("comparisons.verdict", judged).strip()
        size = _size(judged.interval, found.metric.unit) if judged.interval else ""
        return f"{beside}: {told}{size}."
    own = next((a.difference for a in found.arms if (a.arm, a.budget) == (arm, budget)), None)
    if own is None:
        return f"{beside}: nothing is known, as no seed has both."
    return f"{beside}: no verdict, as the study named no such hypothesis beforehand{_size(own, found.metric.unit)}."


def _size(interval: Interval, unit: str) -> str:
    ends = interval_ends(interval, "+±")
    known = f", {percent(interval.level)} interval {ends}" if ends else ""
    mean, seeds = interval_mean(interval, "+±"), counted(interval.n, "seed")
    return f". Difference, arm minus baseline: {mean} {unit}{known}, {seeds}"


def _nats(loss: float | None) -> str:
    return "" if loss is None else f"{formatted(loss, '.4f')} nats per token"
