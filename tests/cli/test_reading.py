"""Verbs that read: the same from a study folder and from an export, and without torch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adaptive_lora.cli.main import app
from adaptive_lora.reporting.exported import export_all
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import open_to_read
from tests.fresh import READING, fresh
from tests.reporting.ledgers import Made, make_study

RESULTS = Path(__file__).parents[2] / "results"
VERBS = """\
import json, sys
from typer.testing import CliRunner
from adaptive_lora.cli.main import app
told = []
for arguments in json.loads(sys.argv[1]):
    found = CliRunner().invoke(app, arguments)
    told.append([found.exit_code, found.stdout, found.stderr, repr(found.exception)])
print(json.dumps(told))
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def without_train(*commands: list[object]) -> list[tuple[int, str, str, str]]:
    """(exit code, stdout, stderr, exception) of each command where only the base dependencies are."""
    asked = json.dumps([[str(a) for a in command] for command in commands])
    told = fresh(READING).run(VERBS, asked)
    assert told.returncode == 0, told.stderr
    return [tuple(found) for found in json.loads(told.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study folder; `text` beside it is its export, `bare` that without its archive."""
    place = tmp_path_factory.mktemp("reading")
    folder = make_study(place / "study", Made(seeds=3), stop_after=8)
    with contextlib.closing(open_to_read(folder)) as ledger:
        export_all(ledger, place / "text")
        export_all(ledger, place / "bare")
    StudyPaths(place / "bare").archive.unlink()
    return folder


@pytest.mark.parametrize("export", ["text", "bare"])
def test_an_export_is_read_as_its_study_folder_is(study: Path, export: str) -> None:
    folder = study.parent / export
    for arguments in (["--csv"], ["--json"]):
        assert call("results", folder, *arguments).stdout == call("results", study, *arguments).stdout != ""
    told, own = (json.loads(call("status", f, "--json").stdout) for f in (folder, study))
    assert told["exported"] and not own["exported"] and own["left"] > 0
    assert {**told, "exported": False, "current": []} == {**own, "current": []}
    assert [run["run_id"] for run in told["current"]] == [run["run_id"] for run in own["current"]]
    assert f"{own['left']} left; an export" in call("status", folder).stdout


def test_an_export_stays_as_it_is(study: Path, tmp_path: Path) -> None:
    folder = study.parent / "text"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = call("report", folder)
    assert refused.exit_code == 2 and f"adaptive-lora report {folder} --out runs/pages/text" in refused.stderr
    again = call("results", folder, "--out", tmp_path / "again")
    assert again.exit_code == 2 and "is an export already" in again.stderr and not (tmp_path / "again").exists()
    shown = call("memory", folder)
    assert shown.exit_code == 0 and "# Active context" in shown.stdout and "name a folder with --out" in shown.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    written = call("memory", folder, "--out", tmp_path / "bank")
    assert written.exit_code == 0 and len(list((tmp_path / "bank" / "memory-bank").iterdir())) == 7
    assert call("memory", study, "--out", tmp_path / "other").stdout == shown.stdout == written.stdout
    assert not StudyPaths(study).memory_bank.exists()


def test_reading_needs_the_base_dependencies_alone(tmp_path: Path) -> None:
    demo = RESULTS / "demo"
    verbs: list[list[object]] = [
        ["status", demo], ["results", demo, "--json"], ["memory", demo, "--out", tmp_path / "bank"],
        ["report", demo, "--out", tmp_path / "page"], ["strategies"], ["init"],
        ["plan", "--model", "demo", "--strategy", "linear-decay", "--out", tmp_path / "plan.json", "--json"],
    ]  # fmt: skip
    for verb, (code, text, complaint, raised) in zip(verbs, without_train(*verbs), strict=True):
        assert code == 0 and text, (verb, complaint, raised)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan["modules"]) == 24 and plan["trainable_parameters"] <= plan["budget"]
    assert (tmp_path / "page" / "report.html").stat().st_size > 100_000
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"report.html", "figures", "tables"}


def test_doctor_says_what_an_installation_without_the_extra_can_do() -> None:
    ((code, text, _, raised),) = without_train(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(text)}
    assert code == 0, raised
    for name in ("Python and torch", "forward and backward", "bank", "PEFT rank pattern"):
        assert checks[name]["state"] == "note" and "is not installed: this installation reads" in checks[name]["found"]
        assert "adaptive-lora[train]" in checks[name]["remedy"]
    assert checks["ledger"]["state"] == "ok"


def test_what_needs_the_extra_says_so(tmp_path: Path) -> None:
    verbs: list[list[object]] = [
        ["run", "studies/demo.yaml", "--out", tmp_path / "out"], ["run", "studies/demo.yaml", "--dry-run"],
        ["demo", "--out", tmp_path / "out"], ["data", "profile", "demo:all"],
        ["plan", "--model", "demo", "--strategy", "empirical", "--data", "demo:fine-tuning"],
        ["plan", "--model", "demo", "--peft", tmp_path / "peft"], ["plan", "--model", "sshleifer/tiny"],
    ]  # fmt: skip
    names = ["run", "run", "demo", "data profile", "plan", "plan", "plan"]
    for name, (code, text, complaint, raised) in zip(names, without_train(*verbs), strict=True):
        assert (code, text) == (2, ""), (name, raised)
        said = complaint.splitlines()[-1]  # after what was under way
        assert said == f"error: `{name}` needs torch and its family: pip install 'adaptive-lora[train]'"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["report", "memory", "results"])
def test_a_place_that_cannot_be_is_named(study: Path, verb: str) -> None:
    folder = study if verb == "results" else study.parent / "text"
    result = call(verb, folder, "--out", "/proc/none/x")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("error: /proc/none"), result.stderr
