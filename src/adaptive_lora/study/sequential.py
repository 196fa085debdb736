"""Evaluation in batches of seeds, with a look after each: what is decided stops, and so does a study that is.

Everything follows from the study file, the chosen rates and the finished runs. A study that was cut begins at its first
look again, where nothing is left to train, and so comes to the same decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.evidence import judge_primary, tables_of
from adaptive_lora.stats.metrics import metric_of
from adaptive_lora.stats.run_table import Comparison, Phase, Status
from adaptive_lora.stats.verdicts import Judgement, Verdict
from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.engines.scores import score_missing
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.matrix import Cell, CellKey, Rates, Role, StudyMatrix
from adaptive_lora.study.results import runs_table


@dataclass(frozen=True)
class Look:
    """One look of a study's plan."""

    number: int
    """From 1."""
    of: int
    seeds: tuple[int, ...]
    """Evaluation seeds that are in by then."""
    new: tuple[int, ...]
    """Those that were not at the look before."""


def looks_of(matrix: StudyMatrix) -> Iterator[Look]:
    """The looks that the study file plans, in their order."""
    seeds, looks = tuple(matrix.spec.seeds.evaluation), matrix.spec.seeds.looks
    for index, count in enumerate(looks):
        before = looks[index - 1] if index else 0
        yield Look(index + 1, len(looks), seeds[:count], seeds[before:count])


def evaluate_by_looks(engine: Engine, rates: Rates, tuning: int) -> None:
    """Trains and judges batch by batch until everything primary is decided, or all seeds are done.

    `tuning`: runs of the study that are no evaluation runs. The ledger's fact `looking` is the number of the look that
    is under way, so that a study that was cut between two of them is not taken for finished.
    """
    matrix, ledger, context = engine.prepared.study.matrix, engine.ledger, engine.prepared.context
    waiting, asked = can_be_judged(matrix, rates), set[str]()
    for look in looks_of(matrix):
        # The first look has every cell: also of a budget that cannot be judged.
        cells = open_cells(matrix, waiting) if look.number > 1 else None
        runs = list(matrix.evaluation_runs(rates, look.new, cells))
        asked |= {run.run_id(context) for run in runs}
        expected = {Phase.TUNING: tuning, Phase.EVALUATION: len(asked | finished_evaluations(ledger))}
        ledger.set_facts({"expected_runs": expected, "looking": look.number})
        engine.run_all(runs, sum(expected.values()))
        score_missing(engine)
        judged = judgements_at(look, ledger)
        decided = {key: judged[key].verdict for key in judged if key in waiting and judged[key].decided}
        waiting -= frozenset(decided)
        engine.listener.stage(_told(look, decided, len(waiting)))
        if not waiting:
            break
    _leave(ledger, asked)
    ledger.set_facts({"looking": None})


def can_be_judged(matrix: StudyMatrix, rates: Rates) -> frozenset[Comparison]:
    """Primary comparisons of which both sides have a rate; one that diverged at every rate would wait for ever."""
    baseline = matrix.baseline.name
    return frozenset(c for c in matrix.comparisons if (c.arm, c.budget) in rates and (baseline, c.budget) in rates)


def open_cells(matrix: StudyMatrix, waiting: Set[Comparison]) -> frozenset[CellKey]:
    """Cells that go on while these primary comparisons are not decided.

    A primary arm goes on until it is decided, and so does a control that has its ranks; the baseline, its half and all
    other cells as long as anything at their budget is open.
    """
    budgets = {comparison.budget for comparison in waiting}
    halves = {halved(budget) for budget in budgets}

    def is_open(cell: Cell) -> bool:
        for arm in (cell.arm.name, shadowed_arm(matrix, cell)):
            if arm is not None and (own := Comparison(arm, cell.budget)) in matrix.comparisons:
                return own in waiting
        is_baseline = cell.role in (Role.BASELINE, Role.ASSAY)
        return cell.budget in budgets or (is_baseline and cell.budget in halves)

    return frozenset(cell.key for cell in matrix.cells if is_open(cell))


def shadowed_arm(matrix: StudyMatrix, cell: Cell) -> str | None:
    """The arm whose ranks a control has on other modules; None where the cell is no such control."""
    if (named := matrix.shadow_of.get(cell.arm.name)) is not None:
        return named
    source = cell.arm.options.get("source") if cell.role is Role.CHANCE else None
    return next((arm.name for arm in matrix.spec.arms if source is not None and arm.strategy == source), None)


def judgements_at(look: Look, ledger: Ledger) -> dict[Comparison, Judgement]:
    """The primary comparisons by the runs that are in at a look, whatever has been trained since."""
    facts, runs = ledger.facts(), runs_table(ledger)
    tables = tables_of(runs[runs["seed"].isin(look.seeds)], ledger, metric_of(facts["spec"]["analysis"]))
    return judge_primary(tables, facts["lock"]["primary"], facts["spec"])


def _leave(ledger: Ledger, asked: Set[str]) -> None:
    """Sets aside what has no result and is not asked for any more: where runs failed once, looks may have gone on for
    longer than they do now."""
    open_runs = ledger.runs(status=(Status.PENDING, Status.RUNNING, Status.FAILED))
    left = {run["run_id"] for run in open_runs if run["phase"] == Phase.EVALUATION} - asked
    if left:
        ledger.set_facts({"set_aside": sorted({*ledger.facts().get("set_aside", ()), *left})})


def finished_evaluations(ledger: Ledger) -> set[str]:
    """Ids of the evaluation runs that have a result."""
    return {
        run["run_id"]
        for run in ledger.runs(status=(Status.COMPLETED, Status.DIVERGED))
        if run["phase"] == Phase.EVALUATION
    }


def _told(look: Look, decided: Mapping[Comparison, Verdict], waiting: int) -> str:
    verdicts = ", ".join(f"{own.arm} at {own.budget} {verdict}" for own, verdict in decided.items()) or "none decided"
    rest = "undecided" if look.number == look.of else "open"
    return f"look {look.number} of {look.of}, {len(look.seeds)} seeds: {verdicts}, {waiting} {rest}"
