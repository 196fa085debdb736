"""The loss of a general text, measured beside the test loss, which nothing rests on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adaptive_lora.data.general import windows_of
from adaptive_lora.errors import StudyFolderError
from adaptive_lora.reporting.exported import export_study, open_findings
from adaptive_lora.reporting.html.forgetting import forgetting
from adaptive_lora.reporting.html.page import made_tables, render_page
from adaptive_lora.stats.estimators import Interval, mean_interval
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.base import load_base
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.generation import attached_from

WriteStudy = Callable[..., Path]
TWO_ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]")
QUIET = ("controls: none", "controls: none\nreport: {answers: 0}")
GENERAL = ("max_length: 64", "max_length: 64, general: general.txt")
TEXT = " ".join(f"the {a} {b} was {c}." for a in ("old", "red") for b in ("cat", "hill") for c in ("here", "gone")) * 4


@pytest.mark.parametrize("engine", ["bank", "reference"])
def test_a_general_text_is_measured_and_changes_nothing(
    study_file: WriteStudy, tmp_path: Path, model_folders: dict[str, Path], engine: str
) -> None:
    by_engine = ("engine: bank", f"engine: {engine}")
    (tmp_path / "general.txt").write_text(TEXT)
    plain = load_study(study_file(TWO_ARMS, QUIET, by_engine, name="plain.yaml"))
    study = load_study(study_file(TWO_ARMS, QUIET, by_engine, GENERAL))
    run_study(plain, tmp_path / "plain")
    run_study(study, tmp_path / "out")
    without, runs = load_results(tmp_path / "plain"), load_results(tmp_path / "out")
    assert "general_loss" not in without and plain.identity != study.identity
    assert (runs["run_id"] == without["run_id"]).all() and np.array_equal(runs["test_loss"], without["test_loss"])

    base = load_base("gpt2", model_folders["gpt2"])
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        facts = ledger.facts()
        kept = ledger.by_record(BASE, "general")
    assert kept is not None and facts["data"]["general"]["tokens"] == kept.tokens.sum()
    texts = windows_of(TEXT, base.tokenizer, 64, 0, "text")
    assert runs["base_general_loss"].unique() == pytest.approx([evaluate(base.model, texts, base.device).loss])
    for run in runs.itertuples():
        with attached_from(base, tmp_path / "out" / "adapters" / str(run.run_id)):
            own = evaluate(base.model, texts, base.device).loss
        assert run.general_loss == pytest.approx(own, rel=1e-5) and run.general_loss != run.base_general_loss

    if engine == "bank":
        check_page(tmp_path)
        (tmp_path / "general.txt").write_text(TEXT.replace("cat", "dog"))
        with pytest.raises(StudyFolderError, match=r"model or the data .* have changed since it began: general: "):
            run_study(study, tmp_path / "out")


def check_page(folder: Path) -> None:
    """The table has every arm's change with its interval; so has an export without its archive."""
    runs = load_results(folder / "out")
    runs["change"] = runs["general_loss"] - runs["base_general_loss"]
    export_study(folder / "out", folder / "export")
    (folder / "export" / "ledger.npz").unlink()
    for place in ("out", "export"):
        with open_findings(folder / place) as found:
            table = forgetting(found)
            page = render_page(found, made_tables(found), [])
        assert table is not None and [row.arm for row in table.rows] == ["uniform", "linear-decay"]
        for row in table.rows:
            change = row.cells[3]
            wanted = mean_interval(runs.loc[runs["arm"] == row.arm, "change"].tolist())
            assert isinstance(change, Interval)
            assert (change.mean, change.low, change.n) == pytest.approx((wanted.mean, wanted.low, 2))
        assert '<section id="forgetting"' in page and "general.txt, " in page and "Described, not tested" in page
    with open_findings(folder / "plain") as found:
        assert forgetting(found) is None and "general text" not in render_page(found, made_tables(found), [])


def test_it_is_found_beside_the_study_file_and_from_the_copy_in_the_folder(
    study_file: WriteStudy, tmp_path: Path
) -> None:
    (tmp_path / "general.txt").write_text(TEXT)
    study = load_study(study_file(TWO_ARMS, QUIET, GENERAL, ("steps: 6", "steps: 1")))
    run_study(study, tmp_path / "out")
    copy = load_study(tmp_path / "out" / "study.yaml")
    assert copy.spec.data.general == str((tmp_path / "general.txt").resolve()) and copy.identity == study.identity
    assert run_study(copy, tmp_path / "out").finished
