"""What the page says of learning rates: how they were chosen, what the neighbours say, what is clipped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adaptive_lora.reporting.findings import read_findings
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.reporting.html.rate_table import rate_choices
from adaptive_lora.reporting.rates import cautions_with_rates, clipped_shares, how_chosen, lines_of
from adaptive_lora.reporting.tables import Table, to_csv
from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from tests.reporting.ledgers import Made, make_study
from tests.reporting.test_paper_states import paper_of

GRID = "[1.0e-3, 3.0e-3, 1.0e-2]"


def column(table: Table, name: str) -> dict[tuple[object, object], object]:
    at = [c.name for c in table.columns].index(name)
    return {(row.cells[0], row.cells[1]): row.cells[at] for row in table.rows}


def test_a_tuned_study_says_how_each_rate_was_chosen_and_what_is_beside_it(tmp_path: Path) -> None:
    with contextlib.closing(open_to_read(make_study(tmp_path / "made", Made(rates=GRID)))) as ledger:
        found = read_findings(ledger)
        table = rate_choices(found)
        assert table is not None and "pooled over the arms at a budget" in table.caption
        assert set(column(table, "how").values()) == {"grid"}
        c = Comparison("linear-decay", "rank:4")
        line = lines_of(found)[c]
        assert line.lower is not None and (line.lower.rate, line.lower.baseline_rate) == (1e-3, 1e-3)
        assert column(table, "lower")["linear-decay", "rank:4"] == line.lower.difference
        assert line.lower.difference is not None and line.lower.difference.mean == pytest.approx(-0.03, abs=0.01)
        assert column(table, "lower")["uniform", "rank:4"] is None and not line.changes_sign
        assert to_csv(table).startswith("arm,budget,learning_rate,how,lower,lower_low,lower_high,")


def test_without_tuning_there_is_no_table(tmp_path: Path) -> None:
    with contextlib.closing(open_to_read(make_study(tmp_path / "made", Made()))) as ledger:
        found = read_findings(ledger)
        assert (
            rate_choices(found) is None and lines_of(found) == {} and set(how_chosen(found).values()) == {(None, False)}
        )


def test_clipping_at_every_step_is_a_caution_beside_the_judgements_own(tmp_path: Path) -> None:
    with contextlib.closing(open_to_read(make_study(tmp_path / "made", Made(rates=GRID)))) as ledger:
        found = read_findings(ledger)
        c = Comparison("linear-decay", "rank:4")
        before = clipped_shares(found)["uniform", "rank:4"]
        assert 0 <= before <= 1 and (Caution.CLIPPED in found.cautions[c]) == (before >= 0.95)
        facts = {**found.facts, "spec": {**found.facts["spec"], "train": {**found.facts["spec"]["train"]}}}
        facts["spec"]["train"]["max_grad_norm"] = 1e-9
        clipped = cautions_with_rates(replace(found, facts=facts))[c]
        assert clipped[-1] is Caution.CLIPPED and clipped[:-1] == found.judged[c].cautions
        facts["spec"]["train"]["max_grad_norm"] = None
        assert cautions_with_rates(replace(found, facts=facts))[c] == found.judged[c].cautions


def test_a_study_tuned_by_its_baseline_is_read_from_its_facts(study_file: Callable[..., Path], tmp_path: Path) -> None:
    path = study_file(
        ("arms: [uniform, linear-decay, empirical, random]", "arms: [uniform, linear-decay]"),
        ("{evaluation: 2}", "{evaluation: 2, tuning: 2}"),
        ("learning_rate: 1e-2", "tune: baseline, learning_rate: 1e-6"),
        ("controls: none", "controls: [random]"),
    )
    run_study(load_study(path), tmp_path / "out")
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        found = read_findings(ledger)
        # So few steps from so low a rate: the best lies beyond what may be added.
        assert ("uniform", "rank:2") in {(edge.arm, edge.budget) for edge in found.edges}
        table = rate_choices(found)
        assert table is not None and column(table, "how")["uniform", "rank:2"] == "grid"
        assert column(table, "how")["random", "rank:2"] == "baseline's"
        assert (
            "edge" in str(column(table, "flags")["uniform", "rank:2"])
            and "none beside it is shown to be better" in table.caption
        )
        beside = column(table, "lower")["linear-decay", "rank:2"]
        assert beside is not None and lines_of(found)[Comparison("linear-decay", "rank:2")].chosen is not None


def test_the_paper_says_how_rates_were_chosen(tmp_path: Path) -> None:
    text = paper_of(make_study(tmp_path / "grid", Made(rates=GRID)))
    assert "chosen for every arm and budget from a grid" in text and "tried around this rate" not in text
    text = paper_of(make_study(tmp_path / "steps", Made(rates="2.0e-3, tune: baseline")))
    assert "from 0.002 on rates are added in steps of a factor 1.8" in text and "tried around this rate" in text


def test_a_control_without_clipping_has_no_share_of_clipped_steps(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = study_file(
        ("arms: [uniform, linear-decay, empirical, random]", "arms: [uniform]"),
        ("dropout: 0.1", "max_grad_norm: 1.0e-6"),
        ("controls: none", "controls: [unclipped]"),
    )
    run_study(load_study(path), tmp_path / "out")
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        found = read_findings(ledger)
        losses = {arm.arm: arm.loss.mean for arm in found.arms if arm.loss}
        assert losses.keys() == {"uniform", "uniform-unclipped"} and len(set(losses.values())) == 2
        assert clipped_shares(found) == {("uniform", "rank:2"): 1.0}
        assert found.lock["controls"]["unclipped"] == ["uniform-unclipped"]
        assert "uniform-unclipped" in write_report(ledger, tmp_path / "out").read_text()
