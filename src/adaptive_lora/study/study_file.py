"""The study file: what is compared with what, on which data, trained how. Validated once, when it is read."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFileError
from adaptive_lora.files import expanded, parse_json, read_bounded
from adaptive_lora.models.locate import is_named
from adaptive_lora.planning.strategies import Strategy
from adaptive_lora.study.matrix import StudyMatrix, matrix_of
from adaptive_lora.study.protocol import rule_complaints
from adaptive_lora.study.schema import StudySpec
from adaptive_lora.study.schema_metric import TaskPart
from adaptive_lora.study.settings import warmup_complaints
from adaptive_lora.study.strategy_files import portable_strategies, with_located_strategies
from adaptive_lora.study.task_files import is_task_file
from adaptive_lora.study.validation import complaints_of, cross_complaints
from adaptive_lora.study.yaml import LARGEST, Location, line_of, placed, read_yaml, with_values


@dataclass(frozen=True)
class Study:
    """A validated study and the file it came from."""

    spec: StudySpec
    path: Path
    text: str
    lines: Mapping[Location, int]

    @property
    def content(self) -> dict[str, Any]:
        """`content_of` its spec."""
        return content_of(self.spec.model_dump(mode="json"))

    @property
    def identity(self) -> str:
        """Hash of the content, whatever the order of keys."""
        return identity_of(self.spec.model_dump(mode="json"))

    @functools.cached_property
    def matrix(self) -> StudyMatrix:
        """Its cells, comparisons and controls, resolved once."""
        return matrix_of(self.spec)

    def locate(self, text: str) -> str:
        """`text` with `${NAME}` filled in; a relative path is sought beside the study file, then from here."""
        return locate(text, self.path.parent)

    def complaint(self, at: Location, message: str) -> str:
        """A complaint with the line of the key it is about."""
        return placed(self.lines, at, message)


def content_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a spec says, but for trackers and reports, which change no result, and for where model, data and task files
    lie: they may move, and have hashes of their own.

    >>> content_of({"model": {"name": "../models/small"}, "data": {"source": "a.json"}, "tracking": []})
    {'model': {'name': 'small'}, 'data': {'source': 'a.json'}}
    """
    model, data, analysis = spec["model"], spec["data"], spec.get("analysis", {})
    metric = analysis.get("metric")
    if isinstance(metric, Mapping) and "task" in metric:
        analysis = {**analysis, "metric": {**metric, "task": Path(metric["task"]).name}}
    return {
        **{key: value for key, value in spec.items() if key not in ("tracking", "report")},
        **({"analysis": analysis} if "analysis" in spec else {}),
        "model": {**model, "name": Path(model["name"]).name},
        "data": {**data, **{key: Path(data[key]).name for key in ("source", "general") if key in data}},
    }


def identity_of(spec: Mapping[str, Any]) -> str:
    """Hash of what a spec says, `content_of`."""
    return hashlib.sha256(json.dumps(content_of(spec), sort_keys=True).encode()).hexdigest()


def portable_text(study: Study) -> str:
    """The study file with every path that is relative to it made absolute, to stand in another folder.

    Files of strategies stand beside it there.
    """
    paths: dict[Location, str] = {("model", "name"): study.spec.model.name, ("data", "source"): study.spec.data.source}
    if study.spec.data.general is not None:
        paths["data", "general"] = study.spec.data.general
    if isinstance(study.spec.analysis.metric, TaskPart) and is_task_file(study.spec.analysis.metric.task):
        paths["analysis", "metric", "task"] = study.spec.analysis.metric.task
    data = read_yaml(study.text, study.path)[0]
    for index, arm in enumerate(data["arms"]):
        if isinstance(arm, dict) and isinstance(arm.get("ranks"), str):
            paths["arms", index, "ranks"] = arm["ranks"]
    found = portable_strategies(data)
    for at, text in paths.items():
        located = Path(study.locate(text))
        fixed = is_named(text) or "${" in text or expanded(text).is_absolute()  # is the same everywhere
        if not fixed and located.exists():
            found[at] = str(located.resolve())
    return with_values(study.text, found)


def exported_text(study: Study) -> str:
    """The study file for an export, where files of strategies stand beside it; other paths stay as they are."""
    return with_values(study.text, portable_strategies(read_yaml(study.text, study.path)[0]))


def load_study(path: Path) -> Study:
    """Reads and validates a study file; StudyFileError with everything that is wrong with it."""
    try:
        text = read_bounded(path, 4 * LARGEST).decode("utf-8")
    except FileNotFoundError:
        raise StudyFileError(str(path), ["the file does not exist; `adaptive-lora init` writes one"]) from None
    except UnicodeDecodeError as error:
        raise StudyFileError(str(path), [f"cannot be read as text: no UTF-8 at byte {error.start}"]) from None
    except OSError as error:
        raise StudyFileError(str(path), [f"cannot be read: {error.strerror}"]) from None
    return parse_study(text, path)


def study_of_mapping(data: Mapping[str, Any]) -> Study:
    """A study from what a study file would say; relative paths are relative to the current folder.

    An arm may be a `Strategy`, which stands for its name. Raises StudyFileError, as `load_study` does.
    """

    def plain(value: Any) -> str:
        if isinstance(value, Strategy):
            return value.name
        if isinstance(value, Path):
            return str(value)
        raise StudyFileError("the study", [f"a {type(value).__name__} cannot stand in a study: {value!r}"])

    try:
        text = json.dumps(data, indent=2, ensure_ascii=False, default=plain)  # JSON is YAML
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no text, a mapping that holds itself
        raise StudyFileError("the study", [f"cannot be written as a study file: {error}"]) from None
    return parse_study(text, Path("study"), with_lines=False)


def parse_study(text: str, path: Path, with_lines: bool = True) -> Study:
    """`load_study` for text that is already at hand; `path` says what relative paths are relative to."""
    data, lines, complaints = read_yaml(text, path)
    lines = lines if with_lines else {}
    if not isinstance(data, dict):
        raise StudyFileError(str(path), complaints or ["expected keys and values, such as `name: my-study`"])
    found: list[tuple[Location, str]] = []
    data = _with_rank_files(data, path.parent, found)  # first: files give their arms a name
    data = with_located_strategies(data, functools.partial(locate, folder=path.parent))
    found += cross_complaints(data)
    try:
        spec = StudySpec.model_validate(data)
        found += warmup_complaints(spec).items()
        found += [] if found else rule_complaints(spec).items()  # of a study whose names are known to exist
    except ValueError as error:
        found += complaints_of(error, StudySpec, data)
    found.sort(key=lambda complaint: line_of(lines, complaint[0]))
    complaints += [placed(lines, at, message) for at, message in found]
    if complaints:
        raise StudyFileError(str(path), complaints)
    return Study(spec, path, text, lines)


def locate(text: str, folder: Path) -> str:
    """See `Study.locate`."""
    path = expanded(fill_in(text))
    beside = folder / path
    return str(beside if os.path.exists(beside) else path)  # False, too, for what is too long to be a path


def fill_in(text: str) -> str:
    """`text` with `${NAME}` from the environment, and `${NAME:-DEFAULT}` where it may be missing.

    >>> fill_in("${NO_SUCH_NAME:-owner/name}"), fill_in("${NO_SUCH_NAME}/file")
    ('owner/name', '${NO_SUCH_NAME}/file')
    """
    pattern = r"\$\{(\w+)(?::-([^}]*))?\}"
    return re.sub(pattern, lambda m: os.environ.get(m.group(1)) or m.group(2) or m.group(0), text)


def shown(text: str) -> str:
    """How a report names a source of data: as it is written, but for `${NAME}` alone and `${NAME:-default}`, where what
    was taken is named: the default, or the file without its folder.

    >>> shown("${NO_SUCH_NAME:-owner/name}"), shown("${ASSETS}/a.json")
    ('owner/name', '${ASSETS}/a.json')
    """
    if ":-" not in text and not re.fullmatch(r"\$\{\w+\}", text):
        return text
    filled = fill_in(text)
    return Path(filled).name if expanded(filled).exists() else filled


def _with_rank_files(data: dict[str, Any], folder: Path, complaints: list[tuple[Location, str]]) -> dict[str, Any]:
    """Replaces `ranks: FILE` by what the file says, so that the study's identity covers it."""
    arms = data.get("arms")
    if not isinstance(arms, list):
        return data
    read = []
    for index, arm in enumerate(arms):
        if isinstance(arm, dict) and isinstance(arm.get("ranks"), str):
            try:
                content = parse_json(read_bounded(Path(locate(arm["ranks"], folder)), LARGEST).decode("utf-8"))
                arm = {"name": Path(arm["ranks"]).stem, **arm, "ranks": content.get("ranks", content)}
            except (OSError, ValueError, AttributeError) as error:
                at = ("arms", index, "ranks")
                why = "does not exist" if isinstance(error, FileNotFoundError) else "is not a JSON object of ranks"
                complaints.append((at, f"the file {arm['ranks']} {why}"))
                arm = {"name": Path(arm["ranks"]).stem, **arm, "ranks": {}}
        read.append(arm)
    return {**data, "arms": read}
