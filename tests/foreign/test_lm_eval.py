"""What lm-evaluation-harness logged is read as it meant it, and judged as an independent computation says."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.judging import Asked, judge_runs, other_metrics
from adaptive_lora.foreign.lm_eval import read_lm_eval
from adaptive_lora.foreign.scores import Question
from adaptive_lora.foreign.sources import Reading, read_runs

TASKS = {"colour_said", "colour_words", "whose_colour"}


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def harness_results(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text())["results"]


def test_means_are_those_of_the_harness(lm_eval: Path) -> None:
    for folder in sorted(lm_eval.glob("rank*")):
        run, told = read_lm_eval(folder), harness_results(folder)
        assert run.arm == folder.name and {q.task for q in run.questions} == TASKS
        for question in run.questions:
            metric, _, filtered = question.metric.partition(",")
            wanted = told[question.task][f"{metric},{filtered or 'none'}"]
            found = run.mean(question)
            if metric == "word_perplexity":
                found = math.exp(found)
            elif metric == "bits_per_byte":
                found = found / math.log(2)
            assert found == pytest.approx(wanted, rel=1e-12), question


def test_direction_is_the_harness_s_own(lm_eval: Path) -> None:
    run = read_lm_eval(lm_eval / "rank2-seed0")
    assert {q.metric: q.higher_is_better for q in run.questions} == {
        "exact_match,first-word": True, "exact_match,whole": True, "word_perplexity": False, "bits_per_byte": False,
        "acc": True, "acc_norm": True,
    }  # fmt: skip


def test_one_run_each_agrees_with_a_paired_t_interval_by_hand(lm_eval: Path) -> None:
    two, eight = (samples(lm_eval / name, "colour_words") for name in ("rank2-seed0", "rank8-seed0"))
    nll = np.array([-b["word_perplexity"][0] + a["word_perplexity"][0] for a, b in zip(two, eight, strict=True)])
    words = np.array([line["word_perplexity"][1] for line in two], dtype=float)
    mean, n = nll.sum() / words.sum(), len(words)
    residuals = (nll - mean * words) * n / words.sum()
    half = stats.t.ppf(0.975, n - 1) * residuals.std(ddof=1) / math.sqrt(n)

    runs = read_runs([str(lm_eval / name) for name in ("rank2-seed0", "rank8-seed0")])
    (found,) = judge_runs(runs, Asked("rank2-seed0", tasks=("colour_words",)))
    assert found.interval is not None and found.resampled == "test records"
    assert (found.difference, found.interval.low, found.interval.high) == pytest.approx(
        (mean, mean - half, mean + half), rel=1e-9
    )
    assert found.verdict == "worse" and found.half_width_at_twice_the_items == pytest.approx(half / math.sqrt(2))


def test_two_seeds_and_clusters_agree_with_the_two_way_variance_by_hand(lm_eval: Path) -> None:
    """Mean squares of the 2 x 30 table of stories, written out."""
    table, weights = np.zeros((2, 30)), np.zeros(30)
    for seed in (0, 1):
        pair = zip(*(samples(lm_eval / f"rank{r}-seed{seed}", "colour_words") for r in (2, 8)), strict=True)
        for two, eight in pair:
            story = int(two["doc"]["story"].split("-")[1]) - 1000
            table[seed, story] += two["word_perplexity"][0] - eight["word_perplexity"][0]
            weights[story] += two["word_perplexity"][1] if seed == 0 else 0
    mean = table.sum() / (2 * weights.sum())
    e = (table - mean * weights) * 30 / weights.sum()
    rows, columns = e.mean(axis=1), e.mean(axis=0)
    ms_rows, ms_columns = 30 * (rows**2).sum(), 2 * (columns**2).sum() / 29
    ms_both = ((e - rows[:, None] - columns[None, :]) ** 2).sum() / 29
    own = max(0.0, ms_columns - ms_both)
    error = math.sqrt((ms_rows + own) / 60)
    half = stats.t.ppf(0.975, 1) * error  # of two seeds and 30 stories the fewer decide

    given = [f"r{r}={lm_eval / f'rank{r}-seed{seed}'}" for seed in (0, 1) for r in (2, 8)]
    runs = read_runs(given, Reading(cluster="story"))
    (found,) = judge_runs(runs, Asked("r2", tasks=("colour_words",)))
    assert found.interval is not None and found.resampled == "seeds and records"
    assert found.difference == pytest.approx(mean, rel=1e-9)
    assert found.half_width == pytest.approx(half, rel=1e-6)
    assert found.paired.table.differences.shape == (2, 30) and found.paired.runs == (2, 2)


def test_first_metric_is_judged_and_the_others_are_named(lm_eval: Path) -> None:
    runs = read_runs([str(lm_eval / name) for name in ("rank2-seed0", "rank8-seed0")])
    found = judge_runs(runs, Asked("rank2-seed0"))
    assert [o.paired.question.name for o in found] == [
        "colour_said: exact_match,first-word", "colour_words: word_perplexity", "whose_colour: acc",
    ]  # fmt: skip
    assert other_metrics(runs, found) == ["exact_match,whole", "bits_per_byte", "acc_norm"]
    (norm,) = judge_runs(runs, Asked("rank2-seed0", metric="acc_norm"))
    assert norm.paired.question == Question("whose_colour", "acc_norm", True)
    (said,) = judge_runs(runs, Asked("rank2-seed0", metric="exact_match"))
    assert said.paired.question.metric == "exact_match,first-word"


def test_files_of_one_task_each_are_one_run(lm_eval: Path) -> None:
    given = []
    for name in ("rank2-seed0", "rank8-seed0"):
        for task in ("whose_colour", "colour_words"):
            (path,) = (lm_eval / name).rglob(f"samples_{task}_*.jsonl")
            given.append(f"{name}={path}")
    found = judge_runs(read_runs(given), Asked("rank2-seed0"))
    assert [o.paired.runs for o in found] == [(1, 1), (1, 1)]


def changed(lm_eval: Path, folder: Path, change: Any) -> Path:
    """A copy of a run whose lines went through `change`, with their number."""
    shutil.copytree(lm_eval / "rank8-seed0", folder)
    (path,) = folder.rglob("samples_whose_colour_*.jsonl")
    lines = [change(at, json.loads(line)) for at, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines if line is not None))
    return folder


def judged(lm_eval: Path, other: Path, **asked: Any) -> Any:
    runs = read_runs([f"a={lm_eval / 'rank2-seed0'}", f"b={other}"])
    return judge_runs(runs, Asked("a", tasks=("whose_colour",), **asked))[0]


def test_other_data_is_refused(lm_eval: Path, tmp_path: Path) -> None:
    other = changed(lm_eval, tmp_path / "x", lambda at, line: line | ({"doc_hash": "0"} if at == 3 else {}))
    with pytest.raises(UsageError, match="item 3 is not the same text in 'b' and 'a'"):
        judged(lm_eval, other)


def test_other_prompts_are_told(lm_eval: Path, tmp_path: Path) -> None:
    other = changed(lm_eval, tmp_path / "x", lambda at, line: line | {"prompt_hash": "0"})
    assert "90 of 90 items were asked with other prompts" in judged(lm_eval, other).paired.notes


def test_few_items_in_common_are_refused_unless_asked_for(lm_eval: Path, tmp_path: Path) -> None:
    most = changed(lm_eval, tmp_path / "most", lambda at, line: line if at < 60 else None)
    found = judged(lm_eval, most)
    assert found.paired.items == 60 and "paired on the 60 items that all runs have, of 90" in found.paired.notes
    few = changed(lm_eval, tmp_path / "few", lambda at, line: line if at < 40 else None)
    with pytest.raises(UsageError, match=r"have 40 of 90 items in common\. Judge those alone with --common"):
        judged(lm_eval, few)
    assert judged(lm_eval, few, common=True).paired.items == 40


def test_an_item_there_twice_is_one_draw(lm_eval: Path, tmp_path: Path) -> None:
    """Two items with the same text are one cluster."""
    run = changed(lm_eval, tmp_path / "x", lambda at, line: line | ({"doc_hash": "same"} if at < 2 else {}))
    runs = [run, run]
    found = judge_runs(read_runs([f"a={runs[0]}", f"b={runs[1]}"]), Asked("a", tasks=("whose_colour",)))
    assert len(found[0].paired.table.tokens) == 89


def test_mistakes_are_explained(lm_eval: Path, tmp_path: Path) -> None:
    broken = changed(lm_eval, tmp_path / "nan", lambda at, line: line | ({"acc": math.nan} if at == 4 else {}))
    with pytest.raises(UsageError, match=r"line 5: `acc` is nan, which is no finite number"):
        read_lm_eval(broken)
    again = changed(lm_eval, tmp_path / "again", lambda at, line: line | {"doc_id": 0})
    with pytest.raises(UsageError, match="line 2: item 0 is there a second time"):
        read_lm_eval(again)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="--log_samples --output_path FOLDER"):
        read_lm_eval(tmp_path / "empty")
    with pytest.raises(UsageError, match="holds two runs of"):
        read_lm_eval(lm_eval)
    with pytest.raises(UsageError, match="no field 'stroy' for --cluster; they have: story, text"):
        read_lm_eval(lm_eval / "rank2-seed0", "stroy")
    with pytest.raises(UsageError, match=r"are both called 'rank2-seed0'\. Name them"):
        read_runs([str(lm_eval / "rank2-seed0")] * 2)
    (results,) = (lm_eval / "rank2-seed0").rglob("results_*.json")
    with pytest.raises(UsageError, match="means alone, which cannot be paired"):
        read_runs([str(results)])


def test_metrics_that_are_no_means_are_left_out(lm_eval: Path, tmp_path: Path) -> None:
    def pairs(at: int, line: dict[str, Any]) -> dict[str, Any]:
        return line | {"metrics": ["f1", "acc"], "f1": [1, 0]}

    run = read_lm_eval(changed(lm_eval, tmp_path / "f1", pairs))
    assert [q.metric for q in run.questions if q.task == "whose_colour"] == ["acc"]


def test_older_files_are_read(lm_eval: Path, tmp_path: Path) -> None:
    """Without `metrics` in a line, and with `model_args` as one text."""

    def older(at: int, line: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in line.items() if key != "metrics"}

    folder = changed(lm_eval, tmp_path / "older", older)
    (results,) = folder.rglob("results_*.json")
    told = json.loads(results.read_text())
    told["config"]["model_args"] = "pretrained=models/base,peft=adapters/mine,dtype=float32"
    results.write_text(json.dumps(told))
    run, new = read_lm_eval(folder), read_lm_eval(lm_eval / "rank8-seed0")
    assert run.arm == "mine" and run.questions == new.questions
    assert all(run.mean(question) == new.mean(question) for question in new.questions)


def test_a_metric_of_ones_own_needs_its_direction(lm_eval: Path, tmp_path: Path) -> None:
    def own(at: int, line: dict[str, Any]) -> dict[str, Any]:
        return line | {"metrics": ["acc", "zeal"], "zeal": at}

    folder = changed(lm_eval, tmp_path / "own", own)
    assert "zeal" not in {q.metric for q in read_lm_eval(folder).questions}
    with pytest.raises(UsageError, match="--better higher or --better lower"):
        read_runs([str(folder)], Reading(metric="zeal"))
    run = read_lm_eval(folder, better="lower", wanted="zeal")
    assert {q.metric: q.higher_is_better for q in run.questions if q.task == "whose_colour"} == {
        "acc": True, "zeal": False,
    }  # fmt: skip
