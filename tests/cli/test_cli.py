"""The verbs as a user meets them: data on stdout, exit codes, one clear message for every bad input."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adaptive_lora.cli import progress
from adaptive_lora.cli.main import app
from adaptive_lora.training.checkpoint import StepRecord

WriteStudy = Callable[..., Path]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def gpt2_medium(tmp_path: Path) -> Path:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 24, "n_embd": 1024, "n_head": 16,
              "n_positions": 1024, "vocab_size": 50257}  # fmt: skip
    folder = tmp_path / "medium"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_plan_of_dialogpt_medium_from_its_configuration_alone(gpt2_medium: Path) -> None:
    result = call("plan", "--model", gpt2_medium, "--strategy", "uniform", "--budget", "rank:16", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (found["strategy"], found["budget"], found["modules"]) == ("uniform", "rank:16", 96)
    assert (found["trainable_parameters"], found["total_parameters"]) == (6_291_456, 361_114_624)
    assert set(found["ranks"].values()) == {16} and set(found["scalings"].values()) == {2.0}
    assert found["ranks"].keys() == found["scalings"].keys() and len(found["ranks"]) == 96


def test_plan_shows_a_table_and_writes_files(tmp_path: Path) -> None:
    result = call(
        "plan", "--model", "demo", "--strategy", "linear-decay", "--option", "slope=-1", "--budget", "params:40000",
        "--scaling", "rslora", "--out", tmp_path / "plan.json", "--peft", tmp_path / "peft",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "h.5.mlp.c_proj" in result.stdout and "rank per block" in result.stdout and "24 modules" in result.stdout
    from peft import LoraConfig

    from adaptive_lora import RankPlan

    plan = RankPlan.load(tmp_path / "plan.json")
    config = LoraConfig.from_pretrained(str(tmp_path / "peft"))
    assert plan.trainable_parameters <= 40_000 and plan.scaling.rule == "rslora"
    assert sorted(config.rank_pattern.values()) == sorted(plan.ranks.values())


def test_plan_by_measurement_needs_data_and_says_so() -> None:
    without = call("plan", "--model", "demo", "--strategy", "empirical")
    with_data = call("plan", "--model", "demo", "--strategy", "empirical", "--data", "demo:fine-tuning", "--json")
    assert without.exit_code == 2 and "give `--data`" in without.stderr
    assert len(set(json.loads(with_data.stdout)["ranks"].values())) > 1


def test_a_study_by_its_verbs(study_file: WriteStudy, tmp_path: Path) -> None:
    study, out = study_file(("[uniform, linear-decay, empirical, random]", "[uniform, random]")), tmp_path / "out"
    dry = call("run", study, "--dry-run")
    assert dry.exit_code == 0 and not out.exists()
    assert "evaluation" in dry.stdout and "random at rank:2" in dry.stdout and "no primary comparison" in dry.stdout

    run = call("run", study, "--out", out)
    assert run.exit_code == 0 and run.stdout == "" and "4 of 4 runs completed" in run.stderr
    again = call("run", study, "--out", out)
    assert again.exit_code == 0 and "4 of 4 runs completed" in again.stderr

    status = json.loads(call("status", out, "--json").stdout)
    assert (status["left"], status["counts"]) == (0, {"completed": 4})
    assert "4 of 4 runs have a result, complete; not running" in call("status", out).stdout

    as_json = json.loads(call("report", out, "--json").stdout)
    assert [arm["arm"] for arm in as_json["arms"]] == ["uniform", "random"] and Path(as_json["report"]).is_file()
    report = call("report", out)
    assert report.exit_code == 0 and str(out / "report.html") in report.stdout

    rows = json.loads(call("results", out, "--json").stdout)
    header, *lines = call("results", out, "--csv").stdout.splitlines()
    columns = ("run_id phase arm strategy budget seed learning_rate scaling trainable_parameters status base_loss "
               "validation_loss test_loss test_perplexity plan_seconds train_seconds").split()  # fmt: skip
    assert set(columns) <= set(header.split(",")) and len(lines) == len(rows) == 4
    assert set(columns) <= rows[0].keys()
    assert call("results", out, "--out", tmp_path / "text").exit_code == 0
    assert (tmp_path / "text" / "runs.csv").read_text().count("\n") == 5
    banks = [folder / "memory-bank" / "activeContext.md" for folder in (out, tmp_path / "text")]
    banks[0].write_text(banks[0].read_text() + "Ours.\n")
    assert call("results", out, "--out", tmp_path / "text").exit_code == 0
    assert banks[0].read_bytes() == banks[1].read_bytes() and banks[1].read_text().endswith("Ours.\n")


def test_bad_input_ends_with_2_one_message_and_nothing_written(study_file: WriteStudy, tmp_path: Path) -> None:
    torn = tmp_path / "torn.json"
    torn.write_text('[{"instruction": "a", "output"')
    keys = tmp_path / "keys.json"
    keys.write_text('[{"q": "a", "a": "b"}]')
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    source = '"demo:fine-tuning"'
    cases = [
        (study_file((source, f'"{tmp_path / "none.json"}"'), name="a.yaml"), "none.json does not exist"),
        (study_file((source, f'"{torn}"'), name="b.yaml"), "cut short"),
        (study_file((source, f'"{keys}"'), name="c.yaml"), "expected `messages` or"),
        (study_file((source, f'"{empty}"'), name="d.yaml"), "holds no records"),
        (study_file(("test: 20", "test: 20000"), name="e.yaml"), "the splits ask for"),
        (study_file(("budgets:", "targets: [nothing]\nbudgets:"), name="f.yaml"), "matches no module"),
        (study_file(("rank:2", "params:10"), name="g.yaml"), "rank 1 in each of 12 target modules"),
        (study_file(("uniform,", "unifrom,"), name="h.yaml"), "did you mean 'uniform'"),
        (tmp_path / "no-study.yaml", "adaptive-lora init"),
    ]
    for path, message in cases:
        result = call("run", path, "--out", tmp_path / "out")
        text = " ".join(result.stderr.split())
        assert (result.exit_code, result.stdout) == (2, ""), path
        assert message in text and "Traceback" not in text, text
        assert text.count("error:") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--model", "demo", "--strategy", "unifrom"], "did you mean 'uniform'"),
        (["plan", "--model", "/none", "--budget", "rank:4"], "does not exist"),
        (["plan", "--model", "demo", "--budget", "rank"], "Write for example `rank:8`"),
        (["plan", "--model", "demo", "--budget", "params:5"], "at least"),
        (["plan", "--model", "demo", "--targets", "q_proj"], "matches no module"),
        (["plan", "--model", "demo", "--scaling", "rs"], "constant, rslora or alpha-over-r"),
        (["plan", "--model", "demo", "--strategy", "linear-decay", "--option", "slope"], "key=value"),
        (["plan", "--model", "demo", "--strategy", "linear-decay", "--option", "slope=x"], "`slope`"),
        (["data", "profile", "none.json"], "does not exist"),
        (["data", "profile", "demo:nothing"], "no group of tasks"),
        (["data", "profile", "demo:all", "--template", "alpacca"], "template must be one of"),
        (["data", "profile", "demo:all", "--template", "chat"], "no chat template"),
        (["init", "dem"], "did you mean 'demo'"),
        (["plan", "--model", "demo", "--out", "/"], "is a directory"),
        (["run", "studies/demo.yaml", "--out", "x", "--device", "gpu"], "there is: cpu"),
        (["status", "none"], "no study folder"),
        (["report", "none"], "no study folder"),
        (["results", "none"], "no study folder"),
    ],
)
def test_every_verb_explains_bad_input(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message.lower() in " ".join(result.stderr.split()).lower()
    assert result.stdout == ""


def test_run_without_a_folder_shows_the_command(study_file: WriteStudy) -> None:
    result = call("run", study_file())
    assert result.exit_code == 2 and "--out runs/study" in result.stderr


@pytest.mark.usefixtures("whole_sources")
def test_data_profile_shows_counts_histogram_and_masked_samples(tmp_path: Path) -> None:
    text = call("data", "profile", "demo:all", "--png", tmp_path / "lengths.png").stdout
    assert "records" in text and "tokens per record" in text and text.count("masked (dim), learnt (bold)") == 3
    assert (tmp_path / "lengths.png").stat().st_size > 1000
    found = json.loads(call("data", "profile", "demo:all", "--json").stdout)
    assert found["records"] == 4000 and found["form"] == "alpaca" and len(found["samples"]) == 3


def test_data_cannot_drive_the_terminal(tmp_path: Path) -> None:
    rows = [{"instruction": "a\x1b[31m\x1b]0;title\x07[bold]b[/bold]", "output": "\u202eevil"}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    text = call("data", "profile", tmp_path / "data.json").stdout
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "[bold]b[/bold]" in text


def test_strategies_lists_all_with_what_they_need_and_where_they_come_from() -> None:
    from adaptive_lora.planning.strategies import STRATEGIES

    rows = {row["name"]: row for row in json.loads(call("strategies", "--json").stdout)}
    assert list(rows) == list(STRATEGIES) and len(rows) >= 12
    assert {rows[name]["needs"] for name in ("uniform", "u-shape", "mlp-only", "random")} == {"none"}
    assert {rows[name]["needs"] for name in ("empirical", "inverted", "shuffled")} == {"gradients"}
    assert rows["empirical"]["measures"] == rows["shuffled"]["measures"] == ["weight-gradient"]
    assert (rows["shuffled"]["rests_on"], rows["random"]["rests_on"]) == ("data", "chance")
    assert [rows[name]["covers"] for name in ("uniform", "mlp-only", "kappa")] == ["all", "mlp", "some"]
    assert rows["linear-growth"]["source"] == "PRILoRA, arXiv 2401.11316"
    assert rows["inverted"]["options"] == {"min_rank": 1, "max_rank": None, "source": "empirical"}
    text = call("strategies").stdout
    for name, row in rows.items():
        assert re.search(rf"^{name} +{row['needs']} ", text, flags=re.M), name
    assert "PRILoRA, arXiv 2401.11316; slope=1.0" in text


@pytest.mark.parametrize("width", [80, 120])
def test_tables_lose_nothing_in_a_narrow_terminal(width: int, assets: Path) -> None:
    from rich.console import Console

    from adaptive_lora import api
    from adaptive_lora.cli import terminal

    shown = io.StringIO()
    console = Console(width=width, file=shown)
    made = api.plan(assets / "models" / "babyllama-tok361", "attention-only")
    facts = {**api.plan_json(made), "measured": {"seconds": {"gradients": 1.0}, "calibration_tokens": 7906}}
    tables = terminal.coverage_table(made), terminal.heat_map(made), terminal.planning_cost(facts)
    console.print(terminal.strategies_view(), *tables)
    text = shown.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    rows = re.findall(
        r"^layers\.(\d)\.(?:self_attn|mlp)\.\w+ +(?:attention|mlp) +\d+×\d+ +(?:\d+|–) ", text, flags=re.M
    )
    assert len(rows) == 35 and "modules of model" in text


def test_plan_tells_what_planning_cost() -> None:
    by_shape = call("plan", "--model", "demo", "--strategy", "u-shape").stdout
    assert "planned in" in by_shape and "cost of planning" not in by_shape
    arguments = (
        "plan --model demo --strategy inverted --data demo:fine-tuning "
        "--option source_options.calibration_batches=2 --option source_options.power=0.5"
    ).split()
    text = " ".join(call(*arguments).stdout.split())
    found = json.loads(call(*arguments, "--json").stdout)
    measured = found["measured"]
    assert measured["calibration_records"] == 8 and 0 < sum(measured["seconds"].values()) < found["plan_seconds"]
    assert f"calibration tokens {measured['calibration_tokens']:,}" in text and "calibration records 8" in text
    for group in measured["seconds"]:
        assert re.search(rf"measuring: {group} [\d.]+ s", text)
    assert found["options"]["source"] == "empirical" and found["options"]["source_options"]["power"] == 0.5
    assert json.loads(call("plan", "--model", "demo", "--json").stdout)["measured"] is None


def test_plan_shows_what_is_left_out() -> None:
    text = call("plan", "--model", "demo", "--strategy", "mlp-only").stdout
    found = json.loads(call("plan", "--model", "demo", "--strategy", "mlp-only", "--json").stdout)
    assert "12 modules (12 left out)" in text and "(–: left out)" in text
    assert len(re.findall(r"^h\.\d\.attn\.c_\w+ +attention +\S+ +– +– +– +–$", text, flags=re.M)) == 12
    assert found["modules"] == len(found["ranks"]) == len(found["left_out"]) == 12
    refused = call("plan", "--model", "demo", "--strategy", "mlp-only", "--targets", "attention")
    assert refused.exit_code == 2 and "mlp-only gives rank to mlp modules alone" in refused.stderr


def test_init_copies_recipes_that_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptive_lora.recipes import list_recipes
    from adaptive_lora.study.study_file import load_study

    monkeypatch.setenv("ADAPTIVE_LORA_ASSETS", str(tmp_path))
    monkeypatch.setenv("ADAPTIVE_LORA_REASONING", str(tmp_path))
    assert {"demo", "dialogpt-alpaca", "dialogpt-alpaca-original", "alpaca-babyllama"} <= set(list_recipes())
    for name in list_recipes():
        result = call("init", name, "--out", tmp_path / name / "study.yaml")
        assert result.exit_code == 0, result.output
        load_study(tmp_path / name / "study.yaml")
        assert name in call("init").stdout
    assert call("init", "demo", "--out", tmp_path / "demo" / "study.yaml").exit_code == 2


def test_the_original_studys_ranks_fit_its_model(gpt2_medium: Path, tmp_path: Path) -> None:
    from adaptive_lora.planning.plan import fixed_ranks
    from adaptive_lora.recipes import recipe
    from adaptive_lora.study.prepare import open_outline
    from adaptive_lora.study.study_file import load_study

    modules = open_outline(str(gpt2_medium)).modules
    spec = load_study(recipe("dialogpt-alpaca-original")).spec
    sizes = {a.name: sum(fixed_ranks(a.ranks, modules, a.name).values()) for a in spec.arms if a.ranks is not None}
    assert len(sizes) == 3 and len(set(sizes.values())) > 1 and spec.scaling.rule == "alpha-over-r"


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal is real; a process of its own has it in tests/soak."""

    class Interrupted(progress.PlainProgress):
        def step(self, record: StepRecord) -> None:
            signal.raise_signal(signal.SIGINT)

    study = study_file(("[uniform, linear-decay, empirical, random]", "[uniform, random]"))
    with monkeypatch.context() as patched:
        patched.setattr(progress, "progress_for", Interrupted)
        stopped = call("run", study, "--out", tmp_path / "out")
    assert stopped.exit_code == 130
    assert "saving a checkpoint; press Ctrl-C again" in stopped.stderr
    assert "run the same command again to continue" in stopped.stderr and "Traceback" not in stopped.stderr
    assert json.loads(call("status", tmp_path / "out", "--json").stdout)["left"] == 4
    assert list((tmp_path / "out" / "checkpoints").glob("bank-*/*.safetensors"))
    assert call("run", study, "--out", tmp_path / "out").exit_code == 0


def test_doctor_makes_real_checks_and_finds_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0 and len(checks) >= 6
    for name in ("Python and torch", "forward and backward", "PEFT rank pattern", "ledger"):
        assert checks[name]["state"] == "ok", checks[name]
    assert checks["hub"]["state"] == "note" and "HF_HUB_OFFLINE" in checks["hub"]["found"]

    from adaptive_lora.planning.plan import RankPlan

    honest = RankPlan.to_lora_config

    def ignoring_patterns(self: RankPlan, dropout: float = 0.0):  # noqa: ANN202
        config = honest(self, dropout)
        config.rank_pattern = {}
        return config

    monkeypatch.setattr(RankPlan, "to_lora_config", ignoring_patterns)
    broken = call("doctor")
    assert broken.exit_code == 1
    assert (
        re.search(r"failed\s+PEFT rank pattern: TrainingError", broken.stdout)
        and "pip install -U peft" in broken.stdout
    )


def test_a_pilot_tells_the_power_of_a_dry_run(study_file: Callable[..., Path], tmp_path: Path) -> None:
    pilot = study_file(("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]"),
                       ("evaluation: 2", "evaluation: 3"), ("steps: 6", "steps: 2"), name="pilot.yaml")  # fmt: skip
    call("run", str(pilot), "--out", str(tmp_path / "out"))
    call("results", str(tmp_path / "out"), "--out", str(tmp_path / "text"))
    study = str(study_file(("primary: []", "primary: [linear-decay]"), ("evaluation: 2", "evaluation: 10")))
    dry = ("run", study, "--dry-run")
    found = {name: json.loads(call(*dry, "--json", "--pilot", str(tmp_path / name)).stdout) for name in ("out", "text")}
    (power,) = found["out"]["outlook"]["power"]
    assert power["arm"] == "linear-decay" and power["detectable"] > power["half_width"] > 0 and power["by_record"]
    assert found["out"]["design"]["seeds"] == 10
    (exported,) = found["text"]["outlook"]["power"]  # as well, with losses by record as an archive rounds them
    assert exported["half_width"] == pytest.approx(power["half_width"], rel=1e-4)
    said = " ".join(call(*dry, "--pilot", str(tmp_path / "out")).stdout.split())
    assert f"1 primary comparison a difference of {power['detectable']:.4f} is found in 80 % of studies" in said
    assert "if every arm differs by seeds runs hours decided no effect 10 " in said and "the file's 10 seeds" in said
    assert "--pilot" in call(*dry).stdout  # without one


def test_the_runs_of_its_own_folder_tell_the_power_of_a_dry_run(study_file: WriteStudy, tmp_path: Path) -> None:
    arms = ("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]")
    rates, seeds = ("learning_rate: 1e-2", "learning_rate: [3e-3, 1e-2]"), "{evaluation: 2}"
    study, out = study_file(arms, rates, (seeds, "{evaluation: 1, tuning: 3}"), name="begun.yaml"), tmp_path / "out"
    dry = ("--dry-run", "--json", "--out", out)
    assert json.loads(call("run", study, *dry).stdout)["outlook"] is None and not out.exists()
    assert call("run", study, "--out", out).exit_code == 0
    more = study_file(arms, rates, (seeds, "{evaluation: 8, tuning: 3}"))
    found = json.loads(call("run", more, *dry).stdout)
    (power,) = found["outlook"]["power"]  # one evaluation seed has no spread, three tuning seeds have
    assert power["arm"] == "linear-decay" and power["half_width"] > 0 and power["by_record"]


def test_a_demo_in_a_folder_that_is_not_its_own_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    result = call("demo", "--out", tmp_path)
    assert result.exit_code == 2 and "name a new folder with --out, or remove it" in " ".join(result.output.split())
    assert (tmp_path / "mine.txt").read_text() == "keep me"
