"""The guide for method authors is true: what stands in it is taken out and done."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import adaptive_lora
from adaptive_lora.cli.main import app
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import STRATEGIES, find_strategy
from adaptive_lora.planning.strategies.base import Strategy
from adaptive_lora.planning.strategies.contract import RULES
from adaptive_lora.planning.strategies.registry import GROUP, load_strategies

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "adding-a-strategy.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\S+(?: \S+)?)\n(.*?)^```$", GUIDE, flags=re.S | re.M)


def block(kind: str) -> str:
    (text,) = [text for found, text in BLOCKS if found == kind]
    return text


def commands(start: str) -> list[list[str]]:
    lines = [line for found, text in BLOCKS if found == "bash" for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(start)]


def call(command: list[str]) -> Result:
    return CliRunner().invoke(app, command[1:])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the guide's file, and nothing else of the guide's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_strategy.py").write_text(block("python"))
    yield tmp_path
    assert "my-strategy" not in STRATEGIES


def test_its_strategy_passes_the_check(folder: Path) -> None:
    (command,) = commands("adaptive-lora check-strategy")
    done = call(command)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * (len(RULES) + 1)


def test_a_strategy_that_breaks_the_contract_does_not_pass(folder: Path) -> None:
    (command,) = commands("adaptive-lora check-strategy")
    wrong = block("python").replace("** options.power", "** options.power + 1 / list(modules).index(m)")
    (folder / "my_strategy.py").write_text(wrong)
    done = call([*command, "--json"])
    came = {rule["rule"]: rule["came"] for rule in json.loads(done.stdout)["rules"]}
    assert done.exit_code == 1 and "line 19: the strategy my-strategy failed: ZeroDivisionError" in came["order"]
    (folder / "my_strategy.py").write_text(wrong.replace("1 / list(modules).index(m)", "list(modules).index(m)"))
    done = call(command)
    assert done.exit_code == 1
    assert re.search(
        r"^failed +order +asked: the same ranks for modules in any order; came: \S+ has rank", done.stdout, re.M
    )
    assert re.search(r"^ok +budget ", done.stdout, flags=re.M)


def test_its_plans_can_be_had_by_the_verb_and_from_python(folder: Path) -> None:
    plain, bent = (call(command) for command in commands("adaptive-lora plan"))
    assert plain.exit_code == bent.exit_code == 0, plain.output + bent.output
    assert "my-strategy: 98,304 of 98,304 parameters" in plain.stdout and "measuring: weight-rms" in plain.stdout
    found = json.loads(bent.stdout)
    assert found["options"]["power"] == 0.5 and len(set(found["ranks"].values())) > 1
    assert list(found["measured"]["seconds"]) == ["weight-rms"]
    exec(block("python plan"), {"adaptive_lora": adaptive_lora})
    assert RankPlan.load("plan.json").ranks == found["ranks"]


def test_its_study_runs_to_the_report(folder: Path) -> None:
    text = block("yaml")
    dry, run, report = (commands(f"adaptive-lora {verb}")[at] for verb, at in (("run", 0), ("run", 1), ("report", 0)))
    (folder / "my-study.yaml").write_text(text)
    assert len(adaptive_lora.load_study("my-study.yaml").spec.arms) == 5
    assert dry == ["adaptive-lora", "run", "my-study.yaml", "--dry-run"]
    for old, new in (
        ("train: 100, validation: 50, test: 200", "train: 16, validation: 4, test: 8"),
        ("{evaluation: 8, tuning: 3}", "{evaluation: 1}"),
        ("steps: 60", "steps: 2"),
        ("[1e-3, 3e-3, 1e-2]", "1e-2"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "my-study.yaml").write_text(text + "analysis: {primary: []}\ncontrols: none\nreport: {answers: 0}\n")
    done = call(run)
    assert done.exit_code == 0, done.output
    results = adaptive_lora.load_results("runs/my-study")
    assert results.runs["trainable_parameters"].eq(98_304).all() and len(results.runs) == 5
    (folder / "my_strategy.py").unlink()
    assert call(report).exit_code == 0
    assert "my-ranks-elsewhere" in (folder / "runs" / "my-study" / "report.html").read_text()


def test_its_recovery_stands_beside_what_the_guide_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands("python bench/recovery.py")
    (beside,) = re.findall(r"each strategy recovers, beside `(\S+)` and `(\S+)`", GUIDE)
    asked = command[-1].split(",")
    assert {"my_strategy.py:my-strategy", *beside} == {*asked, "uniform"}  # which every comparison has
    spec = importlib.util.spec_from_file_location("recovery", ROOT / command[1])
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(sys, "argv", command[1:])
    parsed = bench.arguments()
    assert parsed.strategies == "my-strategy,random" and find_strategy(parsed.references[0]).name == "my-strategy"
    (folder / "my_strategy.py").write_text("import no_such_package\n")
    with pytest.raises(SystemExit):
        bench.arguments()


def test_its_entry_point_is_in_the_group_that_is_looked_at(folder: Path) -> None:
    (points,) = tomllib.loads(block("toml"))["project"]["entry-points"].items()
    assert points[0] == GROUP
    ((name, place),) = points[1].items()
    found = load_strategies(folder / "my_strategy.py")[name]
    assert isinstance(found, Strategy) and f"\ndef {place.partition(':')[2]}(" in block("python")
