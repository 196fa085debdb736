"""Task files of the user's own for lm-evaluation-harness, read as data: nothing in them is ever run.

The harness runs what a task file names: functions (`!function`), Python classes, scripts of data sets, metrics fetched
from the hub, code that a model writes, and templates that reach whatever Python has. A file from elsewhere may hold any
of that. So the harness never reads such a file: it is read here, with a list of the keys that are only data, and what
the harness gets is the mapping. Its templates are expanded in Jinja's sandbox (`engines.harness`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFileError, nearest_hint
from adaptive_lora.study.yaml import Location, placed, read_yaml

SUFFIXES = (".yaml", ".yml")
_TEXTS = (
    "task", "task_alias", "dataset_path", "dataset_name", "training_split", "validation_split", "test_split",
    "fewshot_split", "doc_to_text", "doc_to_target", "description", "target_delimiter", "fewshot_delimiter",
    "output_type", "gen_prefix",
)  # fmt: skip
_ELSE = ("tag", "dataset_kwargs", "doc_to_choice", "num_fewshot", "fewshot_config", "generation_kwargs", "metric_list",
         "filter_list", "repeats", "metadata")  # fmt: skip
_FORMATS = ("json", "csv", "parquet", "text")
"""Formats of data sets in files; others may hold objects that run code when they are read."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_DATASET = ("data_files", "split", "field", "delimiter", "revision")
_FEWSHOT = ("sampler", "split", "samples", "doc_to_text", "doc_to_target", "doc_to_choice", "fewshot_delimiter",
            "target_delimiter", "gen_prefix")  # fmt: skip
_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature")
_PARTS = {"dataset_kwargs": _DATASET, "fewshot_config": _FEWSHOT, "generation_kwargs": _GENERATION}
_METRIC = ("metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers",
           "regexes_to_ignore")  # fmt: skip
_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Of the harness's own, those with a number for every item."""
_AGGREGATIONS = ("mean", "median", "nanmean")
_FILTERS = ("regex", "regex_pos", "take_first", "take_first_k", "majority_vote", "lowercase", "uppercase",
            "remove_whitespace", "multi_choice_regex", "map")  # fmt: skip
_NO_CODE = (
    "a task file of your own is read as data, and nothing in it is run; only tasks that come with "
    "lm-evaluation-harness may have code"
)


@dataclass(frozen=True)
class TaskFile:
    """A checked task."""

    config: Mapping[str, Any]
    """As the harness takes it, with paths of data files from the root."""
    digest: str
    """Hash of what it says and of the bytes of its data files."""

    @property
    def name(self) -> str:
        """What the harness calls it."""
        return str(self.config["task"])


def is_task_file(text: str) -> bool:
    """Whether a study file's `task` is a file, rather than the name of a task that comes with the harness.

    >>> is_task_file("tasks/colours.yaml"), is_task_file("arc_easy")
    (True, False)
    """
    return text.endswith(SUFFIXES)


def read_task_file(path: Path) -> TaskFile:
    """A task file whose every key is data; StudyFileError with all that is not."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyFileError(str(path), [f"the task file cannot be read: {type(error).__name__}"]) from None
    data, lines, complaints = read_yaml(text, path)
    complaints = [
        f"{line.partition(';')[0].replace('study files', 'task files')}: {_NO_CODE}" if "tags (" in line else line
        for line in complaints
    ]
    if not isinstance(data, dict):
        raise StudyFileError(str(path), complaints or ["expected keys and values, such as `task: my-task`"])
    complaints += [placed(lines, at, message) for at, message in _complaints(data)]
    config = dict(data)
    if not complaints:
        config, missing = _with_files(data, path.parent)
        complaints += [placed(lines, ("dataset_kwargs", "data_files"), f"there is no file {file}") for file in missing]
    if complaints:
        raise StudyFileError(str(path), complaints)
    return TaskFile(config, _digest(data, config))


def _complaints(data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """Where, and what is wrong with it."""
    for key in data:
        if key not in (*_TEXTS, *_ELSE):
            known = nearest_hint(str(key), (*_TEXTS, *_ELSE))
            yield (key,), f"this key is not taken{known}: {_NO_CODE}"
    for key in ("task", "dataset_path", "doc_to_text", "doc_to_target"):
        if key not in data:
            yield (), f"the key `{key}` is missing"
    for key in _TEXTS:
        if key in data and not isinstance(data[key], str | int):
            yield (key,), f"expected a text, got a {type(data[key]).__name__}"
    if not any(data.get(key) for key in ("test_split", "validation_split")):
        yield (), "the key `test_split` is missing, which says what is evaluated"
    yield from _dataset(data)
    for where, keys in _PARTS.items():
        part = data.get(where, {})
        for name in part if isinstance(part, dict) else [where]:
            if name not in keys:
                yield (where, name), f"this key is not taken; keys here: {', '.join(keys)}: {_NO_CODE}"
    generation = data.get("generation_kwargs")
    if isinstance(generation, dict) and (generation.get("do_sample") or generation.get("temperature")):
        yield ("generation_kwargs",), "answers are greedy here, so that an adapter has one score: no sampling"
    yield from _lists(data)


def _dataset(data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    where, at = str(data.get("dataset_path", "")), ("dataset_path",)
    if where and where not in _FORMATS and not _HUB_NAME.fullmatch(where):
        yield at, f"expected {', '.join(_FORMATS)} with `dataset_kwargs: {{data_files: ...}}`, or a hub data set " \
                  f"owner/name, got {where!r}: {_NO_CODE}"  # fmt: skip
    elif where and where not in _FORMATS and Path(where).exists():
        yield at, f"{where!r} is a folder here, whose scripts would be run; name files: {_NO_CODE}"


def _lists(data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """Metrics and filters by name: what the harness does not know it would fetch and run."""
    metrics, filters = data.get("metric_list", []), data.get("filter_list", [])
    for index, entry in _entries(metrics):
        if entry is None:
            yield ("metric_list", index), "expected a mapping with `metric`"
            continue
        for key in entry:
            if key not in _METRIC:
                yield ("metric_list", index, key), f"this key is not taken; keys here: {', '.join(_METRIC)}: {_NO_CODE}"
        for key, known in (("metric", _METRICS), ("aggregation", _AGGREGATIONS)):
            if (key in entry or key == "metric") and entry.get(key) not in known:
                yield ("metric_list", index, key), f"expected one of {', '.join(known)}, got {entry.get(key)!r}"
    for index, entry in _entries(filters):
        steps = [step for _, step in _entries((entry or {}).get("filter", []))]
        if entry is None or set(entry) != {"name", "filter"} or not steps:
            yield ("filter_list", index), "expected a mapping with `name` and `filter`, a list of steps"
        for step in steps:
            if step is None or step.get("function") not in _FILTERS:
                named = None if step is None else step.get("function")
                yield ("filter_list", index), f"`function` is one of {', '.join(_FILTERS)}, got {named!r}"


def _entries(value: Any) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Of a list, those that are no mapping as None; what is no list is one such entry."""
    every = value if isinstance(value, list) else [value]
    yield from ((index, entry if isinstance(entry, dict) else None) for index, entry in enumerate(every))


def _with_files(data: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """With data files beside the task file by their full path, and those that are missing."""
    missing: list[str] = []

    def located(file: str) -> str:
        place = folder / Path(file).expanduser()
        if not place.is_file():
            missing.append(str(file))
        return str(place.resolve())

    kwargs = dict(data.get("dataset_kwargs") or {})
    if "data_files" in kwargs:
        kwargs["data_files"] = _each(kwargs["data_files"], located)
    elif data["dataset_path"] in _FORMATS:
        missing.append("under `dataset_kwargs: {data_files: ...}`, which is missing")
    return {**data, "dataset_kwargs": kwargs} if kwargs else dict(data), missing


def _each(files: Any, do: Callable[[str], str]) -> Any:
    """`do` of every file of a name, a list of names, or a mapping of splits to either."""
    if isinstance(files, dict):
        return {split: _each(own, do) for split, own in files.items()}
    return [_each(file, do) for file in files] if isinstance(files, list) else do(str(files))


def _digest(data: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    files: list[str] = []

    def met(file: str) -> str:
        files.append(file)
        return file

    _each((config.get("dataset_kwargs") or {}).get("data_files", []), met)
    said = json.dumps(data, sort_keys=True, default=str).encode()
    return hashlib.sha256(said + b"".join(hashlib.sha256(Path(f).read_bytes()).digest() for f in files)).hexdigest()
