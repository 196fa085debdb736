"""The guide for method authors is true: what stands in it is taken out and done."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.measures import measuring
from adaptive_lora.planning import strategies
from adaptive_lora.planning.strategies import STRATEGIES, Strategy, base, transforms
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.study.ledger import open_to_read
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from tests.planning import test_strategies as suite

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "adding-a-strategy.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\S+(?: \S+)?)\n(.*?)^```$", GUIDE, flags=re.S | re.M)


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


def load(text: str, name: str, folder: Path) -> ModuleType:
    """The text of a file as a module."""
    (folder / f"{name}.py").write_text(text)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Strategy]:
    """The guide's strategy, added as the guide says."""
    of_strategy, of_measure = blocks("python")
    files = re.findall(r"`src/adaptive_lora/(\S+)/(\w+)\.py`:", GUIDE)
    assert files == [("planning/strategies", "my_strategy"), ("scores", "weight_rms")]
    for text, (room, name) in zip((of_strategy, of_measure), files, strict=True):
        assert (ROOT / "src" / "adaptive_lora" / room).is_dir()
        monkeypatch.setitem(sys.modules, name, load(text, name, tmp_path))
    names: dict[str, Any] = {name: sys.modules[name] for _, name in files}
    names["weight_rms"] = sys.modules["weight_rms"].weight_rms
    for kind, table in (("MEASURES", base.MEASURES), ("GROUPS", measuring.GROUPS)):
        (line,) = blocks(f"python {kind}")
        for key, value in eval("{" + line + "}", names).items():
            monkeypatch.setitem(table, key, value)  # type: ignore[arg-type]
    (line,) = blocks("text registry")
    own = (*strategies._OWN, *eval(f"({line})", names))
    for strategy in (own[-1], *transforms.of(own)):
        monkeypatch.setitem(STRATEGIES, strategy.name, strategy)  # type: ignore[arg-type]
    yield own[-1]


def test_its_strategy_fulfils_the_contract(added: Strategy) -> None:
    checks = [value for name, value in vars(suite).items() if name.startswith("test_contract")]
    assert len(checks) >= 4
    for check in checks:
        check(strategy=added)
    (command,) = [line for text in blocks("bash") for line in text.splitlines() if line.startswith("pytest")]
    _, path, _, name = shlex.split(command)
    assert ROOT / path == Path(suite.__file__) and name == added.name


def test_a_strategy_that_breaks_the_contract_is_caught(added: Strategy) -> None:
    """What the guide promises of the suite: a plan over budget does not pass."""

    def one_more(*arguments: Any) -> dict[str, int]:
        ranks = added.allocate(*arguments)
        return {name: rank + (name == min(ranks)) for name, rank in ranks.items()}

    with pytest.raises((AssertionError, ExceptionGroup)):  # a group where it breaks more than one rule
        suite.test_contract_exactly_on_budget_within_bounds(strategy=dataclasses.replace(added, allocate=one_more))


def test_its_recovery_stands_beside_what_the_guide_says(added: Strategy) -> None:
    (command,) = [line for text in blocks("bash") for line in text.splitlines() if "bench/recovery.py" in line]
    asked = shlex.split(command)[-1].split(",")
    (beside,) = re.findall(r"each strategy recovers, beside `(\S+)` and `(\S+)`", GUIDE)
    assert {added.name, *beside} == {*asked, "uniform"}  # which every comparison has


def test_its_plans_can_be_had_by_the_verb(added: Strategy) -> None:
    lines = [line for text in blocks("bash") for line in text.splitlines() if line.startswith("adaptive-lora plan")]
    plain, bent = (CliRunner().invoke(app, shlex.split(line)[1:]) for line in lines)
    assert plain.exit_code == bent.exit_code == 0, plain.output + bent.output
    assert "my-strategy: 98,304 of 98,304 parameters" in plain.stdout and "measuring: weight rms" in plain.stdout
    found = json.loads(bent.stdout)
    assert found["options"]["power"] == 0.5 and len(set(found["ranks"].values())) > 1
    assert list(found["measured"]["seconds"]) == ["weight rms"]
    row = next(row for row in json.loads(CliRunner().invoke(app, ["strategies", "--json"]).stdout)
               if row["name"] == added.name)  # fmt: skip
    assert (row["needs"], row["measures"], row["rests_on"]) == ("weights", ["weight-rms"], "nothing")


def test_its_study_runs_to_the_report(added: Strategy, tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "whole.yaml").write_text(text)
    assert len(load_study(tmp_path / "whole.yaml").spec.arms) == 5
    for old, new in (
        ("train: 100, validation: 50, test: 200", "train: 16, validation: 4, test: 8"),
        ("{evaluation: 8, tuning: 3}", "{evaluation: 1}"),
        ("steps: 60", "steps: 2"),
        ("[1e-3, 3e-3, 1e-2]", "1e-2"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "short.yaml").write_text(text + "analysis: {primary: []}\ncontrols: none\n")
    assert run_study(load_study(tmp_path / "short.yaml"), tmp_path / "out").finished
    assert load_results(tmp_path / "out")["trainable_parameters"].eq(98_304).all()
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        assert "my-ranks-elsewhere" in write_report(ledger, tmp_path / "out").read_text()
