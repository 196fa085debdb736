"""The study file: what is compared with what, on which data, trained how. Validated once, at the door."""

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
from adaptive_lora.study.matrix import StudyMatrix, matrix_of
from adaptive_lora.study.schema import StudySpec
from adaptive_lora.study.settings import warmup_complaints
from adaptive_lora.study.validation import complaints_of, cross_complaints
from adaptive_lora.study.yaml import Location, line_of, placed, read_yaml


@dataclass(frozen=True)
class Study:
    """A validated study and the file it came from."""

    spec: StudySpec
    path: Path
    text: str
    lines: Mapping[Location, int]

    @property
    def identity(self) -> str:
        """Hash of all that the file says (comments, order of keys and trackers apart): the study's content."""
        canonical = json.dumps(self.spec.model_dump(mode="json", exclude={"tracking"}), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

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


def load_study(path: Path) -> Study:
    """Reads and validates a study file; StudyFileError with everything that is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyFileError(str(path), ["the file does not exist; `adaptive-lora init` writes one"]) from None
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as error:
        raise StudyFileError(str(path), [f"cannot be read as text: {type(error).__name__}"]) from None
    return parse_study(text, path)


def parse_study(text: str, path: Path) -> Study:
    """`load_study` for text that is already at hand; `path` says what relative paths are relative to."""
    data, lines, complaints = read_yaml(text, path)
    if not isinstance(data, dict):
        raise StudyFileError(str(path), complaints or ["expected keys and values, such as `name: my-study`"])
    found: list[tuple[Location, str]] = []
    data = _with_rank_files(data, path.parent, found)  # first: a file gives its arm a name
    found += cross_complaints(data)
    try:
        spec = StudySpec(**data)
        found += warmup_complaints(spec).items()
    except ValueError as error:
        found += complaints_of(error, StudySpec, data)
    found.sort(key=lambda complaint: line_of(lines, complaint[0]))
    complaints += [placed(lines, at, message) for at, message in found]
    if complaints:
        raise StudyFileError(str(path), complaints)
    return Study(spec, path, text, lines)


def locate(text: str, folder: Path) -> str:
    """See `Study.locate`."""
    filled = re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found.group(1), found.group(0)), text)
    expanded = Path(filled).expanduser()
    beside = folder / expanded
    return str(beside if beside.exists() else expanded)


def _with_rank_files(data: dict[str, Any], folder: Path, complaints: list[tuple[Location, str]]) -> dict[str, Any]:
    """Replaces `ranks: FILE` by what the file says, so that the study's identity covers it."""
    arms = data.get("arms")
    if not isinstance(arms, list):
        return data
    read = []
    for index, arm in enumerate(arms):
        if isinstance(arm, dict) and isinstance(arm.get("ranks"), str):
            try:
                content = json.loads(Path(locate(arm["ranks"], folder)).read_text())
                arm = {"name": Path(arm["ranks"]).stem, **arm, "ranks": content.get("ranks", content)}
            except (OSError, ValueError, AttributeError) as error:
                at = ("arms", index, "ranks")
                why = "does not exist" if isinstance(error, FileNotFoundError) else "is not a JSON object of ranks"
                complaints.append((at, f"the file {arm['ranks']} {why}"))
                arm = {"name": Path(arm["ranks"]).stem, **arm, "ranks": {}}
        read.append(arm)
    return {**data, "arms": read}
