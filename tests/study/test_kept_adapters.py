"""Which adapters stay in a study folder, and that nothing else depends on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.export.study_runs import runs_of
from adaptive_lora.study import kept_adapters
from adaptive_lora.study.engines import engine as engines
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.kept_adapters import drop_adapters
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.schema_report import ReportPart
from adaptive_lora.study.study_file import load_study

WriteStudy = Callable[..., Path]


def asking(study_file: WriteStudy, keep: str) -> Path:
    return study_file(
        ("[uniform, linear-decay, empirical, random]", "[uniform, random]"),
        ("steps: 6", "steps: 2"),
        ("controls: none", f"controls: none\nreport: {{answers: 1, keep_adapters: {keep}}}"),
    )


def adapters(out: Path) -> set[str]:
    return {path.name for path in (out / "adapters").iterdir()}


def test_the_best_of_every_arm_stays_and_answers_are_given_all_the_same(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_DROPPED_EVERY", 1)
    study, out = load_study(asking(study_file, "best")), tmp_path / "out"
    assert study.identity == load_study(asking(study_file, "all")).identity
    run_study(study, out)
    best = [runs_of(out, arm, None, "best")[0] for arm in ("uniform", "random")]
    assert adapters(out) == {run.run_id for run in best} and len(load_results(out)) == 4
    with contextlib.closing(open_to_read(out)) as ledger:
        said = ledger.facts()["answers"]
    assert (
        "missing" not in said and len(said["records"][0]["answers"]) == 3 and None not in said["records"][0]["answers"]
    )
    with pytest.raises(StudyFolderError, match="was not kept, as the study says `keep_adapters: best`"):
        runs_of(out, "random", None, "all")

    # A folder that has results already becomes smaller by the same command.
    run_study(load_study(asking(study_file, "none")), out)
    assert adapters(out) == set()


def test_what_a_command_has_still_to_score_stays(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(asking(study_file, "none"))
    runs = [{"run_id": f"run-{n}", "phase": "evaluation", "replica": 0, "seed": n} for n in range(3)]

    class Table:
        def runs(self, **_: Any) -> list[dict[str, Any]]:
            return runs

    for name in ("run-0", "run-1", "run-2", "of-an-export", "set-aside"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
    monkeypatch.setattr(kept_adapters, "unscored", lambda ledger, metric: runs[1:2])
    first = study.spec.seeds.evaluation[0]
    drop_adapters(study, Table(), StudyPaths(tmp_path))  # type: ignore[arg-type]
    assert adapters(tmp_path) == {f"run-{first}", "run-1", "of-an-export", "set-aside"}
    drop_adapters(study, Table(), StudyPaths(tmp_path), at_end=True)  # type: ignore[arg-type]
    assert adapters(tmp_path) == {"run-1", "of-an-export", "set-aside"}


def test_a_study_that_says_nothing_of_it_is_recorded_as_before() -> None:
    assert ReportPart().model_dump(mode="json") == {"answers": 5}
    assert ReportPart(keep_adapters="none").model_dump(mode="json") == {"answers": 5, "keep_adapters": "none"}
