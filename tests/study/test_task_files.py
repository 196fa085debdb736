"""Task files of the user's own: nothing in them is run, whatever they hold. Code in here would only leave a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.study_file import parse_study
from adaptive_lora.study.task_files import is_task_file, read_task_file
from tests.study.test_spec import GOOD as GOOD_STUDY

GOOD: dict[str, Any] = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.json"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "The {{thing}} is",
    "doc_to_choice": ["red", "green"],
    "doc_to_target": "colour",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
MARKER = "from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\ndef made(*_): return 'x'\n"


def write(folder: Path, **changes: Any) -> Path:
    """A task file with what it needs beside it, and a module that tells when it is imported."""
    (folder / "items.json").write_text(json.dumps([{"thing": "sky", "colour": "red"}]))
    (folder / "utils.py").write_text(MARKER)
    path = folder / "task.yaml"
    kept = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in kept.items())
    for tag in ("!function utils.made", "!!python/name:utils.made ''"):  # JSON is YAML, but has none
        text = text.replace(json.dumps(tag), tag)
    path.write_text(text)
    return path


def complaints(path: Path) -> str:
    with pytest.raises(StudyFileError) as caught:
        read_task_file(path)
    assert not path.with_name("it-ran").exists()
    return "\n".join(caught.value.complaints)


def test_a_task_without_code_is_read_with_its_data_beside_it(tmp_path: Path) -> None:
    found = read_task_file(write(tmp_path))
    assert found.name == "colours" and found.config["doc_to_text"] == GOOD["doc_to_text"]
    assert found.config["dataset_kwargs"] == {"data_files": {"test": str(tmp_path / "items.json")}}
    again = read_task_file(write(tmp_path, dataset_kwargs={"data_files": {"test": "./items.json"}}))
    assert again.config == found.config
    (tmp_path / "items.json").write_text(json.dumps([{"thing": "sea", "colour": "red"}]))
    assert read_task_file(tmp_path / "task.yaml").digest != again.digest  # other data are another task
    assert is_task_file("a/b.yml") and not is_task_file("gsm8k")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"doc_to_text": "!function utils.made"}, "doc_to_text: tags (!function) are not used in task files: a task"),
        ({"doc_to_text": "!!python/name:utils.made ''"}, "are not used in task files: a task"),
        ({"process_docs": "!function utils.made"}, "process_docs: tags (!function)"),
        ({"process_docs": "utils.made"}, "process_docs: this key is not taken"),
        ({"class": "utils.made"}, "class: this key is not taken"),
        ({"include": "other.yaml"}, "include: this key is not taken"),
        ({"use_prompt": "promptsource:*"}, "use_prompt: this key is not taken"),
        ({"unsafe_code": True}, "unsafe_code: this key is not taken"),
        ({"dataset_path": "utils.py"}, "dataset_path: expected json, csv, parquet, text"),
        ({"dataset_path": "pandas"}, "or a hub data set owner/name, got 'pandas'"),  # pickles
        ({"dataset_kwargs": {"trust_remote_code": True, "data_files": "items.json"}}, "trust_remote_code: this key"),
        ({"dataset_kwargs": {"data_files": "gone.json"}}, "gone.json"),
        ({"dataset_kwargs": None}, "data_files: ...}`, which is missing"),
        ({"metric_list": [{"metric": "./utils.py"}]}, "metric_list[0].metric: expected one of acc"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "metric_list[0].hf_evaluate: this key"),
        ({"metric_list": [{"metric": "acc", "aggregation": "utils.made"}]}, "aggregation: expected one of mean"),
        ({"metric_list": "acc"}, "metric_list[0]: expected a mapping"),
        ({"filter_list": [{"name": "a", "filter": [{"function": "custom", "filter_fn": "x"}]}]}, "`function` is one"),
        ({"filter_list": [{"name": "a"}]}, "filter_list[0]: expected a mapping with `name` and `filter`"),
        ({"generation_kwargs": {"custom_generate": "owner/name"}}, "custom_generate: this key is not taken"),
        ({"generation_kwargs": {"do_sample": True}}, "no sampling"),
        ({"fewshot_config": {"process_docs": "x"}}, "fewshot_config.process_docs: this key"),
        ({"doc_to_text": ["x"]}, "doc_to_text: expected a text, got a list"),
        ({"test_split": None}, "`test_split` is missing"),
        ({"doc_to_target": None}, "`doc_to_target` is missing"),
    ],
)
def test_what_could_run_is_refused_before_anything_does(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    assert why in complaints(write(tmp_path, **changes))


def test_a_folder_that_is_called_like_a_hub_data_set_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert "whose scripts would be run" in complaints(write(tmp_path, dataset_path="owner/name", dataset_kwargs=None))


def test_what_is_no_task_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("- a list")
    assert "expected keys and values" in complaints(tmp_path / "task.yaml")
    assert "cannot be read" in complaints(tmp_path / "gone.yaml")


def test_the_task_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    (text,) = re.findall(r'^```yaml title="colours.yaml"\n(.*?)^```$', page, flags=re.S | re.M)
    (tmp_path / "colours.json").write_text("[]")
    (tmp_path / "colours.yaml").write_text(text)
    assert read_task_file(tmp_path / "colours.yaml").name == "colours"
    analyses = re.findall(r"^```yaml\n(?:data: [^\n]*\n)?(analysis:.*?)^```$", page, flags=re.S | re.M)
    assert len(analyses) == 4
    for analysis in analyses:
        study = parse_study(
            re.sub("arms:.*?seeds", "arms: [uniform, linear-decay, eva]\nseeds", GOOD_STUDY, flags=re.S) + analysis,
            tmp_path / "study.yaml",
        )
        assert study.spec.analysis.margin == 2.0
