"""Study files and plans that no study has: refused before they cost anything, with what is wrong and where."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora import api
from adaptive_lora.errors import PlanError, StudyFileError, UsageError
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.seeds import check_seed
from adaptive_lora.study.study_file import load_study, parse_study, study_of_mapping
from adaptive_lora.study.yaml import LARGEST
from tests.study.test_spec import GOOD


def refused(text: str) -> str:
    began = time.process_time()
    with pytest.raises(StudyFileError) as found:
        parse_study(text, Path("s.yaml"))
    assert time.process_time() - began < 3
    assert len(str(found.value)) < 10_000 and str(found.value).replace("\n", "").isprintable()
    return str(found.value)


def expanding(levels: int) -> str:
    """Each line names the one before nine times, so that the last stands for 9^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def test_aliases_are_not_expanded_before_they_are_refused() -> None:
    assert len(expanding(30)) < 2_000
    assert "aliases (*name) are not used" in refused(expanding(30))
    assert "aliases" in refused("a: &a\n  b: *a")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: " + "[" * 20_000, "line 1: 51 levels deep"),
        ("a: " + "{b: " * 20_000, "51 levels deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(60)), "line 51: 51 levels deep"),
        ("- " * 400, "51 levels deep"),
        ("a: " + "9" * 5_000, "thousands of digits"),
        ("a: 2001-13-45", "not valid YAML: month"),
        ("name: a\nb: \x07", r"line 2: not valid YAML: the character '\\x07' stands in it"),
        ('name: "a\\0b"', r"line 1, name: a text holds the character '\\x00'"),
        ('name: "a\\ud800"', r"a text holds the character '\\ud800'"),
        ('"a\\e[31m": 1', "a key is plain text"),
        ("? [a, b]\n: c", "a key is plain text"),
        ("name: !!binary aGk=", "tags"),
        ("a: !!set {x, y}", "tags"),
        (f"model: {{name: {'a' * 5_000}}}", "at most 4,096 bytes"),
        (f"data: {{source: x/{'a' * 300}}}", "255 between two slashes"),
        ("arms: [{ranks: /dev/zero}]", "ranks"),
        ("~a: 1", "~a: unknown key"),
        ("1: 2\nnull: 3", "expected"),
        ("name: ~nobody/x", "name: expected"),
    ],
)  # fmt: skip
def test_what_no_study_has_is_refused_at_once(text: str, why: str) -> None:
    assert why.replace("\\\\", "\\") in refused(text)


def test_a_text_of_more_values_than_any_study_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_lora.study.yaml._MOST_VALUES", 500)
    assert "line 1: a study has less than 500 keys and values" in refused("[" + "1," * 300_000 + "]")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400], ids=["one", "two", "long"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("evaluation: 3", "evaluation: [1, {}]"),
        ("tuning: [7,", "tuning: [{},"),
        ("test: 5", "test: 5, split_seed: {}"),
        ("  - uniform", "  - uniform\n  - {{strategy: random, options: {{seed: {}}}}}"),
    ],
)
def test_a_seed_is_below_2_to_the_63_wherever_a_study_says_one(old: str, new: str, value: int) -> None:
    assert old in GOOD
    assert "a whole number, such as a seed, is below 2^63" in refused(GOOD.replace(old, new.format(value)))


def test_the_largest_seed_is_one() -> None:
    study = parse_study(GOOD.replace("evaluation: 3", f"evaluation: [1, {2**63 - 1}]"), Path("s.yaml"))
    assert study.spec.seeds.evaluation == [1, 2**63 - 1] == [1, check_seed(2**63 - 1)]


def test_a_seed_in_python_is_held_to_the_same_range(tmp_path: Path) -> None:
    for seed in (2**63, -(2**64), 0.5, "1"):
        with pytest.raises(UsageError, match=r"A seed is a whole number below 2\^63"):
            api.plan("demo", seed=seed)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="A seed is a whole number"):
            api.train(tmp_path / "none.json", "demo", "demo:all", tmp_path, None, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e999"])
def test_a_number_is_finite(number: str) -> None:
    assert "a number is finite" in refused(GOOD.replace("learning_rate: [", f"learning_rate: [{number}, "))


def test_files_that_are_none_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (4 * LARGEST + 1))
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (Path("/dev/zero"), "a device"),
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "large.yaml", "at most"),
        (tmp_path / ("a" * 300), "too long"),
        (tmp_path / "a\0", "does not exist"),
        (tmp_path, "irectory"),
    ):
        with pytest.raises(StudyFileError, match=why):
            load_study(path)


def test_mappings_that_are_no_study(tmp_path: Path) -> None:
    own: dict[Any, Any] = {"name": "a"}
    own["self"] = own
    given: list[Any] = [own, {(1, 2): 3}, {"name": "\ud800"}, {"name": float("nan")}, {"name": {"a": object()}}]
    for data in given:
        with pytest.raises(StudyFileError):
            study_of_mapping(data)


SOUND: dict[str, Any] = {
    "format": 1, "strategy": "uniform", "budget": 40, "ranks": {"a.b": 2},
    "modules": [{"name": "a.b", "kind": "mlp", "depth": 0, "d_in": 8, "d_out": 12, "fan_in_fan_out": False}],
    "scaling": {"rule": "constant", "reference_scaling": 2.0, "reference_rank": 2.0}, "options": {}, "scores": None,
    "provenance": {"seed": 1}, "left_out": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ranks": {"a.b": 0}}, "ranks.a.b"),
        ({"ranks": {"a.b": 2**40}}, "ranks.a.b"),
        ({"ranks": [1]}, "ranks"),
        ({"budget": "many"}, "budget"),
        ({"budget": float("inf")}, "budget"),
        ({"modules": [{**SOUND["modules"][0], "d_in": "8x"}]}, "modules.0.d_in"),
        ({"modules": [{**SOUND["modules"][0], "more": 1}]}, "modules.0.more"),
        ({"scaling": {**SOUND["scaling"], "reference_rank": 0}}, "reference_rank"),
        ({"scaling": {**SOUND["scaling"], "reference_scaling": float("nan")}}, "reference_scaling"),
        ({"provenance": {"seed": 2**63}}, "provenance.seed"),
        ({"provenance": {"warnings": 3}}, "provenance.warnings"),
        ({"options": None}, "options"),
        ({"format": "x" * 10_000}, "The plan has format 'xxx"),
    ],
)
def test_plans_are_checked_value_by_value(change: dict[str, Any], why: str) -> None:
    assert RankPlan.from_json(json.loads(json.dumps(SOUND))).trainable_parameters == 40
    with pytest.raises(PlanError) as found:
        RankPlan.from_json({**SOUND, **change})
    assert why in str(found.value) and len(str(found.value)) < 500


def test_plan_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for content, why in (
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "digits"),
        (b"\xff", "cut short"),
        (b"[]", "format"),
    ):
        path.write_bytes(content)
        with pytest.raises(PlanError, match=why):
            RankPlan.load(path)
    for place, why in ((tmp_path, "irectory"), (Path("/dev/zero"), "device"), (tmp_path / ("a" * 300), "too long")):
        with pytest.raises(PlanError, match=why):
            RankPlan.load(place)
