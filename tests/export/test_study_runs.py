"""Which run of a study is exported, and what its card says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.api import load_study
from adaptive_lora.errors import StudyFolderError, UsageError
from adaptive_lora.export.study_runs import _of_cell, is_study, runs_of
from adaptive_lora.reporting.arm_story import story_of, verdict_on
from adaptive_lora.reporting.exported import export_study, open_findings
from adaptive_lora.study.results import load_results

STUDY = """\
name: small
model: {name: demo}
data: {source: "demo:fine-tuning", train: 24, validation: 6, test: 8, max_length: 64}
budgets: ["rank:1", "rank:2"]
arms: [uniform, linear-decay, random]
seeds: {evaluation: 4}
train: {steps: 2, batch_size: 2, learning_rate: 1e-2}
analysis: {primary: [linear-decay], margin: 0.01}
controls: none
report: {answers: 0}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    file = folder.parent / "small.yaml"
    file.write_text(STUDY)
    load_study(file).run(folder, device="cpu")
    return folder


def test_best_and_median_are_by_validation_loss(study: Path) -> None:
    table = load_results(study)
    own = table[(table["arm"] == "random") & (table["budget"] == "rank:2")].sort_values("validation_loss")
    (best,), (median,) = (runs_of(study, "random", "rank:2", which) for which in ("best", "median"))
    assert len(own) == 4 and best.run_id == own["run_id"].iloc[0] and median.run_id == own["run_id"].iloc[1]
    assert best.chosen == "the lowest validation loss of 4 runs" and best.name == "random-rank-2"
    assert best.folder == study / "adapters" / best.run_id and best.model == "demo"
    assert [run.seed for run in runs_of(study, "random", "rank:2", "all")] == sorted(own["seed"])


def test_what_does_not_say_which_runs_are_meant_is_refused(study: Path) -> None:
    with pytest.raises(UsageError, match=r"has 3 arms; name one with --arm: uniform, linear-decay, random"):
        runs_of(study, None, "rank:2")
    with pytest.raises(UsageError, match=r"has 2 budgets; name one with --budget"):
        runs_of(study, "random", None)
    with pytest.raises(UsageError, match=r"no arm 'lineardecay' \(did you mean 'linear-decay'\?\)"):
        runs_of(study, "lineardecay", "rank:2")


def test_an_arm_at_one_budget_needs_no_budget_named() -> None:
    """Controls at half and twice the budget are the baseline's alone."""
    cells = [("uniform", "rank:1"), ("uniform", "rank:2"), ("random", "rank:2")]
    table = pd.DataFrame(cells, columns=["arm", "budget"])
    assert _of_cell(table, "random", None, Path("x"))["budget"].tolist() == ["rank:2"]
    with pytest.raises(UsageError, match=r"trains random at other budgets only: rank:2\."):
        _of_cell(table, "random", "rank:1", Path("x"))


def test_an_export_has_no_adapters(study: Path, tmp_path: Path) -> None:
    export_study(study, tmp_path / "text")
    assert is_study(tmp_path / "text") and is_study(study) and not is_study(tmp_path)
    with pytest.raises(StudyFolderError, match="an export, which has results and no adapters"):
        runs_of(tmp_path / "text", "random", "rank:2")


def test_an_adapter_that_is_gone_is_named(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "adapters")
    with pytest.raises(StudyFolderError, match=r"the adapter of random at rank:2, seed \d, was moved or deleted"):
        runs_of(tmp_path / "copy", "random", "rank:2")


def test_the_story_of_a_run(study: Path) -> None:
    (run,) = runs_of(study, "linear-decay", "rank:2")
    story = story_of(study, run, "owner/base")
    facts = dict(story.facts)
    assert story.name == "linear-decay-rank-2" and story.title == "linear-decay at rank:2, on owner/base"
    assert facts["run"] == f"seed {run.seed}, the lowest validation loss of 4 runs"
    assert facts["data"] == "demo:fine-tuning: 24 records trained on" and "Apache-2.0" in facts["licence of the data"]
    assert facts["test loss"] == f"{run.test_loss:.4f} nats per token"
    assert story.verdict is not None and "Beside `uniform` at rank:2: " in story.verdict
    assert "arm minus baseline" in story.verdict and "95 % interval [" in story.verdict


def test_verdicts_of_the_baseline_and_of_what_was_no_hypothesis(study: Path) -> None:
    with open_findings(study) as found:
        assert "is the baseline" in verdict_on(found, "uniform", "rank:2")
        told = verdict_on(found, "random", "rank:2")
        (judged,) = [j for c, j in found.judged.items() if (c.arm, c.budget) == ("linear-decay", "rank:2")]
        own = verdict_on(found, "linear-decay", "rank:2")
    assert "no verdict, as the study named no such hypothesis beforehand" in told and "interval [" in told
    assert str(judged.verdict) in own


def test_the_verb_from_a_study_to_a_served_form(study: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from adaptive_lora.cli.main import app

    def call(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["export", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    copy = tmp_path / "small"
    shutil.copytree(study, copy)
    where = (copy, "--arm", "linear-decay", "--budget", "rank:2")
    code, said, _ = call(*where, "--for", "vllm")
    folder = copy / "adapters" / "best" / "linear-decay-rank-2-vllm"
    assert code == 0 and f"vllm serve {folder}" in said  # GPT-2's shapes: merged
    assert "reads no adapters on the transposed weights of gpt2" in said
    assert {"README.md", "compat.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    again, _, error = call(*where, "--for", "vllm")
    assert again == 2 and "overwrites nothing" in error
    code, said, _ = call(*where, "--run", "all", "--form", "peft", "--out", tmp_path / "all", "--json")
    told = json.loads(said)
    assert code == 0 and [Path(own["folder"]).name for own in told] == [f"seed-{seed}" for seed in range(4)]
    assert all(own["check"]["passed"] for own in told)
    config = json.loads((tmp_path / "all" / "seed-0" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo"
    code, said, _ = call(tmp_path / "all" / "seed-0", "--form", "unit", "--out", tmp_path / "unit", "--prompt", "Hi")
    assert code == 0 and "logits of 5 prompts differ by at most" in said


Arguments = tuple[str, ...]
Call = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name a study folder, an adapter's folder or a plan"),
        (("x",), "Say which form with --form, or which tool it is for with --for"),
        (("x", "--form", "pded"), "There is no form 'pded' (did you mean 'padded'?)"),
        (("x", "--for", "vlm"), "There is no tool 'vlm' in the table (did you mean 'vllm'?)"),
        (("x", "--for", "sglang", "--form", "unit"), "SGLang does not read the form unit (refused"),
        (("x", "--form", "unit", "--arm", "a"), "--arm and --budget are of a study"),
        (("x", "--form", "unit"), "Name a folder for the export with --out"),
    ],
)
def test_bad_calls_are_told_what_to_do(
    arguments: Arguments, message: str, call: Callable[..., tuple[int, str]]
) -> None:
    code, error = call("export", *arguments)
    assert code == 2 and message in error


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """A verb in an empty folder: exit code and what stands on stderr."""
    from typer.testing import CliRunner

    from adaptive_lora.cli.main import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.stderr

    return run


def test_the_table_is_printed(call: Call) -> None:
    from typer.testing import CliRunner

    from adaptive_lora.cli.main import app

    shown = CliRunner().invoke(app, ["export", "--list"])
    told = CliRunner().invoke(app, ["export", "--list", "--json"])
    assert shown.exit_code == 0 and "tensorrt-llm" in shown.stdout and "single-alpha" in shown.stdout
    assert {row["name"] for row in json.loads(told.stdout)} >= {"vllm", "mlx"}
