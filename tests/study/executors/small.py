"""The smallest study that trains: a few records in a file of its own, two arms, no answers for the page."""

from __future__ import annotations

import json
from pathlib import Path

from adaptive_lora.demo.tasks import generate
from adaptive_lora.study.study_file import Study, load_study
from tests.conftest import STUDY

_SMALLER = (
    ("[uniform, linear-decay, empirical, random]", "[uniform, random]"),
    ("train: 24, validation: 10, test: 20", "train: 8, validation: 4, test: 8"),
    ("demo:fine-tuning", "records.json"),
    ("engine: bank", "engine: bank\nreport: {answers: 0}"),
    ("analysis: {", "analysis: {margin: 0.01, "),
)


def small_study(folder: Path, model: Path, *replacements: tuple[str, str], name: str = "study.yaml") -> Study:
    """Written in `folder`, with replacements."""
    (folder / "records.json").write_text(json.dumps(generate("fine-tuning", 40)))
    text = STUDY.format(model=model)
    for old, new in (*_SMALLER, *replacements):
        assert old in text, f"{old!r} is not in the study file"
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return load_study(folder / name)
