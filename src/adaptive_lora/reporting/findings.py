"""All that is known of a study, read once: its facts, runs and arms, and what statistics find in them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from adaptive_lora.reporting.completed import completed
from adaptive_lora.reporting.coverage import left_out
from adaptive_lora.reporting.planned import planned
from adaptive_lora.reporting.rates import cautions_with_rates, edges_of, tuned_by_baseline, unclipped_arms
from adaptive_lora.stats.arms import ArmSummary, frozen_loss, summarise
from adaptive_lora.stats.assays import Assay, assays
from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.crossed import SEEDS, Crossed
from adaptive_lora.stats.decomposition import Decomposition, decompositions
from adaptive_lora.stats.differences import between, differences_of, with_differences
from adaptive_lora.stats.effect_sizes import EffectSize, OverRecords, effect_sizes, record_intervals, records_of
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.evidence import Cell, StudyTables, judge_primary, rule_of, tables_of
from adaptive_lora.stats.margins import SCALE
from adaptive_lora.stats.metrics import Metric, metric_of
from adaptive_lora.stats.outcomes import no_better
from adaptive_lora.stats.power import ArmPower, Design, power_by_arm, width_with
from adaptive_lora.stats.run_table import Comparison, Phase
from adaptive_lora.stats.spreads import Pilot, pilot_of, tuning_pilot
from adaptive_lora.stats.stability import stability_table
from adaptive_lora.stats.stability_findings import StabilityFindings, stability_findings
from adaptive_lora.stats.variants import variants_of
from adaptive_lora.stats.verdicts import Judgement
from adaptive_lora.study.learning_rate_search import Edge
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.lock import verdicts_rest_on
from adaptive_lora.study.results import costs_table, curves_table, ranks_table, runs_table
from adaptive_lora.study.schema_training import ONE_RATE_FOR_ALL
from adaptive_lora.study.status import StudyStatus, status_of


@dataclass(frozen=True)
class Findings:
    """A study, as page, paper, memory bank and terminal report it; without a ledger a `FindingsOfText`."""

    source: Any
    """For what is read when it is asked for: the open ledger, or the folder of an export."""
    facts: Mapping[str, Any]
    runs: pd.DataFrame
    """`RUN_COLUMNS`, every run."""
    arms: Sequence[ArmSummary]
    judged: Mapping[Comparison, Judgement]
    """The primary comparisons; empty in a study that named none."""
    assays: Sequence[Assay]
    differences: Mapping[Cell, Crossed]
    """Of every arm from the baseline at its budget."""
    tables: StudyTables
    """For differences of any two arms; they read the source."""

    def __getstate__(self) -> dict[str, Any]:
        """With what figures need, for a process that has no ledger open."""
        for name in ("ranks", "curves", "costs", "stability", "left_out", "decompositions"):
            getattr(self, name)
        return {**self.__dict__, "source": None, "tables": None}

    @functools.cached_property
    def left_out(self) -> Mapping[str, str]:
        """Arm -> `6 of 12 modules`, for arms that leave target modules out."""
        return left_out(self.ranks)

    @functools.cached_property
    def ranks(self) -> pd.DataFrame:
        """`ranks_table` of the study."""
        return ranks_table(self.source)

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """`curves_table` of the evaluation runs; an export has every tenth step."""
        return curves_table(self.source)

    @functools.cached_property
    def costs(self) -> pd.DataFrame:
        """`costs_table` of the study."""
        return costs_table(self.source)

    @functools.cached_property
    def sizes(self) -> Sequence[EffectSize]:
        """Of every arm that has a difference from the baseline."""
        over_seeds = {cell: own for cell, found in self.differences.items() if (own := found.over_seeds()) is not None}
        return effect_sizes(over_seeds, self.over_records, self.runs, self.arms, self.facts, self.metric)

    @functools.cached_property
    def stability(self) -> pd.DataFrame:
        """`stability_table` of all runs."""
        curves = pd.concat([curves_table(self.source, Phase.TUNING), self.curves], ignore_index=True)
        limit = self.facts["spec"]["train"]["max_grad_norm"]
        table = stability_table(self.runs, curves, limit, self.baseline, self.ranks)
        table["clipped"] = table["clipped"].mask(table["arm"].isin(unclipped_arms(self.facts)))
        return table

    @functools.cached_property
    def stability_findings(self) -> StabilityFindings:
        """Where arms train and break, and what moves that."""
        rates, variants = {(a.arm, a.budget): a.learning_rate for a in self.arms}, variants_of(self.facts["spec"])
        return stability_findings(self.stability, self.baseline, rates, variants, self.analysis["alpha"], self.tuned)

    @functools.cached_property
    def edges(self) -> Sequence[Edge]:
        """Arms whose best learning rate lies at the edge of the grid."""
        return edges_of(self.facts, self.runs)

    @functools.cached_property
    def cautions(self) -> Mapping[Comparison, tuple[Caution, ...]]:
        """What to keep in mind beside each verdict: its judgement's own, and those of its learning rates."""
        return cautions_with_rates(self)

    @functools.cached_property
    def over_records(self) -> OverRecords:
        """Every difference over test records alone."""
        if not self.metric.is_loss:
            return records_of(self.differences)
        return record_intervals(self.tables.by_record, self.runs, self.arms, self.baseline)

    @functools.cached_property
    def decompositions(self) -> Sequence[Decomposition]:
        """What the difference of each primary arm is made of, where a control can tell."""
        return decompositions(self.tables, self.lock, self.facts["spec"])

    @property
    def period(self) -> tuple[float, float] | None:
        """From the first to the last moment at which a run began or ended, seconds since 1970 by the clock of that
        machine, which may have been set meanwhile; None where not recorded."""
        begun, ended = ([run[key] for run in self.source.runs() if run[key]] for key in ("started", "finished"))
        return (min(begun + ended), max(begun + ended)) if begun and ended else None

    @property
    def analysis(self) -> Mapping[str, Any]:
        """How the study file says it is judged."""
        return dict(self.facts["spec"]["analysis"])

    @property
    def metric(self) -> Metric:
        """What differences and verdicts are of; arms have their test loss beside it."""
        return metric_of(self.analysis)

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return str(self.analysis["baseline"])

    @property
    def contenders(self) -> list[str]:
        """The study's own arms beside the baseline; controls, which may train longer, are none."""
        return [arm["name"] for arm in self.facts["spec"]["arms"] if arm["name"] != self.baseline]

    @property
    def lock(self) -> Mapping[str, Any]:
        """The locked decisions: `primary`, `controls`, what verdicts rested on at `first`, and `deviations` since."""
        found: Mapping[str, Any] = self.facts["lock"]
        return found

    @property
    def locked_first(self) -> bool:
        """Whether verdicts rest on what was locked before there was any result: family, margin, alpha and seeds."""
        return bool(self.lock["first"] == verdicts_rest_on(self.facts["spec"], self.lock["primary"]))

    @property
    def design(self) -> Design:
        """What the study asks of its seeds and records."""
        return planned(self)

    @functools.cached_property
    def pilot(self) -> Pilot:
        """How much its differences vary by seed and by record."""
        return pilot_of(self.tables, self.baseline, self.margin)

    @functools.cached_property
    def powers(self) -> Sequence[ArmPower]:
        """What its seeds and records could show of each arm, by the spread that it has."""
        return power_by_arm(self.pilot.spreads, self.design)

    def pilot_for(self, margin: float | None, metric: Metric) -> Pilot:
        """What it tells a study like it, judged by `metric`; its margin is a number, or None where that is measured.

        Of its tuning runs where no arm has two evaluation seeds yet, as far as these tell.
        """
        found = pilot_of(tables_of(self.runs, self.source, metric), self.baseline, margin)
        if found.spreads or not metric.is_loss:
            return found
        return tuning_pilot(self.runs, self.tables.by_record, self.baseline, margin)

    @property
    def tuned(self) -> bool:
        """Whether each arm's learning rate was chosen on validation; not where one was, for all (`tune: shared`)."""
        return not self.tuning_is_shared and bool((self.runs["phase"] == Phase.TUNING).any())

    @property
    def tuning_is_shared(self) -> bool:
        """Whether the baseline's rate, at the first budget or at each, is that of all arms."""
        return self.facts["spec"]["train"].get("tune") in ONE_RATE_FOR_ALL

    @property
    def tuned_by_baseline(self) -> bool:
        """Whether on the baseline, and arms checked beside it."""
        return tuned_by_baseline(self.facts)

    @property
    def compared(self) -> list[ArmSummary]:
        """Arms that have a difference from the baseline."""
        return [arm for arm in self.arms if arm.difference is not None]

    @property
    def margin(self) -> float | None:
        """In the metric's unit; None where it is a share of what half the budget costs, measured at each budget."""
        return rule_of(self.facts["spec"]).margin

    def margin_at(self, budget: str) -> float | None:
        """The margin at a budget; None where it is to be measured, and was not, or cannot be used."""
        measured = (assay.margin for assay in self.assays if assay.budget == budget and assay.margin.usable)
        return self.margin if self.margin is not None else next((margin.value for margin in measured), None)

    @property
    def margins(self) -> Mapping[str, float]:
        """Budget -> its margin, of those that have one."""
        every = {arm.budget: self.margin_at(arm.budget) for arm in self.arms}
        return {budget: margin for budget, margin in every.items() if margin is not None}

    @property
    def yardstick(self) -> float:
        """One margin for all budgets: the study's number, or the largest measured."""
        return self.margin if self.margin is not None else max(self.margins.values(), default=SCALE)

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many seeds the study is judged; empty where that is once, at its end."""
        return rule_of(self.facts["spec"]).looks

    def between(self, one: Cell, other: Cell) -> Interval | None:
        """The interval of an (arm, budget) less another, paired, at 1 - alpha; None where no seed has both."""
        found = between(self.tables, one, other)
        return None if found is None else found.interval(1 - self.analysis["alpha"])

    @property
    def half_widths(self) -> list[tuple[float, float | None]]:
        """Of the primary comparisons' intervals, the narrowest first, each with what twice the seeds would give."""
        known = [(width_with(j, j.n), width_with(j, 2 * j.n)) for j in self.judged.values()]
        return sorted(((now, later) for now, later in known if now is not None), key=lambda widths: widths[0])

    def judgement(self, arm: str, budget: str) -> Judgement | None:
        """Of an arm at a budget; None where that is no primary comparison."""
        return self.judged.get(Comparison(arm, budget))

    @property
    def several_budgets(self) -> bool:
        """Whether an arm's name alone does not say which runs are meant."""
        return len({arm.budget for arm in self.arms}) > 1

    @property
    def resampled(self) -> str:
        """What differences are over: new seeds and new test records, or one of these where the other is not known."""
        return next((arm.difference.over for arm in self.arms if arm.difference), SEEDS)

    def named(self, arm: str, budget: str) -> str:
        """An arm, with its budget where its name alone would not do."""
        return f"{arm} at {budget}" if self.several_budgets else arm

    def status(self, in_use: bool = False) -> StudyStatus:
        """How far the study has come; `in_use`: whether a process works on it now."""
        rows = [{str(name): value for name, value in row.items()} for row in self.runs.to_dict("records")]
        return status_of(self.facts, rows, in_use)

    @property
    def no_better(self) -> Mapping[tuple[str, str], int]:
        """(arm, phase) -> runs that ended no better than the frozen model."""
        return no_better(self.runs)

    @property
    def base_loss(self) -> float | None:
        """The frozen model's test loss."""
        return frozen_loss(self.runs)


def read_findings(ledger: Ledger) -> Findings:
    """From a ledger."""
    return findings_of(ledger.facts(), runs_table(ledger), ledger)


def findings_of(facts: dict[str, Any], runs: pd.DataFrame, source: Any, kind: type[Findings] = Findings) -> Findings:
    """From facts and runs, of a ledger or of an export."""
    facts = completed(facts)
    analysis, budgets = facts["spec"]["analysis"], facts["spec"]["budgets"]
    metric = metric_of(analysis)
    tables, rule = tables_of(runs, source, metric), rule_of(facts["spec"])
    differences = differences_of(tables, analysis["baseline"])
    arms = with_differences(summarise(runs, analysis["baseline"], metric), differences)
    judged = judge_primary(tables, facts["lock"]["primary"], facts["spec"])
    tested = assays(tables, analysis["baseline"], budgets, rule.margin, rule.alpha)
    return kind(source, facts, runs, arms, judged, tested, differences, tables)
