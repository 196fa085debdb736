"""Tables and PEFT's results: what is read, and what is refused in words that help."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.judging import Asked, judge_runs
from adaptive_lora.foreign.scores import Question
from adaptive_lora.foreign.sources import Reading, read_runs, split_source

LONG = "arm,seed,record,value,weight\na,1,x,0.5,10\na,1,y,1.5,30\nb,1,x,0.25,10\nb,1,y,2.5,30\n"


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_names_and_seeds_on_the_command_line(tmp_path: Path) -> None:
    assert split_source("a:3=b/c=d.csv") == ("a", 3, Path("b/c=d.csv"))
    assert split_source("b/c.csv") == (None, None, Path("b/c.csv"))
    odd = written(tmp_path / "lr=1.csv", LONG)
    assert split_source(odd) == (None, None, Path(odd))
    with pytest.raises(UsageError, match="'=x' is not NAME=PATH"):
        split_source("=x")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_is_read_in_every_form(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    rows = pd.read_csv(written(tmp_path / "long.csv", LONG))
    if suffix == ".parquet":
        rows.to_parquet(path)
    elif suffix == ".jsonl":
        rows.to_json(path, orient="records", lines=True)
    else:
        rows.to_csv(path, sep="\t" if suffix == ".tsv" else ",", index=False)
    a, b = read_runs([str(path)], Reading(metric="loss"))
    assert (a.arm, a.seed, b.arm, b.seed) == ("a", 1, "b", 1)
    question = Question("", "loss", False)
    assert {r: (i.value, i.weight) for r, i in b.items[question].items()} == {"x": (0.25, 10), "y": (2.5, 30)}
    assert a.mean(question) == pytest.approx(1.25)


def test_one_file_an_arm(tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(tmp_path / f"{name}.csv", "record,value\nx,1\ny,0\n")
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    how = Reading(metric="acc")
    assert [(r.arm, r.seed) for r in read_runs([str(one), str(two)], how)] == [("one", None), ("two", None)]
    assert [(r.arm, r.seed) for r in read_runs([f"m={one}", f"m={two}"], how)] == [("m", 1), ("m", 2)]
    assert [(r.arm, r.seed) for r in read_runs([f"m:7={one}", f"m:4={two}"], how)] == [("m", 7), ("m", 4)]
    with pytest.raises(UsageError, match="are both seed 7 of 'm'"):
        read_runs([f"m:7={one}", f"m:7={two}"], how)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm,value\n", r"has no rows; its columns may be arm, seed"),
        ("arm,record,valeu\na,x,1\n", r"has no column `value` \(did you mean 'value'\?\); it has: arm, record, valeu"),
        ("arm,recrod,value\na,x,1\n", r"unknown column 'recrod' \(did you mean 'record'\?\)"),
        ("arm,seed,record,value\na,1,x,1\na,1,x,2\n", r"line 3: record 'x' of arm 'a', seed 1, is there a second time"),
        ("arm,seed,record,value\na,1,x,one\n", r"line 2: `value` is 'one', which is no finite number"),
        ("arm,seed,record,value\na,1,x,\n", r"line 2: `value` is '', which is no finite number"),
        ("arm,seed,record,value\na,1.5,x,1\n", r"line 2: `seed` is '1.5'; a seed is a whole number"),
        ("arm,record,value,weight\na,x,1,0\n", r"line 2: `weight` is 0; it counts tokens"),
        ("arm,record,value\na,x,1,2\n", r"line 2: more cells than the first line has names"),
        ("arm,record,value\na,x,1\na,,2\n", r"some rows of 'a' have a `record` and some have none"),
        ("arm,record,value\na,x\n", r"line 2: `value` is '', which is no finite number"),
    ],
)
def test_mistakes_in_a_table_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "scores.csv", text)
    with pytest.raises(UsageError, match=message):
        read_runs([path], Reading(metric="acc"))


def test_a_direction_that_nothing_says_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "scores.csv", LONG)
    with pytest.raises(UsageError, match="--better higher or --better lower"):
        read_runs([path])
    with pytest.raises(UsageError, match="`higher` or `lower`, got 'up'"):
        read_runs([path], Reading(better="up"))
    with pytest.raises(UsageError, match="a table has a column `cluster`"):
        read_runs([path], Reading(better="higher", cluster="story"))
    assert read_runs([path], Reading(better="higher"))[0].questions == [Question("", "value", True)]


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read_runs([str(tmp_path / "none.csv")])
    for name, text, message in (
        ("x.json", "{}", "is none of what can be judged"),
        ("x.txt", "", "is none of what can be judged"),
        ("y.json", '{"a": 1,}', "line 1, column 8: not valid JSON"),
        ("z.jsonl", '{"arm": "a"}\n[1]\n', "has no column `value`"),
    ):
        with pytest.raises(UsageError, match=message):
            read_runs([written(tmp_path / name, text)])


def test_an_arm_of_many_cannot_be_renamed(tmp_path: Path) -> None:
    path = written(tmp_path / "scores.csv", LONG)
    with pytest.raises(UsageError, match="holds 2 arms"):
        read_runs([f"m={path}"], Reading(metric="loss"))


def test_peft_results_hold_one_run_and_no_items(peft: list[Path]) -> None:
    runs = read_runs([str(path) for path in peft])
    assert [(run.arm, run.seed) for run in runs] == [
        ("lora/llama-3.2-3B-rank32", 0), ("lora/llama-3.2-3B-rank64-rslora", 0),
    ]  # fmt: skip
    told = json.loads(peft[1].read_text())["train_info"]["metrics"][-1]
    accuracy, forgetting = runs[1].questions
    assert runs[1].means == {accuracy: told["test accuracy"], forgetting: told["forgetting"]}
    assert accuracy.higher_is_better and not forgetting.higher_is_better
    (found,) = judge_runs(runs, Asked("lora/llama-3.2-3B-rank32"))
    assert found.verdict == "undecided" and found.interval is None
    assert found.difference == pytest.approx(told["test accuracy"] - runs[0].means[accuracy])


def test_peft_runs_of_several_seeds_are_judged_over_them(peft: list[Path], tmp_path: Path) -> None:
    given = []
    for path in peft:
        for seed in range(4):
            told = json.loads(path.read_text())
            told["run_info"]["train_config"]["seed"] = seed
            told["train_info"]["metrics"][-1]["test accuracy"] += 0.001 * (seed * (1 + path.name.count("rs")) % 3)
            given.append(written(tmp_path / f"{seed}-{path.name}", json.dumps(told)))
    (found,) = judge_runs(read_runs(given), Asked("lora/llama-3.2-3B-rank32"))
    assert found.verdict == "better" and found.resampled == "seeds" and found.paired.runs == (4, 4)


def test_a_failed_run_of_peft_s_has_no_result(peft: list[Path], tmp_path: Path) -> None:
    told = json.loads(peft[0].read_text())
    told["train_info"]["status"] = "failed"
    with pytest.raises(UsageError, match="ended as 'failed', and has no result"):
        read_runs([written(tmp_path / "x.json", json.dumps(told))])
    told["train_info"]["status"] = "success"
    told["run_info"]["train_config"]["max_steps"] = 10
    runs = read_runs([written(tmp_path / "x.json", json.dumps(told)), str(peft[1])])
    (found,) = judge_runs(runs, Asked("lora/llama-3.2-3B-rank64-rslora"))
    assert found.paired.notes == ("run with other settings than the baseline: max_steps (10, 5000)",)
