"""Tasks of lm-evaluation-harness on the model in memory: the harness's own numbers, by task files without a network."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import StudyFileError, StudyFolderError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.study.engines import harness as module
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.runner import Limits, run_study
from adaptive_lora.study.status import study_status
from adaptive_lora.study.study_file import load_study

WriteStudy = Callable[..., Path]
WORDS = ["red", "green", "blue"]
ITEMS = [{"thing": f"{thing} {i}", "colour": WORDS[i % 3]} for i, thing in enumerate(["a sky", "an apple", "sand"] * 4)]
CHOICE = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "items.json", "test": "items.json"}},
    "test_split": "test",
    "fewshot_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{thing.strip()}} is",
    "doc_to_choice": WORDS,
    "doc_to_target": "colour",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "filter_list": None,
}
WRITTEN = {
    **CHOICE,
    "task": "written",
    "output_type": "generate_until",
    "doc_to_choice": None,
    "num_fewshot": 2,
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "letters", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}]}
    ],
}
REASON = "needs lm-evaluation-harness: the extra `eval`"
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason=REASON)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What data sets become in reading is kept here, and gone with it."""
    import datasets

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def write_task(folder: Path, config: dict[str, Any]) -> Path:
    """The file with the data beside it."""
    (folder / "items.json").write_text(json.dumps(ITEMS))
    path = folder / f"{config['task']}.yaml"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


def judged_by(metric: str) -> tuple[tuple[str, str], ...]:
    """Two arms and four seeds by a task."""
    return (
        ("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]"),
        ("evaluation: 2", "evaluation: 4"),
        ("learning_rate: 1e-2, dropout: 0.1", "learning_rate: 1e-1"),
        ("analysis: {primary: []}", f"analysis: {{metric: {metric}, margin: 5.0}}"),
        ("engine: bank", "report: {answers: 0}"),
    )


def values_in(out: Path) -> tuple[dict[str, list[float]], list[str]]:
    """Run -> value by item, and the items."""
    with contextlib.closing(open_to_read(out)) as ledger:
        (key,) = ledger.facts()["scored_by"]
        found = {run_id: ledger.scores.values(run_id, key) for run_id in ledger.scores.means(key)}
        return {r: own.tolist() for r, own in found.items() if own is not None}, ledger.scores.records(key) or []


def by_the_harness(model: Path, adapter: Path | None, task: Path, metric: str) -> list[float]:
    """What the harness gives for the folders, as `lm_eval run --model hf --model_args pretrained=...,peft=...` does."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    config = json.loads(task.read_text())
    config["dataset_kwargs"] = {"data_files": {split: str(task.with_name("items.json")) for split in ("train", "test")}}
    opened = ConfigurableTask(config=config)
    opened.set_fewshot_seed(seed=1234)
    peft = {"peft": str(adapter)} if adapter else {}
    with quiet_libraries():
        lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=1, **peft)
        found = evaluate(lm=lm, task_dict={config["task"]: opened}, bootstrap_iters=0)
    return [float(sample[metric]) for sample in found["samples"][config["task"]]]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> tuple[Path, list[int]]:
    """A study by a task that answers in words, cut in the midst of a run; passes of the model a call."""
    from tests.conftest import STUDY

    pytest.importorskip("lm_eval", reason=REASON)
    folder = tmp_path_factory.mktemp("evaluated")
    write_task(folder, CHOICE)
    text = STUDY.format(model=model_folders["gpt2"])
    for old, new in judged_by("{task: colours.yaml, metric: acc_norm}"):
        assert old in text
        text = text.replace(old, new)
    (folder / "study.yaml").write_text(text)
    kept: list[int] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "STRETCH", 12)  # of 36 requests a model
        count, real = [0], module.Scoring.part

        def part(self: Any, name: str, make: Callable[[], Any]) -> Any:
            def counted() -> Any:
                found = make()
                count[0] += 1
                return found

            return real(self, name, counted)

        monkeypatch.setattr(module.Scoring, "part", part)
        for until in (5, 10**9, 10**9):
            count[0] = 0
            stops = Limits(lambda: count[0] >= until)  # noqa: B023
            with pytest.raises(KeyboardInterrupt) if until == 5 else contextlib.nullcontext():
                run_study(load_study(folder / "study.yaml"), folder / "out", limits=stops)
            kept.append(count[0])
    return folder, kept


def test_what_was_cut_goes_on_and_what_is_there_stays(evaluated: tuple[Path, list[int]]) -> None:
    folder, kept = evaluated
    assert kept == [5, 22, 0]  # nine models, three stretches each
    assert study_status(folder / "out").finished


def test_values_are_those_of_the_harness_itself(
    evaluated: tuple[Path, list[int]], model_folders: dict[str, Path]
) -> None:
    folder, _ = evaluated
    found, items = values_in(folder / "out")
    assert len(items) == 12 and items[3].startswith("3:") and len(set(items)) == 12
    task, model = folder / "colours.yaml", model_folders["gpt2"]
    assert found[BASE] == by_the_harness(model, None, task, "acc_norm")
    different = max((run_id for run_id in found if run_id != BASE), key=lambda r: found[r] != found[BASE])
    assert found[different] == by_the_harness(model, folder / "out" / "adapters" / different, task, "acc_norm")
    assert found[different] != found[BASE]  # an adapter that was not attached would be the frozen model


def test_the_report_names_task_metric_and_points(evaluated: tuple[Path, list[int]]) -> None:
    folder, _ = evaluated
    values, _ = values_in(folder / "out")
    with open_findings(folder / "out") as found:
        assert (found.metric.title, found.metric.unit) == ("acc_norm of colours", "percentage points")
        (judged,) = found.judged.values()
        assert judged.records == 12
        assert "percentage points of acc_norm of colours, 95 % interval" in render_all("comparisons.verdicts", found)[0]
        assert "as lm-evaluation-harness scored each item" in render("captions.verdicts", found)
        runs = found.runs.set_index("run_id")["test_colours_acc_norm"].to_dict()
        assert runs == pytest.approx({r: 100 * sum(own) / 12 for r, own in values.items() if r != BASE})
        assert found.design.own_records


def test_another_task_under_the_same_name_is_refused(evaluated: tuple[Path, list[int]]) -> None:
    folder, _ = evaluated
    task, items = folder / "colours.yaml", folder / "items.json"
    before = items.read_text()
    items.write_text(before.replace("sand", "sands"))
    assert run_study(load_study(folder / "study.yaml"), folder / "out").finished  # nothing is scored any more
    with contextlib.closing(create_or_open(folder / "out")) as ledger:
        ledger._db.execute("DELETE FROM scores WHERE run_id = ?", (ledger.runs()[0]["run_id"],))
        ledger._db.commit()
    with pytest.raises(StudyFolderError, match=r"acc_norm of colours rest on something else .*: digest: '.*' there"):
        run_study(load_study(folder / "study.yaml"), folder / "out")
    items.write_text(before)
    moved = folder / "elsewhere"
    moved.mkdir()
    study = folder / "moved.yaml"
    study.write_text((folder / "study.yaml").read_text().replace("colours.yaml", "elsewhere/colours.yaml"))
    for file in (task, items):
        (moved / file.name).write_bytes(file.read_bytes())
    assert load_study(study).identity == load_study(folder / "study.yaml").identity
    assert run_study(load_study(study), folder / "out").finished


@needs_harness
def test_words_behind_worked_examples_are_as_the_harness_has_them(
    study_file: WriteStudy, tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    task = write_task(tmp_path, {**WRITTEN, "fewshot_config": {"sampler": "default"}})
    metric = "{task: written.yaml, metric: exact_match, filter: letters, arms: [linear-decay]}"
    model = model_folders["llama"]
    changes = ((str(model_folders["gpt2"]), str(model)), ("evaluation: 4", "evaluation: 1"))
    file = study_file(*judged_by(metric), *changes, ("margin: 5.0", "margin: 5.0, primary: []"))
    run_study(load_study(file), tmp_path / "out")
    found, _ = values_in(tmp_path / "out")
    assert len(found) == 3
    for run_id, own in found.items():
        adapter = None if run_id == BASE else tmp_path / "out" / "adapters" / run_id
        assert own == by_the_harness(model, adapter, task, "exact_match")


@needs_harness
@pytest.mark.parametrize(
    ("asked", "changes", "why"),
    [
        ("metric: exact_match", {}, "the task has no metric 'exact_match'; it has acc, acc_norm"),
        ("filter: strict", {}, "the task has no filter 'strict'; write one of these: none"),
        ("metric: acc", {"doc_to_text": "{{thing.__class__.__mro__}}"}, "SecurityError|unsafe|undefined"),
        ("metric: acc", {"doc_to_text": "{{thing.gone}}"}, "colours.yaml cannot be opened: .*gone"),
        ("metric: acc", {"doc_to_text": "!function x"}, None),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused_before_the_first_step(
    study_file: WriteStudy, tmp_path: Path, asked: str, changes: dict[str, Any], why: str | None
) -> None:
    path = write_task(tmp_path, {**CHOICE, **changes})
    if why is None:
        path.write_text("doc_to_text: !function x\n")
    with pytest.raises(StudyFileError, match=why or r"tags \(!function\)"):
        run_study(load_study(study_file(*judged_by(f"{{task: colours.yaml, {asked}}}"))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_machine_without_the_harness_is_told_what_to_install(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    write_task(tmp_path, CHOICE)
    with pytest.raises(StudyFileError, match=r"is not installed here; `pip install 'adaptive-lora\[eval\]'` adds it"):
        run_study(load_study(study_file(*judged_by("{task: colours.yaml}"))), tmp_path / "out")
