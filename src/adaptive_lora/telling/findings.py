"""What a report tells: the facts of a study, its runs, its arms, and what the lock asked and the runs answered."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from adaptive_lora.judging.arms import ArmSummary, summarise
from adaptive_lora.judging.sizes import Size
from adaptive_lora.judging.sizes import sizes as sizes_of
from adaptive_lora.judging.stability import stability_table
from adaptive_lora.judging.study import Assay, assays, judge_primary, verdict_sentences
from adaptive_lora.judging.verdicts import Judgement
from adaptive_lora.judging.words import counted
from adaptive_lora.record.ledger import Ledger
from adaptive_lora.record.protocol import Comparison
from adaptive_lora.record.results import costs_table, curves_table, plain_name, ranks_table, runs_table
from adaptive_lora.record.runs import Phase, Status
from adaptive_lora.record.seeds import seeds_needed, smallest_p


@dataclass(frozen=True)
class Findings:
    """Everything that sections are made from, read once."""

    ledger: Ledger
    """For what is not below, such as losses by record."""
    facts: Mapping[str, Any]
    runs: pd.DataFrame
    """`RUN_COLUMNS`, every run."""
    arms: Sequence[ArmSummary]
    judged: Mapping[Comparison, Judgement]
    """The primary comparisons; empty in a study that named none."""
    assays: Sequence[Assay]
    left_out: Mapping[str, str]
    """Arm -> `6 of 12 modules`, for arms that leave target modules out."""

    @functools.cached_property
    def ranks(self) -> pd.DataFrame:
        """`ranks_table` of the ledger."""
        return ranks_table(self.ledger)

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """`curves_table` of the evaluation runs."""
        return curves_table(self.ledger)

    @functools.cached_property
    def costs(self) -> pd.DataFrame:
        """`costs_table` of the ledger."""
        return costs_table(self.ledger)

    @functools.cached_property
    def sizes(self) -> Sequence[Size]:
        """Of every arm that has a difference from the baseline."""
        return sizes_of(self.ledger, self.runs, self.arms, self.facts)

    @functools.cached_property
    def stability(self) -> pd.DataFrame:
        """`stability_table` of all runs."""
        curves = pd.concat([curves_table(self.ledger, Phase.TUNING), self.curves], ignore_index=True)
        limit = self.facts["spec"]["train"]["max_grad_norm"]
        return stability_table(self.runs, curves, limit, self.baseline, self.ranks)

    @property
    def analysis(self) -> Mapping[str, Any]:
        """How the study file says it is judged."""
        found: Mapping[str, Any] = self.facts["spec"]["analysis"]
        return found

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return str(self.analysis["baseline"])

    @property
    def deviations(self) -> Sequence[Mapping[str, Any]]:
        """What was changed after the lock, and why."""
        found: Sequence[Mapping[str, Any]] = lock_of(self.facts)["deviations"]
        return found

    @property
    def several_budgets(self) -> bool:
        """Whether an arm's name alone does not say which runs are meant."""
        return len({arm.budget for arm in self.arms}) > 1

    @property
    def done(self) -> int:
        """Runs with a result; a divergence is one."""
        return sum(Status(status).is_finished for status in self.runs["status"])

    @property
    def expected(self) -> int:
        """Runs that the study asks for."""
        return sum(self.facts["expected_runs"].values())

    @property
    def base_loss(self) -> float | None:
        """The frozen model's test loss."""
        found = self.runs.loc[self.runs["phase"] == Phase.EVALUATION, "base_loss"].dropna()
        return None if found.empty else float(found.iloc[0])


def read_findings(ledger: Ledger) -> Findings:
    """Reads a ledger once for all that is told of it."""
    facts = _with_plain_names(ledger.facts())
    spec, runs = facts["spec"], runs_table(ledger)
    arms = summarise(runs, spec["analysis"]["baseline"])
    return Findings(
        ledger=ledger,
        facts=facts,
        runs=runs,
        arms=arms,
        judged=judge_primary(arms, lock_of(facts)["primary"], spec["analysis"]),
        assays=assays(runs, spec["analysis"]["baseline"], spec["budgets"]),
        left_out=_left_out(ledger, runs),
    )


def _left_out(ledger: Ledger, runs: pd.DataFrame) -> dict[str, str]:
    """From one plan an arm: which modules a strategy adapts is its nature, not its draw."""
    found = {}
    for run in runs[runs["status"] == Status.COMPLETED].drop_duplicates("arm").itertuples():
        plan = ledger.plan(str(run.run_id))
        if plan and plan.get("left_out"):
            without = len(plan["left_out"])
            found[str(run.arm)] = f"{without} of {without + len(plan['modules'])} modules"
    return found


def lock_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the ledger keeps of the lock; folders of earlier versions have none."""
    return {"primary": [], "deviations": [], **facts.get("lock", {})}


def _with_plain_names(facts: dict[str, Any]) -> dict[str, Any]:
    """The names as the tables have them."""
    plain = copy.deepcopy(facts)
    analysis = plain["spec"]["analysis"]
    analysis["baseline"] = plain_name(analysis["baseline"])
    for part in plain.get("lock", {}).get("primary", []):
        part["arm"], part["budget"] = plain_name(part["arm"]), plain_name(part["budget"])
    return plain


def verdict_text(found: Findings) -> list[str]:
    """The verdicts in plain words, or why there are none; no claim beyond them."""
    if not _compared(found):
        return ["Nothing to compare yet: no arm has finished beside the baseline."]
    if not found.judged:
        return [
            "No verdict: this study named no hypothesis before it began, so everything on this page is exploratory."
        ]
    return verdict_sentences(found.judged, found.baseline, found.assays)


def description(found: Findings) -> list[str]:
    """What else the numbers say, in a few plain sentences."""
    compared = _compared(found)
    if not compared:
        return []
    margin, alpha = found.analysis["margin"], found.analysis["alpha"]
    best, worst = (choose(compared, key=lambda arm: arm[1]) for choose in (min, max))
    beyond = [arm for arm, mean, _ in compared if abs(mean) > margin]
    outside = [f"{arm.arm} at {arm.budget}" if found.several_budgets else arm.arm for arm in beyond]
    seeds = min(n for *_, n in compared)
    inside = (
        f"outside the margin of {margin:g}: {_some(outside)}." if outside else f"all inside the margin of {margin:g}."
    )
    sentences = [
        f"Over {counted(seeds, 'seed')}, mean differences from {found.baseline} run from {best[1]:+.4f} "
        f"({best[0].arm}) to {worst[1]:+.4f} ({worst[0].arm}) nats per token; {inside}".replace("-0.", "−0.")
    ]
    if smallest_p(seeds) > alpha:
        sentences.append(
            f"With {counted(seeds, 'seed')} no exact test can decide at {alpha:g} (the smallest p is "
            f"{smallest_p(seeds):.3g}): read this as a description, not a verdict."
        )
    if diverged := [f"{arm.arm} ({arm.diverged})" for arm in found.arms if arm.diverged]:
        sentences.append(f"Runs diverged and are missing from the means: {_some(diverged)}.")
    return sentences


def reach(found: Findings) -> str:
    """What the number of seeds can decide at all."""
    seeds = len(found.facts["spec"]["seeds"]["evaluation"])
    alpha, comparisons = found.analysis["alpha"], max(len(found.judged) or len(_compared(found)), 1)
    return (
        f"With {counted(seeds, 'seed')} the smallest two-sided p an exact paired test can reach is "
        f"{smallest_p(seeds):.3g}; to decide {counted(comparisons, 'comparison')} at {alpha:g} takes at least "
        f"{seeds_needed(alpha, comparisons)} seeds."
    )


def _compared(found: Findings) -> list[tuple[ArmSummary, float, int]]:
    """(arm, mean difference, seeds) of every arm that has one."""
    return [(arm, arm.difference.mean, arm.difference.n) for arm in found.arms if arm.difference is not None]


def _some(texts: Sequence[str], most: int = 12) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
