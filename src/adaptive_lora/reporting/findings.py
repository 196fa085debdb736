"""What a report tells: the facts of a study, its runs, its arms, and what the lock asked and the runs answered."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from adaptive_lora.stats.arms import ArmSummary, summarise
from adaptive_lora.stats.judge import Assay, assays, judge_primary, verdict_sentences
from adaptive_lora.stats.run_table import Comparison, Phase, Status
from adaptive_lora.stats.seeds import seeds_needed, smallest_p
from adaptive_lora.stats.sizes import OverRecords, Size, record_intervals
from adaptive_lora.stats.sizes import sizes as sizes_of
from adaptive_lora.stats.stability import stability_table
from adaptive_lora.stats.verdicts import Judgement
from adaptive_lora.stats.words import counted, number
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.lock import verdicts_rest_on
from adaptive_lora.study.results import costs_table, curves_table, left_out, plain_name, ranks_table, runs_table


@dataclass(frozen=True)
class Findings:
    """Everything that sections are made from, read once."""

    source: Source
    """For what is not below and is read when it is asked for."""
    facts: Mapping[str, Any]
    runs: pd.DataFrame
    """`RUN_COLUMNS`, every run."""
    arms: Sequence[ArmSummary]
    judged: Mapping[Comparison, Judgement]
    """The primary comparisons; empty in a study that named none."""
    assays: Sequence[Assay]

    def __getstate__(self) -> dict[str, Any]:
        """What figures rest on, read by now, for a process that has no ledger open."""
        for name in ("ranks", "curves", "costs", "stability", "left_out"):
            getattr(self, name)
        return {**self.__dict__, "source": None}

    @functools.cached_property
    def left_out(self) -> Mapping[str, str]:
        """Arm -> `6 of 12 modules`, for arms that leave target modules out."""
        return left_out(self.ranks)

    @functools.cached_property
    def ranks(self) -> pd.DataFrame:
        """`ranks_table` of the study."""
        return self.source.ranks()

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """`curves_table` of the evaluation runs; an export has every tenth step."""
        return self.source.curves()

    @functools.cached_property
    def costs(self) -> pd.DataFrame:
        """`costs_table` of the study."""
        return self.source.costs()

    @functools.cached_property
    def sizes(self) -> Sequence[Size]:
        """Of every arm that has a difference from the baseline."""
        return sizes_of(self.over_records, self.runs, self.arms, self.facts)

    @functools.cached_property
    def stability(self) -> pd.DataFrame:
        """`stability_table` of all runs."""
        return self.source.stability(self)

    @functools.cached_property
    def over_records(self) -> OverRecords:
        """`record_intervals` of the study."""
        return self.source.over_records(self)

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
    def locked_first(self) -> bool:
        """Whether verdicts rest on what was locked before there was any result: family, margin, alpha and seeds."""
        lock = lock_of(self.facts)
        now = verdicts_rest_on(self.facts["spec"], lock["primary"])
        late = any(deviation.get("results", 1) for deviation in self.deviations)  # earlier versions do not count them
        return bool(lock.get("first", None if late else now) == now)

    @property
    def several_budgets(self) -> bool:
        """Whether an arm's name alone does not say which runs are meant."""
        return len({arm.budget for arm in self.arms}) > 1

    def named(self, arm: str, budget: str) -> str:
        """An arm, with its budget where its name alone would not do."""
        return f"{arm} at {budget}" if self.several_budgets else arm

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


class Source(Protocol):
    """Where findings come from: a ledger, or the text that was exported from one."""

    def ranks(self) -> pd.DataFrame:
        """`ranks_table`."""

    def curves(self) -> pd.DataFrame:
        """`curves_table` of the evaluation runs."""

    def costs(self) -> pd.DataFrame:
        """`costs_table`."""

    def stability(self, found: Findings) -> pd.DataFrame:
        """`stability_table`."""

    def over_records(self, found: Findings) -> OverRecords:
        """`record_intervals`."""

    def period(self) -> tuple[float, float] | None:
        """Start of the first and end of the last run, seconds since 1970; None where not recorded."""


@dataclass(frozen=True)
class _OfLedger:
    """A study folder's own record."""

    ledger: Ledger

    def ranks(self) -> pd.DataFrame:
        return ranks_table(self.ledger)

    def curves(self) -> pd.DataFrame:
        return curves_table(self.ledger)

    def costs(self) -> pd.DataFrame:
        return costs_table(self.ledger)

    def stability(self, found: Findings) -> pd.DataFrame:
        curves = pd.concat([curves_table(self.ledger, Phase.TUNING), found.curves], ignore_index=True)
        limit = found.facts["spec"]["train"]["max_grad_norm"]
        return stability_table(found.runs, curves, limit, found.baseline, found.ranks)

    def over_records(self, found: Findings) -> OverRecords:
        return record_intervals(self.ledger.by_record, found.runs, found.arms, found.baseline)

    def period(self) -> tuple[float, float] | None:
        runs = self.ledger.runs()
        begun, ended = ([run[key] for run in runs if run[key]] for key in ("started", "finished"))
        return (min(begun), max(ended)) if begun and ended else None


def read_findings(ledger: Ledger) -> Findings:
    """Reads a ledger once for all that is told of it."""
    return findings_of(ledger.facts(), runs_table(ledger), _OfLedger(ledger))


def findings_of(facts: dict[str, Any], runs: pd.DataFrame, source: Source) -> Findings:
    """What facts and runs say together, whoever kept them."""
    facts = _with_plain_names(facts)
    spec = facts["spec"]
    arms = summarise(runs, spec["analysis"]["baseline"])
    return Findings(
        source=source,
        facts=facts,
        runs=runs,
        arms=arms,
        judged=judge_primary(arms, lock_of(facts)["primary"], spec["analysis"]),
        assays=assays(runs, spec["analysis"]["baseline"], spec["budgets"], spec["analysis"]["margin"]),
    )


def lock_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the ledger keeps of the lock; folders of earlier versions have none."""
    return {"primary": [], "deviations": [], **facts.get("lock", {})}


def _with_plain_names(facts: dict[str, Any]) -> dict[str, Any]:
    """The names as the tables have them."""
    plain = copy.deepcopy(facts)
    analysis = plain["spec"]["analysis"]
    analysis["baseline"] = plain_name(analysis["baseline"])
    lock = plain.get("lock", {})
    first = lock.get("first", {"primary": [], "analysis": {"baseline": ""}})
    first["analysis"]["baseline"] = plain_name(first["analysis"]["baseline"])
    for part in [*lock.get("primary", []), *first["primary"]]:
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
    outside = [found.named(arm.arm, arm.budget) for arm in beyond]
    seeds = [n for *_, n in compared]
    inside = (
        f"outside the margin of {margin:g}: {_some(outside)}." if outside else f"all inside the margin of {margin:g}."
    )
    sentences = [
        f"Over {_range_of(seeds)}, mean differences from {found.baseline} run from {number(best[1], '+.4f')} "
        f"({best[0].arm}) to {number(worst[1], '+.4f')} ({worst[0].arm}) nats per token; {inside}"
    ]
    most = len(found.facts["spec"]["seeds"]["evaluation"]) if found.judged else max(seeds)
    if smallest_p(most) > alpha:
        sentences.append(
            f"With {counted(most, 'seed')} no exact test can decide at {alpha:g} (the smallest p is "
            f"{smallest_p(most):.3g}): read this as a description, not a verdict."
        )
    if diverged := [f"{arm.arm} ({arm.diverged})" for arm in found.arms if arm.diverged]:
        sentences.append(f"Runs diverged and are missing from the means: {_some(diverged)}.")
    return sentences


def _range_of(seeds: Sequence[int]) -> str:
    """What arms have, from the fewest to the most.

    >>> _range_of([8, 2, 8]), _range_of([1])
    ('2 to 8 seeds', '1 seed')
    """
    least, most = min(seeds), max(seeds)
    return counted(most, "seed") if least == most else f"{least} to {counted(most, 'seed')}"


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
