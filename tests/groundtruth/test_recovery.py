"""Recovery: equal terms for all arms, and the script that goes on where it was cut."""

from __future__ import annotations

import argparse
import json
import math
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import StrategyError, TrainingError
from adaptive_lora.groundtruth import recovery
from adaptive_lora.groundtruth.recovery import Setting, Task, make_task, recover
from adaptive_lora.groundtruth.truths import truth_ranks
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.stats.recovery import CONCENTRATED, summary
from adaptive_lora.study.schema import ArmPart
from adaptive_lora.training.bank import Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.options import TrainingOptions
from tests.groundtruth.conftest import altered, divergence, log_answers

SCRIPT = Path(__file__).parents[2] / "bench" / "recovery.py"
KEYS = {
    "truth", "seed", "planted_ranks", "planted_parameters", "divergence", "correlation", "plan_seconds", "planning",
    "parameters",
}  # fmt: skip
STRATEGIES = ("linear-decay", "random", "empirical")


@pytest.fixture
def setting(gpt2: FrozenBase, examples: list[Example]) -> Setting:
    """Rank 5 everywhere costs what rank 12 in the MLPs of two blocks does."""
    modules = gpt2.outline.modules
    training = TrainingOptions(learning_rate=1e-2, steps=4, batch_size=4)
    return Setting(
        base=gpt2, modules=modules, budget=resolve_budget("rank:5", modules), training=training, texts=examples,
        length=16, beginning=4, test=12, probes=4, effect=0.3,
    )  # fmt: skip


@pytest.fixture
def task(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The task of one truth and seed, which all comparisons of a test then share."""
    made = make_task(setting, "last-mlp", 3)
    monkeypatch.setattr(recovery, "make_task", lambda *_: made)
    return made


def test_all_arms_meet_on_equal_terms(setting: Setting, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Member] = []
    train = recovery.train_students

    def listen(base: FrozenBase, members: Sequence[Member], *rest: Any) -> list[float]:
        seen.extend(members)
        return train(base, members, *rest)

    monkeypatch.setattr(recovery, "train_students", listen)
    found = recover(setting, "last-mlp", 3, STRATEGIES)
    assert found.keys() == KEYS
    assert (found["truth"], found["seed"]) == ("last-mlp", 3)
    arms = ["uniform", *STRATEGIES, "oracle", "floor"]
    for table in ("divergence", "correlation", "parameters"):
        assert list(found[table]) == arms
    for table in ("plan_seconds", "planning"):
        assert list(found[table]) == arms[:-2]
    budget = setting.budget.parameters
    assert set(found["parameters"].values()) == {budget} == {found["planted_parameters"]}
    assert [m.plan.trainable_parameters for m in seen] == [budget] * len(arms)
    assert all(m.seed == 3 and m.options == setting.training and m.examples is seen[0].examples for m in seen)
    assert all(m.plan.scaling == seen[0].plan.scaling for m in seen)
    assert min(found["divergence"].values()) > 0
    assert found["planning"]["empirical"] and not found["planning"]["uniform"]

    plans = dict(zip(arms, (m.plan for m in seen), strict=True))
    right = truth_ranks("last-mlp", setting.modules, budget, 3)
    assert found["planted_ranks"] == right
    assert plans["oracle"].ranks == {name: r for name, r in right.items() if r}
    assert {m.name for m in plans["oracle"].modules} == set(plans["oracle"].ranks)
    left = [m for m in setting.modules if not right[m.name]]  # rank 1 there, but for what no MLP's rank can cost
    assert all(plans["floor"].ranks[m.name] >= 1 for m in left)
    assert sum(m.params_per_rank * (plans["floor"].ranks[m.name] - 1) for m in left) < 120
    assert found["correlation"]["oracle"] == pytest.approx(1.0)
    assert found["correlation"]["uniform"] is None

    again = recover(setting, "last-mlp", 3, STRATEGIES[:2])
    assert [again["divergence"][n] for n in again["divergence"]] == pytest.approx(
        [found["divergence"][n] for n in again["divergence"]], rel=1e-5
    )


def test_what_a_strategy_trains_is_given_to_uniform_and_to_chance_too(
    setting: Setting, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Member] = []
    train = recovery.train_students

    def listen(base: FrozenBase, members: Sequence[Member], *rest: Any) -> list[float]:
        seen.extend(members)
        return train(base, members, *rest)

    monkeypatch.setattr(recovery, "train_students", listen)
    found = recover(replace(setting, equal_cost=True), "last-mlp", 3, ["random", "search", "empirical"])
    arms = ["uniform", "random", "search", "empirical", "search-x9", "oracle", "floor", "uniform-x9"]
    assert list(found["divergence"]) == arms  # a search tries eight plans, then trains the best
    assert [member.options.steps for member in seen] == [4] * 7 + [36]
    assert seen[-1].plan.ranks == seen[0].plan.ranks
    assert seen[4].plan.ranks == seen[2].plan.ranks  # at eight draws it is the search itself
    assert found["divergence"]["uniform-x9"] < found["divergence"]["uniform"]
    assert "uniform-x9" not in found["plan_seconds"]


def test_gradients_and_adalora_see_distributions_where_that_is_asked(
    setting: Setting, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = recovery.answer_loss

    def recording(answers: Any) -> Any:
        loss = plain(answers)
        return lambda *given: (calls.append(len(given[2])), loss(*given))[1]

    monkeypatch.setattr(recovery, "answer_loss", recording)
    recover(setting, "last-mlp", 3, ["gora"])
    assert not calls
    recover(replace(setting, by_answers=True), "last-mlp", 3, ["gora"])
    assert calls and max(calls) == 4  # the calibration's batches
    calls.clear()
    recover(replace(setting, by_answers=True), "last-mlp", 3, ["adalora"])
    assert set(calls) == {4}  # its updates


def test_a_strategy_without_a_plan_is_missing_and_the_others_are_not(
    setting: Setting, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recover(setting, "last-mlp", 3, STRATEGIES[:2])
    make = recovery.make_plan
    for error in (StrategyError("no plan"), TrainingError("no plan")):
        failing = "random"

        def fail(base: FrozenBase, modules: Any, arm: ArmPart, *rest: Any, error: Exception = error) -> RankPlan:
            if arm.name == failing:  # noqa: B023
                raise error
            return make(base, modules, arm, *rest)

        monkeypatch.setattr(recovery, "make_plan", fail)
        found = recover(setting, "last-mlp", 3, STRATEGIES[:2])
        assert found.keys() == KEYS and list(found["divergence"]) == ["uniform", *STRATEGIES[:2], "oracle", "floor"]
        assert math.isnan(found["divergence"].pop("random")) and found["correlation"]["random"] is None
        assert found["planning"]["random"] == {"failed": "no plan"} and "random" not in found["parameters"]
        assert found["divergence"] == pytest.approx(
            {n: d for n, d in whole["divergence"].items() if n != "random"}, rel=1e-5
        )
        lost = found | {"divergence": found["divergence"] | {"random": math.nan}}
        strategies = summary([lost], CONCENTRATED)["last-mlp"]["strategies"]
        assert strategies["random"]["share_of_oracle_gain"]["mean"] is None
        assert strategies["linear-decay"]["share_of_oracle_gain"]["mean"] is not None
        failing = "uniform"  # which every share is measured from
        with pytest.raises(type(error), match="no plan"):
            recover(setting, "last-mlp", 3, ())


def test_a_task_follows_from_the_seed_and_shows_no_text_twice(setting: Setting) -> None:
    torch.manual_seed(0)
    task, again, other = (make_task(setting, "few-modules", seed) for seed in (1, 1, 2))
    assert task.planted.plan.ranks == again.planted.plan.ranks
    assert (task.train, task.test) == (again.train, again.test)
    assert task.train != other.train
    assert (len(task.train), len(task.test)) == (16, 12)
    texts = [*task.train, *task.test]
    assert len(set(texts)) == 28
    assert all(len(e.ids) == 16 for e in texts)
    assert [e.ids[:4] for e in texts] == [setting.texts[i].ids[:4] for i in range(28)]
    wanted = log_answers(altered(setting.base, task.planted.directions), texts)
    for e in texts:
        torch.testing.assert_close(task.answers[e].double(), wanted[e].exp(), rtol=1e-3, atol=1e-6)


def test_the_real_truth_is_cut_from_a_fine_tuning(setting: Setting) -> None:
    planted = make_task(setting, "real", 1).planted
    dearest = max(m.params_per_rank for m in setting.modules)  # the pool is cut where the next cannot be paid for
    assert 0 <= setting.budget.parameters - planted.plan.trainable_parameters < dearest
    assert len(set(planted.plan.ranks.values())) > 2
    for name, (a, b) in planted.directions.items():
        rank = planted.plan.ranks[name]
        torch.testing.assert_close(a @ a.t(), torch.eye(rank), rtol=0, atol=1e-4)
        sizes = b.norm(dim=1)
        assert (sizes[:-1] >= sizes[1:]).all()  # singular values, largest first
        torch.testing.assert_close(b @ b.t(), torch.diag(sizes.square()), rtol=0, atol=1e-4 * float(sizes[0]) ** 2)
    probes = [Example(e.ids[:16], 1, False) for e in setting.texts[:4]]
    p, q = log_answers(setting.base.model, probes), log_answers(altered(setting.base, planted.directions), probes)
    assert divergence(p, q) == pytest.approx(setting.effect, rel=0.01)


def test_the_real_truth_learns_from_whole_texts_because_a_prompt_may_fill_one(setting: Setting) -> None:
    filled = replace(setting, texts=[replace(e, prompt_length=len(e.ids)) for e in setting.texts])
    assert make_task(filled, "real", 1).planted.plan.ranks == make_task(setting, "real", 1).planted.plan.ranks


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """bench/recovery.py, called with tiny numbers and some more."""

    def call(*more: str) -> None:
        tiny = "--model demo --data demo:fine-tuning --budget rank:2 --steps 2 --batch-size 2 --length 16"
        named = "--truths last-mlp,uniform --strategies linear-decay,random"
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *tiny.split(), *named.split(), *more])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return call


def strictly(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_script_goes_on_where_it_was_cut(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    script("--seeds", "1", "--out", str(out))
    first = strictly(out.read_text())
    assert capsys.readouterr().out == out.read_text()
    assert [(r["truth"], r["seed"]) for r in first["results"]] == [("last-mlp", 0), ("uniform", 0)]
    assert first["circumstances"]["strategies"] == "linear-decay,random"
    assert first["best_strategy"] is None  # one seed decides nothing
    script("--seeds", "2", "--truths", "last-mlp", "--out", str(out))
    both = strictly(out.read_text())
    assert json.dumps(both["results"][:2]) == json.dumps(first["results"])  # seconds of planning and all
    assert [(r["truth"], r["seed"]) for r in both["results"][2:]] == [("last-mlp", 1)]
    assert both["truths"]["last-mlp"]["seeds"] == 2
    assert capsys.readouterr().err.count("seed 0") == 0


@pytest.mark.parametrize("more", [("--steps", "3"), ("--strategies", "random"), ("--template", "alpaca-short")])
def test_the_script_refuses_another_comparison_in_the_same_file(
    script: Callable[..., None], tmp_path: Path, more: tuple[str, ...]
) -> None:
    out = tmp_path / "found.json"
    ours = {
        "model": "demo", "data": "demo:fine-tuning", "template": "auto", "budget": "rank:2",
        "steps": 2, "batch_size": 2, "learning_rate": 0.01, "length": 16, "strategies": "linear-decay,random",
    }  # fmt: skip
    text = json.dumps({"circumstances": ours, "results": []})
    out.write_text(text)
    with pytest.raises(SystemExit, match=r"holds another comparison: .*Name another --out"):
        script("--seeds", "1", "--out", str(out), *more)
    assert out.read_text() == text


def test_the_script_goes_on_from_a_file_that_says_less(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    out.write_text(json.dumps({"circumstances": {"steps": 2}, "results": []}))
    script("--seeds", "0", "--out", str(out))
    assert strictly(capsys.readouterr().out)["results"] == []


def test_a_student_that_diverged_is_not_the_best_and_does_not_stop_the_script() -> None:
    def result(seed: int, gain: float, lost: float) -> dict[str, Any]:
        found = {"uniform": 1.0, "oracle": 1.0 - gain, "floor": 1.0 - gain, "eva": 1.0 - gain / 2, "fim": lost}
        return {"truth": "last-mlp", "seed": seed, "divergence": found, "correlation": dict.fromkeys(found),
                "plan_seconds": {}}  # fmt: skip

    report = runpy.run_path(str(SCRIPT))["report"]
    names = ("model", "data", "template", "budget", "steps", "batch_size", "learning_rate", "length", "by_answers",
             "equal_cost")  # fmt: skip
    asked = argparse.Namespace(**dict.fromkeys(names, ""), strategies="eva,fim")
    found = report(asked, [result(1, 0.5, 0.1), result(2, 0.52, float("nan"))])
    assert found["best_strategy"] == "eva"
    assert found["concentrated_shares"] == {"eva": pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("option", "value", "known"), [("--strategies", "linear-decay,eve", "eva"), ("--truths", "uniform,reel", "real")]
)
def test_the_script_refuses_names_it_does_not_know_before_any_work(
    script: Callable[..., None], capsys: pytest.CaptureFixture[str], option: str, value: str, known: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script("--model", "no-such-model", option, value)
    said = " ".join(capsys.readouterr().err.split())
    assert option in said and ("which is not known" in said or "There is no strategy" in said)
    assert known in said.split(value.split(",")[1])[-1]
