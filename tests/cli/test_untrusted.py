"""What a verb is given may be anything: it ends with a message and a code, and never with a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import AdaptiveLoraError, StudyFileError, printable

DEMO = Path(__file__).parents[2] / "results" / "demo"
DEEP, LONG = "[" * 20_000, "9" * 5_000


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def refused(*arguments: object) -> str:
    """What is said by a verb that ends as a user's mistake does."""
    found = call(*arguments)
    assert found.exit_code == 2 and isinstance(found.exception, SystemExit), (found.output, found.exception)
    assert found.stderr.startswith("error: ") or "error: " in found.stderr, found.stderr
    assert found.stderr.replace("\n", "").isprintable() and len(found.stderr) < 20_000
    return " ".join(found.stderr.split())


CONTENTS: dict[str, str | bytes] = {
    "deep": DEEP, "digits": LONG, "cut": '{"a": [', "control": '{"a": "\x01\x1b[31m"}', "half a pair": '"\\ud800"',
    "nul": "\0", "bytes": b"\xff\xfe\x80", "empty": "", "null": "null", "list": "[[]]", "text": '"a"',
    "nan": '{"a": NaN}', "self": '{"a": {"a": {"a": 1}}}', "alias": "a: &a [*a, *a]",
}  # fmt: skip
SOME = ("control", "bytes", "empty")
READERS = {
    "run": ("study.yaml", "run {} --out {}-out", tuple(CONTENTS)),
    "plan": ("plan.json", "plan --model demo --plan {} --for peft", tuple(CONTENTS)),
    "data, json": ("data.json", "data profile {}", tuple(CONTENTS)),
    "data, lines": ("data.jsonl", "data profile {}", SOME),
    "data, csv": ("data.csv", "data profile {}", SOME),
    "data, parquet": ("data.parquet", "data profile {}", SOME),
    "judge, lines": ("table.jsonl", "judge {} --baseline a", SOME),
    "judge, csv": ("table.csv", "judge {} --baseline a", SOME),
    "judge, json": ("table.json", "judge {} --baseline a", tuple(CONTENTS)),
}


@pytest.mark.parametrize("verb", READERS)
def test_a_file_of_anything_is_refused_in_words(verb: str, tmp_path: Path) -> None:
    name, words, contents = READERS[verb]
    for what in contents:
        (tmp_path / name).write_bytes(content_of(what))
        assert name in refused(*words.replace("{}", str(tmp_path / name)).split()), what


def content_of(what: str) -> bytes:
    content = CONTENTS[what]
    return content if isinstance(content, bytes) else content.encode()


@pytest.mark.parametrize("verb", ["status", "report", "memory", "paper", "results"])
def test_an_export_of_anything_is_refused_in_words(verb: str, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "own", ignore=shutil.ignore_patterns("memory-bank"))
    for what in CONTENTS if verb == "status" else ("deep", "list"):
        (tmp_path / "own" / "facts.json").write_bytes(content_of(what))
        said = refused(verb, tmp_path / "own", *(["--out", tmp_path / "to"] if verb in ("report", "paper") else []))
        assert "holds no whole export" in said or "is an export already" in said, said


def test_a_value_that_is_missing_in_an_export_is_named(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "own")
    facts = json.loads((tmp_path / "own" / "facts.json").read_text())
    del facts["spec"]["analysis"]
    (tmp_path / "own" / "facts.json").write_text(json.dumps(facts))
    assert "holds no whole export: KeyError 'analysis'" in refused("memory", tmp_path / "own")


@pytest.mark.parametrize(
    "verb", ["status", "report", "memory", "paper", "results", "export", "run", "judge", "adapter"]
)
def test_paths_that_cannot_be_are_named(verb: str) -> None:
    more = {"judge": ["--baseline", "a"], "run": ["--dry-run"], "export": ["--form", "peft"]}.get(verb, [])
    for path in ("a" * 5_000, "x\udcff.yaml", "/dev/zero"):
        refused(verb, path, *more)


@contextlib.contextmanager
def nobody() -> Iterator[Path]:
    """A folder of somebody else's, for a while as one who may only read it."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(DEMO, folder / "own", ignore=shutil.ignore_patterns("memory-bank"))
        folder.chmod(0o555)
        (folder / "own").chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            yield folder / "own"
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
            (folder / "own").chmod(0o755)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("status {}", 0),
        ("results {}", 0),
        ("memory {}", 0),
        ("report {} --out {}/page", 2),
        ("report {} --out {}", 2),
        ("paper {}", 2),
        ("paper {} --out {}/paper", 2),
        ("memory {} --out {}", 2),
        ("plan --model demo --out {}/plan.json", 2),
        ("plan --model demo --peft {}/peft", 2),
        ("run {}/study.yaml --out {}/run", 2),
        ("init demo --out {}/study2.yaml", 2),
        ("judge {} --baseline uniform --out {}/page", 2),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_folder_that_may_only_be_read(words: str, code: int) -> None:
    import importlib.readers  # noqa: F401 (what is imported late may lie where only root can read)

    call("memory", DEMO)
    with nobody() as folder:
        found = call(*words.replace("{}", str(folder)).split())
    assert found.exit_code == code and isinstance(found.exception, SystemExit | None), (found.output, found.exception)
    if code:
        assert str(folder) in found.stderr and ("read-only" in found.stderr or "ermission" in found.stderr), (
            found.stderr
        )


def test_messages_are_printable_bounded_and_without_tokens() -> None:
    token = "hf_" + "aB3" * 11
    error = StudyFileError("s\x1b[2J.yaml", [f"{token} \u202e {'x' * 10_000}"] * 500)
    assert str(error).replace("\n", "").isprintable() and token not in str(error) and "hf_[redacted]" in str(error)
    assert len(str(error)) < 200_000 and "and 401 more lines" in str(error)
    assert str(AdaptiveLoraError("é ü 中 ×\nb")) == "é ü 中 ×\nb" == printable("é ü 中 ×\nb")
