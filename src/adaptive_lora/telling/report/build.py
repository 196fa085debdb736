"""One self-contained HTML page from a ledger: study card, arms, ranks, differences, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from adaptive_lora.files import write_atomically
from adaptive_lora.judging.arms import ArmSummary, summarise
from adaptive_lora.judging.stats import Interval
from adaptive_lora.judging.study import Assay, assays, judge_primary, verdict_sentences
from adaptive_lora.judging.verdicts import Judgement
from adaptive_lora.record.folder import StudyPaths
from adaptive_lora.record.ledger import Ledger
from adaptive_lora.record.protocol import Comparison
from adaptive_lora.record.results import ranks_table, runs_table
from adaptive_lora.record.runs import Phase, Status
from adaptive_lora.record.seeds import seeds_needed, smallest_p
from adaptive_lora.telling.figures.all import Figures, draw
from adaptive_lora.telling.figures.ranks import left_out
from adaptive_lora.telling.figures.theme import save, to_svg


@dataclass(frozen=True)
class Verdicts:
    """What the lock asked and the runs answered."""

    judged: Mapping[Comparison, Judgement]
    assays: Sequence[Assay]
    deviations: Sequence[Mapping[str, Any]]


def write_report(ledger: Ledger, folder: Path) -> Path:
    """Writes `report.html` and `figures/` into a study folder; the same ledger gives the same bytes."""
    facts = ledger.facts()
    runs = runs_table(ledger)
    arms = summarise(runs, facts["spec"]["analysis"]["baseline"])
    drawn = draw(ledger, facts, arms)
    for name, (figure, _) in drawn.items():
        save(figure, folder / "figures" / name)
    path = StudyPaths(folder).report
    lock = facts.get("lock", {"primary": [], "deviations": []})  # folders of earlier versions have none
    verdicts = Verdicts(
        judge_primary(arms, lock["primary"], facts["spec"]["analysis"]),
        assays(runs, facts["spec"]["analysis"]["baseline"], facts["spec"]["budgets"]),
        lock["deviations"],
    )
    rows: list[dict[str, Any]] = runs.astype(object).where(runs.notna(), None).to_dict("records")  # type: ignore[assignment]
    write_atomically(path, render(facts, rows, arms, drawn, left_out(ranks_table(ledger)), verdicts))
    return path


def render(
    facts: dict[str, Any],
    runs: list[dict[str, Any]],
    arms: list[ArmSummary],
    drawn: Figures,
    left_out: Mapping[str, str],
    verdicts: Verdicts,
) -> str:
    """The page as text; everything that comes from outside is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["interval"] = interval_text
    environment.filters["signed"] = lambda value: f"{value:+.4f}".replace("-", "−")
    template = environment.from_string(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    seeds = len(facts["spec"]["seeds"]["evaluation"])
    compared = sum(arm.difference is not None for arm in arms)
    tuning = [run for run in runs if run["phase"] == Phase.TUNING and run["status"] == Status.COMPLETED]
    base = next((run["base_loss"] for run in runs if run["phase"] == Phase.EVALUATION), None)
    return template.render(
        facts=facts,
        spec=facts["spec"],
        arms=arms,
        left_out=left_out,
        bottom_line=bottom_line(arms, facts["spec"]["analysis"], verdicts),
        verdicts=verdicts,
        base_loss=base,
        seeds=seeds,
        smallest_p=smallest_p(seeds),
        seeds_needed=seeds_needed(facts["spec"]["analysis"]["alpha"], max(compared, 1)),
        tuning=_tuning_rows(tuning),
        troubles=[run for run in runs if run["status"] in (Status.DIVERGED, Status.FAILED)],
        done=sum(Status(run["status"]).is_finished for run in runs),
        expected=sum(facts["expected_runs"].values()),
        figures=[(name, to_svg(figure), caption) for name, (figure, caption) in drawn.items()],
    )


def bottom_line(arms: list[ArmSummary], analysis: dict[str, Any], verdicts: Verdicts) -> str:
    """What the numbers say, in a few plain sentences, the verdicts first; no claim beyond them."""
    compared = {arm: arm.difference for arm in arms if arm.difference is not None}
    if not compared:
        return "Nothing to compare yet: no arm has finished beside the baseline."
    margin, alpha = analysis["margin"], analysis["alpha"]
    best, worst = (choose(compared, key=lambda arm: compared[arm].mean) for choose in (min, max))
    outside = [f"{arm.arm} at {arm.budget}" for arm, found in compared.items() if abs(found.mean) > margin]
    seeds = min(found.n for found in compared.values())
    sentences = verdict_sentences(verdicts.judged, analysis["baseline"], verdicts.assays)
    sentences += [
        f"Over {_counted(seeds, 'seed')}, mean differences from {analysis['baseline']} run from "
        f"{compared[best].mean:+.4f} ({best.arm}) to {compared[worst].mean:+.4f} ({worst.arm}) nats per token; "
        + (
            f"outside the margin of {margin:g}: {', '.join(outside)}."
            if outside
            else f"all inside the margin of {margin:g}."
        )
    ]
    if smallest_p(seeds) > alpha:
        sentences.append(
            f"With {_counted(seeds, 'seed')} no exact test can decide at {alpha:g} (the smallest p is "
            f"{smallest_p(seeds):.3g}): read this as a description, not a verdict."
        )
    if diverged := [f"{arm.arm} ({arm.diverged})" for arm in arms if arm.diverged]:
        sentences.append(f"Runs diverged and are missing from the means: {', '.join(diverged)}.")
    return " ".join(sentences)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def interval_text(interval: Interval | None) -> str:
    """`[low, high]`, or a dash where there are too few seeds."""
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    return f"[{interval.low:.4f}, {interval.high:.4f}]".replace("-", "−")


def _tuning_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean validation loss per arm, budget and rate."""
    grouped: dict[tuple[str, str, float], list[float]] = {}
    for run in runs:
        grouped.setdefault((run["arm"], run["budget"], run["learning_rate"]), []).append(run["validation_loss"])
    return [
        {"arm": arm, "budget": budget, "rate": rate, "loss": sum(losses) / len(losses), "n": len(losses)}
        for (arm, budget, rate), losses in grouped.items()
    ]
