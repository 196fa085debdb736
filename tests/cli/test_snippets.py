"""`plan --for`: stdout is what is pasted, stderr what was checked, and files are written when they were asked for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from adaptive_lora.cli.main import app
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.open_ledger import open_to_read
from tests.export.conftest import pasted_plan
from tests.reporting.ledgers import make_ledger


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


DECAY = ("--model", "demo", "--strategy", "linear-decay", "--budget", "rank:4")


def test_stdout_is_what_is_pasted_and_stderr_what_was_checked() -> None:
    done = call(*DECAY, "--for", "axolotl")
    assert done.exit_code == 0, done.output
    keys = yaml.safe_load(done.stdout)
    assert len(keys["lora_target_modules"]) == len(keys["lora_rank_pattern"]) == 24
    assert "checked: read back, PEFT " in done.stderr and "in 24 modules\n" in done.stderr
    assert "loaded with Axolotl" in done.stderr  # or: not loaded with Axolotl: it is not installed
    assert done.stdout.startswith(
        "# linear-decay, rank:4 on demo: 24 modules, 49,152 of 49,152 trainable parameters.\n"
    )


def test_a_tool_with_one_rank_is_told_of_with_the_way_out(tmp_path: Path) -> None:
    done = call(*DECAY, "--for", "llama-factory", "--out", tmp_path / "lora.yaml")
    assert done.exit_code == 0 and done.stdout == "", done.output
    assert yaml.safe_load((tmp_path / "lora.yaml").read_text())["lora_rank"] == 4
    said = (
        "note: LLaMA-Factory has one rank for all modules, so this is rank 4 in the plan's 24 modules: 49,152 of 49,152"
    )
    assert said in done.stderr and "With `--adapter DIR` it trains the plan itself" in done.stderr
    assert f"wrote {tmp_path / 'lora.yaml'}" in done.stderr.replace("\n", "")


def test_an_adapter_at_step_0_lies_where_the_text_says(tmp_path: Path) -> None:
    from peft import LoraConfig

    folder = tmp_path / "my-adapter"
    done = call(*DECAY, "--for", "llama-factory", "--adapter", folder, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert yaml.safe_load(found["text"]) == {"finetuning_type": "lora", "adapter_name_or_path": str(folder)}
    assert found["instead"] is None and found["trainable_parameters"] == 49_152
    config = LoraConfig.from_pretrained(str(folder))
    assert {name[1:].replace("\\", ""): rank for name, rank in config.rank_pattern.items()} == found["ranks"]
    assert (folder / "adapter_model.safetensors").stat().st_size > 4 * 49_152


def test_a_saved_plan_is_pasted_too(model_folders: dict[str, Path], tmp_path: Path) -> None:
    from adaptive_lora.training.base import outline_of

    model = model_folders["llama"]
    plan = pasted_plan(outline_of("llama", model).modules)  # as a study's run leaves it: no cost of planning in it
    plan.save(tmp_path / "plan.json")
    done = call("--model", model, "--plan", tmp_path / "plan.json", "--for", "axolotl")
    assert done.exit_code == 0, done.output
    assert list(yaml.safe_load(done.stdout)["lora_rank_pattern"].values()) == [plan.ranks[m.name] for m in plan.modules]
    done = call("--model", model, "--plan", tmp_path / "plan.json", "--peft", tmp_path / "peft")
    assert done.exit_code == 0 and (tmp_path / "peft" / "adapter_config.json").is_file() and done.stdout == ""
    for arguments, said in (
        (("--model", "demo", "--for", "trl"), "is a plan of another model: demo has no module model.layers.0."),
        (("--model", model), "is a plan already; say what to make of it with --for, --peft or --adapter"),
    ):
        done = call(*arguments, "--plan", tmp_path / "plan.json")
        assert done.exit_code == 2 and said in done.stderr and done.stdout == ""


def test_the_plan_of_a_studys_run_comes_with_its_learning_rate(tmp_path: Path) -> None:
    study = make_ledger(tmp_path / "study")
    with contextlib.closing(open_to_read(study)) as ledger:
        run = next(run for run in ledger.runs() if run["arm"] == "decay-01")
    assert call(*DECAY, "--out", tmp_path / "plan.json").exit_code == 0
    folder = study / "adapters" / run["run_id"]
    folder.mkdir(parents=True)
    (tmp_path / "plan.json").rename(folder / "plan.json")
    done = call("--model", "demo", "--plan", folder / "plan.json", "--for", "axolotl")
    assert done.exit_code == 0 and yaml.safe_load(done.stdout)["learning_rate"] == run["learning_rate"], done.output
    (folder / "plan.json").rename(tmp_path / "plan.json")
    done = call("--model", "demo", "--plan", tmp_path / "plan.json", "--for", "axolotl")
    assert done.exit_code == 0 and "learning_rate" not in yaml.safe_load(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "axolotls"), "no known training tool (did you mean 'axolotl'?)"),
        (("--for", "trl", "--adapter", "x"), "needs none, as it takes ranks of single modules"),
        (("--for", "torchtune"), "has no name for attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"),
        (("--for", "axolotl", "--scaling", "rslora"), "takes whole alphas alone"),
    ],
)
def test_what_cannot_be_is_said_with_a_remedy(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = call(*DECAY, *arguments, "--out", tmp_path / "text")
    assert done.exit_code == 2 and said in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_without_for_a_plan_is_written_as_ever(tmp_path: Path) -> None:
    done = call(*DECAY, "--out", tmp_path / "plan.json", "--adapter", tmp_path / "adapter")
    assert done.exit_code == 0 and "linear-decay: 49,152 of 49,152 parameters" in done.stdout
    assert RankPlan.load(tmp_path / "plan.json").trainable_parameters == 49_152
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_without_torch_the_text_is_printed_and_said_to_be_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else real(name, *rest))
    done = call(*DECAY, "--for", "axolotl")
    assert done.exit_code == 0 and "not checked here: torch and PEFT are not installed" in done.stderr
    assert len(yaml.safe_load(done.stdout)["lora_rank_pattern"]) == 24
