"""The table of committed studies that goes with the package, and who is worth trying by it."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType
from typing import Any

import pytest

from adaptive_lora.recommend.evidence import LONGEST_SEARCH, counts, support, table, trial_of, worth_trying
from adaptive_lora.recommend.rates import bracket, default_rate
from tests.committed import RESULTS


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`scripts/evidence.py`."""
    spec = importlib.util.spec_from_file_location("evidence_script", RESULTS.parent / "scripts" / "evidence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_committed_studies_say(script: ModuleType) -> None:
    """`python scripts/evidence.py` makes it anew."""
    made: dict[str, list[dict[str, Any]]] = json.loads(json.dumps(script.evidence(RESULTS)))
    assert made.keys() == table().keys()
    for name, rows in made.items():
        assert len(rows) == len(table()[name]) > 0
        for row, kept in zip(rows, table()[name], strict=True):
            assert kept == {k: pytest.approx(v, abs=2e-6) if isinstance(v, float) else v for k, v in row.items()}


def row(strategy: str, verdict: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"strategy": strategy, "verdict": verdict, "options": options or {}}


def test_wins_less_losses_come_first_then_equivalence_and_each_strategy_once() -> None:
    rows = [
        row("eva", "better"), row("eva", "worse"), row("fim", "equivalent"), row("fim", "undecided"),
        row("gora", "worse"), row("eva", "better", {"power": 0.5}),
    ]  # fmt: skip
    found = support(rows)
    assert [(own.strategy, own.options) for own in found] == [("eva", {"power": 0.5}), ("fim", {}), ("gora", {})]
    assert found[1].comparisons == 2 and (found[1].equivalent, found[1].undecided) == (1, 1)


def test_a_plan_that_takes_training_must_have_won_somewhere_and_stays_short() -> None:
    trials = {trial.strategy: trial for trial in worth_trying(9, steps=24)}
    assert list(trials)[:2] == ["lora-drop", "attention-heavy"]
    assert "adalora" not in trials  # equivalent, for twice the training
    drop = trials["lora-drop"]
    assert drop.updates == drop.options["short_run_steps"] == LONGEST_SEARCH * 24 and drop.records == 0
    assert trials["attention-heavy"].updates == trials["attention-heavy"].records == 0
    assert trials["empirical"].records == 32 and trials["empirical"].updates == 0


def test_a_long_run_keeps_the_short_run_of_the_evidence() -> None:
    drop = next(own for own in support() if own.strategy == "lora-drop")
    assert trial_of(drop, steps=300).updates == 100
    assert "short_run_steps" not in trial_of(drop, steps=300).options


def test_counts_add_up() -> None:
    found = counts()
    assert found.pop("total") == sum(found.values()) == len(table()["comparisons"])


@pytest.mark.parametrize("study", ["alpaca-babyllama-full", "alpaca-stories260k", "gsm8k-stories260k"])
def test_the_default_bracket_holds_every_rate_that_was_tuned_for_a_middle_budget(study: str) -> None:
    for own in (row for row in table()["rates"] if row["study"] == study and row["budget"] in ("rank:4", "rank:8")):
        low, _, high = bracket(default_rate(own["parameters"]))
        assert low <= own["rate"] <= high
