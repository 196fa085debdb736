"""A study with arms that leave modules out, from file to report, by both engines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from peft import PeftModel

from adaptive_lora.errors import StudyFileError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.strategies import STRATEGIES, find_strategy
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.study.estimate import estimate
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.results import export, load_results, ranks_table
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training.base import FrozenBase
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
ALL = "[uniform, linear-decay, empirical, random]"
INWARD = "{name: inward, strategy: only, options: {modules: [c_attn, c_fc]}}"
ARMS = (ALL, f"[uniform, attention-only, mlp-only, {INWARD}]")
RANK_5 = ("rank:2", "rank:5")  # each of these arms can spend it to the last parameter


@pytest.fixture(params=["bank", "reference"])
def done(request: pytest.FixtureRequest, study_file: WriteStudy, tmp_path: Path) -> Path:
    path = study_file(ARMS, RANK_5, ("engine: bank", f"engine: {request.param}"))
    assert run_study(load_study(path), tmp_path / "out").finished
    return tmp_path / "out"


def test_arms_that_leave_modules_out_reach_the_tables_and_the_report(done: Path, gpt2: FrozenBase) -> None:
    runs = load_results(done)
    assert set(runs["trainable_parameters"]) == {5760} and (runs["test_loss"] < runs["base_loss"]).all()
    with contextlib.closing(open_to_read(done)) as ledger:
        ranks = ranks_table(ledger)
        page = write_report(ledger, done).read_text()
        export(ledger, done / "text")
    assert len(ranks) == len(runs) * 12
    zero = ranks[ranks["rank"] == 0]
    assert zero.groupby("arm")["kind"].unique().map(list).to_dict() == {
        "attention-only": ["mlp"],
        "mlp-only": ["attention"],
        "inward": ["attention", "mlp"],
    }
    assert zero["scaling"].isna().all() and (zero["parameters"] == 0).all() and len(zero) == 3 * 2 * 6
    assert ranks.groupby(["arm", "seed"])["parameters"].sum().eq(5760).all()
    assert len(pd.read_csv(done / "text" / "ranks.csv")) == len(ranks)

    for roles in ("mlp.c_fc, mlp.c_proj", "attn.c_attn, attn.c_proj", "attn.c_proj, mlp.c_proj"):
        assert page.count(f"leaves out 6 of 12 modules: {roles}<") == 1
    assert page.count("Grey, –: left out, no adapter.") == 2 * 2  # overview and heat maps, each in label and caption
    assert page.count("#e4e4e4") >= 3 * 12

    by_arm = {arm: StudyPaths(done).adapter(id_) for arm, id_ in zip(runs["arm"], runs["run_id"], strict=True)}
    config = json.loads((by_arm["mlp-only"] / "adapter_config.json").read_text())
    assert len(config["rank_pattern"]) == 6 and all(".mlp." in name for name in config["target_modules"])
    with quiet_libraries():
        loaded = PeftModel.from_pretrained(gpt2.model, str(by_arm["attention-only"]))
    adapted = {name for name, _ in loaded.named_parameters() if "lora_A" in name}
    assert len(adapted) == 6 and all(".attn." in name for name in adapted)
    inward = json.loads((by_arm["inward"] / "adapter_config.json").read_text())
    assert {name.split(".")[-1] for name in inward["target_modules"]} == {"c_attn", "c_fc"}


def test_both_engines_agree_on_them(study_file: WriteStudy, tmp_path: Path) -> None:
    run_study(load_study(study_file(ARMS)), tmp_path / "bank")
    run_study(load_study(study_file(ARMS, REFERENCE)), tmp_path / "reference")
    bank, reference = (load_results(tmp_path / name) for name in ("bank", "reference"))
    assert list(bank["arm"]) == list(reference["arm"])
    pd.testing.assert_series_equal(bank["test_loss"], reference["test_loss"], rtol=1e-4)
    assert bank.groupby("arm")["test_loss"].first().nunique() == 4


def test_a_study_without_mark_of_it_where_nothing_is_left_out(study_file: WriteStudy, tmp_path: Path) -> None:
    run_study(load_study(study_file((ALL, "[uniform, linear-growth, u-shape]"))), tmp_path / "out")
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        page = write_report(ledger, tmp_path / "out").read_text()
    assert "left out, no adapter" not in page and "leaves out" not in page and "#e4e4e4" not in page


def test_the_budget_must_pay_for_covered_modules_alone(study_file: WriteStudy) -> None:
    floor = 3 * (96 + 48)  # rank 1 in all attention modules
    alone = (ALL, "[attention-only]"), ("analysis: {primary: []}", "analysis: {baseline: attention-only, primary: []}")
    prepare(load_study(study_file(*alone, ("rank:2", f"params:{floor}"))))
    with pytest.raises(StudyFileError, match=r"line 4, budgets\[0\]: .*rank 1 in each of 6 target modules"):
        prepare(load_study(study_file(*alone, ("rank:2", f"params:{floor - 1}"))))


def test_so_it_must_where_such_an_arm_measures(study_file: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = dataclasses.replace(find_strategy("attention-only"), needs=lambda options: ("gradient-norm",))
    monkeypatch.setitem(STRATEGIES, "attention-only", measured)  # type: ignore[arg-type]
    alone = (ALL, "[attention-only]"), ("analysis: {primary: []}", "analysis: {baseline: attention-only, primary: []}")
    prepare(load_study(study_file(*alone, ("rank:2", "params:432"))))
    with pytest.raises(StudyFileError, match="rank 1 in each of 6 target modules"):
        prepare(load_study(study_file(*alone, ("rank:2", "params:431"))))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("[uniform, mlp-only]", r"line 6, arms\[1\]: mlp-only gives rank to mlp modules alone"),
        (
            "[uniform, {strategy: only, options: {modules: [c_attn, c_fc]}}]",
            r"line 6, arms\[1\]: only: `modules` names 'c_fc', and none of the 6 target modules",
        ),
        (
            "[uniform, {strategy: shuffled, options: {source: uniform}}]",
            r"line 6, arms\[1\]: .*cannot change the plan of uniform",
        ),
        (
            "[uniform, {strategy: inverted, options: {source: random}}]",
            r"line 6, arms\[1\]: inverted: `source` cannot be random",
        ),
    ],
)
def test_what_can_have_no_plan_is_refused_before_anything_is_written(
    study_file: WriteStudy, arms: str, message: str
) -> None:
    with pytest.raises(StudyFileError, match=message):
        prepare(load_study(study_file((ALL, arms), ("budgets:", "targets: attention\nbudgets:"))))


LEAST = 3 * (96 + 48 + 120 + 120)  # rank 1 in the four modules of each block
MEASURED = (ALL, "[uniform, empirical, {strategy: shuffled, options: {source: empirical}}]")


@pytest.mark.parametrize("spare", [0, 47])  # the cheapest unit costs 48
def test_so_is_a_shuffled_plan_that_the_budget_alone_decides(study_file: WriteStudy, spare: int) -> None:
    message = r"line 5, arms\[2\]: `shuffled` cannot change the plan of empirical: it gives rank 1 to every module"
    with pytest.raises(StudyFileError, match=message):
        prepare(load_study(study_file(MEASURED, ("rank:2", f"params:{LEAST + spare}"))))


def test_a_shuffled_plan_is_let_in_where_the_budget_leaves_a_choice(study_file: WriteStudy) -> None:
    prepare(load_study(study_file(MEASURED, ("rank:2", f"params:{LEAST + 48}"))))


def test_the_shuffled_control_is_in_nobodys_way(study_file: WriteStudy) -> None:
    """Where each plan is the same there is none; of a budget in parameters that shows only when the model is known."""
    arms = ((ALL, "[uniform, empirical]"), ("controls: none", "controls: all"))
    prepare(load_study(study_file(*arms, ("rank:2", "rank:1"))))
    with pytest.raises(StudyFileError, match=r"line 9, controls: .* Or name the `controls` without shuffled\."):
        prepare(load_study(study_file(*arms, ("rank:2", f"params:{LEAST}"))))


def test_an_arm_that_cannot_spend_its_budget_is_warned_of(study_file: WriteStudy) -> None:
    found = estimate(prepare(load_study(study_file(ARMS, ("rank:2", "rank:20")))))
    assert found.parameters["uniform at rank:20"] == 23_040
    short = [warning for warning in found.warnings if "spends" in warning]
    assert len(short) == 3 and "attention-only at rank:20 spends 10,368 of 23,040 parameters" in short[0]


def test_transforms_run_as_arms(study_file: WriteStudy, tmp_path: Path) -> None:
    arms = (
        "[uniform, empirical, inverted, shuffled, {name: turned, strategy: inverted, options: {source: linear-decay}}]"
    )
    assert run_study(load_study(study_file((ALL, arms))), tmp_path / "out").finished
    with contextlib.closing(open_to_read(tmp_path / "out")) as ledger:
        ranks = ranks_table(ledger).pivot_table(index=["arm", "seed"], columns="module", values="rank")
        plans = {(run["arm"], run["seed"]): ledger.plan(run["run_id"]) for run in ledger.runs()}
    for seed in (0, 1):
        own, other = ranks.loc[("empirical", seed)], ranks.loc[("inverted", seed)]
        assert own.corr(other, method="spearman") < -0.5
        assert (own != ranks.loc[("shuffled", seed)]).sum() >= 6
        hashes = {plans[arm, seed]["provenance"]["measured"]["calibration_hash"] for arm in ("empirical", "inverted")}
        assert len(hashes) == 1  # measured on the same records as the source's own arm
    assert plans["shuffled", 0]["options"]["seed"] != plans["shuffled", 1]["options"]["seed"]
    assert ranks.loc[("turned", 0)].equals(ranks.loc[("turned", 1)])
