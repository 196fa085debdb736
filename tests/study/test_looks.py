"""Studies that are judged batch by batch of seeds: who goes on, when they stop, and that a cut changes nothing."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.text import Text

from adaptive_lora.cli.terminal import status_view
from adaptive_lora.errors import StudyFolderError
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import read_findings
from adaptive_lora.reporting.memory.memory_bank import memory_texts
from adaptive_lora.stats.run_table import Comparison, Phase
from adaptive_lora.study.archive import continue_from
from adaptive_lora.study.engines import finish as engine
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import export, load_results
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.sequential import can_be_judged, looks_of, open_cells, shadowed_arm
from adaptive_lora.study.status import StudyStatus, study_status
from adaptive_lora.study.study_file import Study, load_study
from adaptive_lora.training.checkpoint import StepRecord

WriteStudy = Callable[..., Path]
ARMS = "[uniform, linear-decay, empirical, random]"
STILL = "{name: still, strategy: attention-heavy, scaling: {reference: 1e-6}}"
"""An arm that hardly moves, and so is worse at the first look that can tell, the second."""
CHANGES = (
    (ARMS, f"[uniform, linear-decay, {STILL}]"),
    ("evaluation: 2", "evaluation: 8, looks: [4, 6, 8]"),
    ("analysis: {primary: []}", "analysis: {margin: 1e-9, primary: [linear-decay, still]}"),
    ("controls: none", "controls: [shuffled, twin, half, double]"),
    ("steps: 6", "steps: 3"),
    ("dropout: 0.1", "dropout: 0"),
)
WIDE = ("margin: 1e-9", "margin: 5.0")


class Heard(Silent):
    """What was said, and how often weights were updated; Ctrl-C at one of these updates."""

    def __init__(self, cut_at: int | None = None) -> None:
        self.looks: list[str] = []
        self.totals: list[tuple[int, int]] = []
        self.updates, self.cut_at = 0, cut_at

    def stage(self, text: str) -> None:
        self.looks += [text] if text.startswith("look ") else []

    def runs(self, done: int, total: int) -> None:
        self.totals.append((done, total))

    def step(self, record: StepRecord) -> None:
        self.updates += 1
        if self.updates == self.cut_at:
            signal.raise_signal(signal.SIGINT)


def seeds_by_cell(folder: Path) -> dict[tuple[str, str], int]:
    runs = load_results(folder).query("replica == 0 and status == 'completed'")
    return {key: len(own) for key, own in runs.groupby(["arm", "budget"])}  # type: ignore[misc]


def final(folder: Path) -> pd.DataFrame:
    return load_results(folder)[["run_id", "status", "test_loss"]].sort_values("run_id", ignore_index=True)


def recorded(folder: Path) -> dict[Comparison, Any]:
    """The judgements that a report gives."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return dict(read_findings(ledger).judged)


def told(status: StudyStatus) -> str:
    """The first line of `status`."""
    summary = status_view(status).renderables[0]
    assert isinstance(summary, Text)
    return summary.plain


def active_context(folder: Path) -> str:
    """Where the memory bank says that a study stands."""
    with open_findings(folder) as found:
        return memory_texts(found)["activeContext"]


@pytest.mark.usefixtures("whole_sources")
def test_a_decided_arm_stops_and_what_it_shares_goes_on(study_file: WriteStudy, tmp_path: Path) -> None:
    heard, out = Heard(), tmp_path / "out"
    outcome = run_study(load_study(study_file(*CHANGES)), out, heard)
    assert heard.looks == [
        "look 1 of 3, 4 seeds: none decided, 2 open",
        "look 2 of 3, 6 seeds: still at rank:2 worse, 1 open",
        "look 3 of 3, 8 seeds: none decided, 1 undecided",
    ]
    assert seeds_by_cell(out) == {
        ("uniform", "rank:2"): 8, ("uniform", "rank:1"): 8,  # the half that a margin is measured by
        ("linear-decay", "rank:2"): 8, ("shuffled", "rank:2"): 8,  # linear-decay's ranks, and so its shadow
        ("still", "rank:2"): 6, ("uniform", "rank:4"): 4,
    }  # fmt: skip
    order = load_results(out)["seed"].tolist()
    assert [max(order[:25]), min(order[25:35]), max(order[25:35]), min(order[35:])] == [3, 4, 5, 6]
    assert outcome.finished and (outcome.expected, outcome.done, outcome.left) == (43, 43, 0)
    # The total is what is done and what the look asks for.
    assert list(dict.fromkeys(total for _, total in heard.totals)) == [25, 35, 43] and heard.totals[-1] == (43, 43)
    judged = recorded(out)
    assert {c.arm: (own.look, own.n, own.decided) for c, own in judged.items()} == {
        "linear-decay": (3, 8, False), "still": (2, 6, True),
    }  # fmt: skip


def test_a_study_that_is_decided_stops_early_and_is_complete(study_file: WriteStudy, tmp_path: Path) -> None:
    study, out, heard = load_study(study_file(*CHANGES, WIDE)), tmp_path / "out", Heard()
    outcome = run_study(study, out, heard)
    assert heard.looks == [
        "look 1 of 3, 4 seeds: linear-decay at rank:2 equivalent, still at rank:2 equivalent, 0 open"
    ]
    assert outcome.finished and outcome.expected == outcome.done == 25
    status = study_status(out)
    assert (status.left, status.looking, status.finished) == (0, None, True)
    assert told(status) == "small: 25 of 25 runs have a result, complete; its looks ask for no more; not running"
    assert "Finished: 25 of 25 runs have a result" in active_context(out)

    before, again = load_results(out), Heard()
    assert run_study(study, out, again).finished
    assert again.updates == 0 and set(again.totals) == {(25, 25)}
    pd.testing.assert_frame_equal(load_results(out), before)


def test_a_study_cut_within_looks_ends_in_the_same_results(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file(*CHANGES))
    whole, parts, uncut = tmp_path / "whole", tmp_path / "parts", Heard()
    run_study(study, whole, uncut)
    each = uncut.updates // 3
    updates = 0
    for cut_at in (2, each, each):  # in the first look, and twice in one of those after it
        heard = Heard(cut_at)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, parts, heard)
        assert not study_status(parts).finished
        updates += heard.updates
    heard = Heard()
    assert run_study(study, parts, heard).finished
    assert updates + heard.updates == uncut.updates and heard.looks == uncut.looks
    pd.testing.assert_frame_equal(final(whole), final(parts))
    assert recorded(whole) == recorded(parts)


@pytest.mark.usefixtures("whole_sources")
def test_a_study_cut_between_two_looks_is_not_taken_for_finished(study_file: WriteStudy, tmp_path: Path) -> None:
    class CutAtTheFirst(Heard):
        def stage(self, text: str) -> None:
            if text.startswith("look 1"):
                raise KeyboardInterrupt

    study, out = load_study(study_file(*CHANGES)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out, CutAtTheFirst())
    status = study_status(out)
    assert (status.left, status.looking, status.finished) == (0, 1, False)
    assert told(status) == "small: 25 of 25 runs have a result, 0 left at look 1 of 3; not running"
    assert "Unfinished: 25 of 25 runs have a result at look 1 of 3." in active_context(out)
    assert run_study(study, out).expected == 43


def test_an_export_that_was_cut_is_continued(study_file: WriteStudy, tmp_path: Path) -> None:
    study, folders = (
        load_study(study_file(*CHANGES)),
        {name: tmp_path / name for name in ("cut", "export", "on", "whole")},
    )
    with pytest.raises(KeyboardInterrupt):
        run_study(study, folders["cut"], Heard(cut_at=4))
    with contextlib.closing(create_or_open(folders["cut"])) as ledger:
        export(ledger, folders["export"])
    (folders["export"] / "study.lock.json").write_bytes((folders["cut"] / "study.lock.json").read_bytes())
    assert continue_from(folders["export"], study, folders["on"]) == 25
    heard = Heard()
    assert run_study(study, folders["on"], heard).finished and heard.updates == 2 * 3
    run_study(study, folders["whole"])
    pd.testing.assert_frame_equal(final(folders["on"]), final(folders["whole"]))


def test_another_plan_of_looks_is_a_deviation(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(study_file(*CHANGES)), out)
    changed = load_study(study_file(*CHANGES, ("looks: [4, 6, 8]", "looks: [6, 8]"), name="b.yaml"))
    with pytest.raises(StudyFolderError, match=r"seeds\.looks: \[4, 6, 8\] there, \[6, 8\] here"):
        run_study(changed, out)
    heard = Heard()
    outcome = run_study(changed, out, heard, deviation="fewer looks")
    assert outcome.finished and outcome.expected == 43 + 2  # the first look has six seeds of double
    assert [text.split(":")[0] for text in heard.looks] == ["look 1 of 2, 6 seeds", "look 2 of 2, 8 seeds"]
    with contextlib.closing(open_to_read(out)) as ledger:
        assert not read_findings(ledger).locked_first
    without = load_study(study_file(*CHANGES, (", looks: [4, 6, 8]", ""), name="c.yaml"))
    assert run_study(without, out, deviation="none").finished
    assert set(seeds_by_cell(out).values()) == {8}


def test_a_margin_is_measured_by_the_half_that_goes_on(study_file: WriteStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(study_file(*CHANGES, ("margin: 1e-9", "margin: half-budget"))), out)
    runs = load_results(out).query("arm == 'uniform' and replica == 0")
    half, base = (runs[runs["budget"] == budget].set_index("seed")["test_loss"] for budget in ("rank:1", "rank:2"))
    for own in recorded(out).values():
        assert own.margin.measured and own.margin.value == pytest.approx((half - base).sort_index()[: own.n].mean() / 4)
    with contextlib.closing(open_to_read(out)) as ledger:
        found = read_findings(ledger)
        assert found.margin is None and found.margin_at("rank:2") == found.margins["rank:2"]


def test_a_failed_arm_keeps_its_place_and_is_judged_when_it_is_mended(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, real, heard = load_study(study_file(*CHANGES, WIDE)), engine.save_adapter, Heard()

    def full(weights: Any, plan: RankPlan, *others: Any) -> None:
        if plan.strategy == "linear-decay":
            raise OSError("disk full")
        real(weights, plan, *others)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_adapter", full)
        outcome = run_study(study, tmp_path / "cut", heard)
    assert [text.split(": ")[1] for text in heard.looks] == [
        "still at rank:2 equivalent, 1 open", "none decided, 1 open", "none decided, 1 undecided",
    ]  # fmt: skip
    assert (outcome.failed, outcome.left, outcome.finished) == (8, 8, False)
    mended = Heard()
    assert run_study(study, tmp_path / "cut", mended).done == outcome.done + 4
    assert mended.looks == [
        "look 1 of 3, 4 seeds: linear-decay at rank:2 equivalent, still at rank:2 equivalent, 0 open"
    ]


def test_a_plan_of_looks_has_each_seed_once(study_file: WriteStudy) -> None:
    looks = list(looks_of(load_study(study_file(*CHANGES)).matrix))
    assert [(look.number, look.of, look.new) for look in looks] == [
        (1, 3, (0, 1, 2, 3)), (2, 3, (4, 5)), (3, 3, (6, 7)),
    ]  # fmt: skip
    assert looks[-1].seeds == tuple(range(8))
    assert not list(looks_of(load_study(study_file()).matrix))


TWO_BUDGETS = (
    (
        ARMS,
        "[uniform, linear-decay, empirical, {name: moved, strategy: shuffled, options: {source: empirical}}]",
    ),
    ('["rank:2"]', '["rank:2", "rank:4"]'),
    ("evaluation: 2", "evaluation: 6, looks: [4, 6]"),
    ("analysis: {primary: []}", "analysis: {primary: [linear-decay, empirical]}"),
    ("controls: none", "controls: [random, half, double]"),
)


def two_budgets(study_file: WriteStudy) -> Study:
    return load_study(study_file(*TWO_BUDGETS))


def test_a_budget_stops_when_its_comparisons_are_decided(study_file: WriteStudy) -> None:
    matrix = two_budgets(study_file).matrix
    at_two = open_cells(matrix, {Comparison("linear-decay", "rank:2")})
    assert at_two == {
        ("uniform", "rank:2"), ("uniform", "rank:1"), ("linear-decay", "rank:2"), ("random", "rank:2"),
        ("moved", "rank:2"),
    }  # fmt: skip
    at_four = open_cells(matrix, {Comparison("linear-decay", "rank:4")})
    assert ("uniform", "rank:2") in at_four  # a budget of its own, and half of this one
    assert ("linear-decay", "rank:2") not in at_four and ("uniform", "rank:1") not in at_four
    assert open_cells(matrix, frozenset()) == frozenset()


def test_what_only_describes_has_the_seeds_of_the_first_look(study_file: WriteStudy) -> None:
    matrix = two_budgets(study_file).matrix
    runs = list(matrix.evaluation_runs({cell.key: 1e-3 for cell in matrix.cells}))
    seeds = {key: sum(run.cell.key == key for run in runs) for key in matrix.by_key}
    assert {key for key, count in seeds.items() if count == 4} == {("uniform", "rank:8")}
    assert matrix.counts()[Phase.EVALUATION] == len(runs)


def test_a_control_with_an_arms_ranks_stops_with_it(study_file: WriteStudy) -> None:
    matrix = load_study(study_file(*CHANGES)).matrix
    control = matrix.by_key["shuffled", "rank:2"]
    assert shadowed_arm(matrix, control) == "linear-decay"
    assert shadowed_arm(matrix, matrix.by_key["linear-decay", "rank:2"]) is None
    assert control.key not in open_cells(matrix, {Comparison("still", "rank:2")})


def test_an_arm_without_a_rate_is_not_waited_for(study_file: WriteStudy) -> None:
    matrix = two_budgets(study_file).matrix
    rates = {cell.key: 1e-3 for cell in matrix.cells if cell.key != ("empirical", "rank:2")}
    assert can_be_judged(matrix, rates) == {
        Comparison("linear-decay", "rank:2"), Comparison("linear-decay", "rank:4"), Comparison("empirical", "rank:4"),
    }  # fmt: skip
    without_baseline = {key: rate for key, rate in rates.items() if key != ("uniform", "rank:4")}
    assert can_be_judged(matrix, without_baseline) == {Comparison("linear-decay", "rank:2")}
