"""A study or its export as one source more: the numbers of its report, other metrics, diverged runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.judging import Asked, judge_runs
from adaptive_lora.foreign.sources import Reading, read_runs
from adaptive_lora.stats.evidence import StudyTables, judge_primary
from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import export, runs_table
from tests.reporting.ledgers import Made, make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("judged") / "study", Made(seeds=6))


def test_a_study_is_judged_as_its_own_report_does(study: Path) -> None:
    (found,) = (
        o
        for o in judge_runs(read_runs([str(study)]), Asked("uniform", tasks=("rank:4",)))
        if o.paired.arm == "linear-decay"
    )
    with contextlib.closing(open_to_read(study)) as ledger:
        facts = ledger.facts()
        tables = StudyTables(runs_table(ledger), ledger.by_record)
        primary = [{"arm": "linear-decay", "budget": "rank:4"}]
        (own,) = judge_primary(tables, primary, facts["spec"]).values()
    assert own.mean is not None and found.difference == pytest.approx(own.mean, rel=1e-9)
    assert found.over_seeds is not None and found.over_records is not None and found.verdict == "better"
    assert found.paired.items == 400 and len(found.paired.table.seeds) == 6


def test_an_export_without_its_archive_is_judged_over_seeds(study: Path, tmp_path: Path) -> None:
    with contextlib.closing(open_to_read(study)) as ledger:
        export(ledger, tmp_path)
    (tmp_path / "ledger.npz").unlink()
    found = judge_runs(read_runs([str(tmp_path)]), Asked("uniform", tasks=("rank:4",)))
    assert {o.resampled for o in found} == {"seeds"}
    whole = judge_runs(read_runs([str(study)]), Asked("uniform", tasks=("rank:4",)))
    assert [o.difference for o in found] == pytest.approx([o.difference for o in whole], abs=1e-7)


def test_who_diverged_is_not_better(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made(seeds=6))
    with contextlib.closing(create_or_open(folder)) as ledger:
        last = [r for r in ledger.runs() if r["arm"] == "linear-decay" and r["phase"] == "evaluation"][-1]
        ledger._db.execute("DELETE FROM evaluations WHERE run_id = ?", (last["run_id"],))
        ledger._db.execute("UPDATE runs SET status = ? WHERE run_id = ?", (str(Status.DIVERGED), last["run_id"]))
        ledger._db.commit()
    found = {o.paired.arm: o for o in judge_runs(read_runs([str(folder)]), Asked("uniform", tasks=("rank:4",)))}
    assert found["linear-decay"].verdict == "undecided" and "diverged pairs" in found["linear-decay"].cautions


def test_exact_match_is_there_where_answers_are(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whose metrics are test_loss and exact_match; got 'acc'"):
        read_runs([str(study)], Reading(metric="acc"))
    with contextlib.closing(open_to_read(study)) as ledger:
        answers = bool(ledger.facts()["data"].get("exact_answers"))
        stored = ledger.by_record(next(r["run_id"] for r in ledger.runs() if r["phase"] == "evaluation"), "test")
    assert stored is not None and not np.any(stored.exact)
    if answers:
        runs = read_runs([str(study)], Reading(metric="exact_match"))
        assert {q.metric for run in runs for q in run.questions} == {"exact_match"}
        assert {item.value for item in next(iter(runs[0].items.values())).values()} == {0.0}
    else:
        with pytest.raises(UsageError, match="no exact_match to judge: its data have no single right answers"):
            read_runs([str(study)], Reading(metric="exact_match"))
