"""A disk that is full when verbs write: exit 1, what to do, and no half file. tests/soak/full_disk.py has all verbs.

The disk is real, but for its size: a limit of this process's file sizes stands for it, which fails at the same calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from adaptive_lora.cli.app import explained
from adaptive_lora.cli.main import app
from adaptive_lora.errors import StudyFolderError
from adaptive_lora.study import results
from adaptive_lora.study.folder import StudyPaths, exclusive
from tests.reporting.ledgers import make_ledger


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may become larger."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full(result: Result) -> None:
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "failed: " in result.stderr and "Free some space there" in result.stderr


def test_an_export_that_does_not_fit_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: the last file is the one that does not fit."""
    study, out = make_ledger(tmp_path / "study", arms=3, seeds=4), tmp_path / "text"
    assert call("results", study, "--out", out).exit_code == 0
    before = files(out)

    def no_room(ledger: object, path: Path, without: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(results, "write_archive", no_room)
    full(call("results", study, "--out", out))
    assert files(out) == before
    full(call("results", study, "--out", tmp_path / "new"))
    assert not StudyPaths(tmp_path / "new").is_export and "runs.csv" not in files(tmp_path / "new")


def test_a_plan_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    wanted = ("plan", "--model", "demo", "--strategy", "uniform")
    (tmp_path / "two.json").write_text('[{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]')
    with room_for(100):
        full(call(*wanted, "--out", tmp_path / "plan.json"))
        full(call(*wanted, "--peft", tmp_path / "peft"))
        full(call("data", "profile", tmp_path / "two.json", "--model", "demo", "--png", tmp_path / "lengths.png"))
    assert files(tmp_path).keys() == {"two.json"}


def test_a_study_folder_on_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"\.lock"), room_for(0), exclusive(tmp_path):
        pass


def test_a_study_on_a_full_disk_can_be_read_and_its_page_written_elsewhere(tmp_path: Path) -> None:
    study = make_ledger(tmp_path / "study", arms=3, seeds=2)
    with room_for(0):  # none for SQLite's side files
        done = call("status", study)
        assert done.exit_code == 0 and "64 completed" in done.stdout, done.output
        full(call("memory", study, "--out", tmp_path / "bank"))


CASES = [
    (OSError(errno.ENOSPC, "No space left on device", "/a/page.html"), 1, "/a/page.html: No space left on device. No"),
    (OSError(errno.EROFS, "Read-only file system", "/a/page.html"), 2, "error: /a/page.html: Read-only file system."),
    (PermissionError(errno.EACCES, "Permission denied", "/a"), 2, "error: /a: Permission denied."),
    (OSError(errno.EIO, "Input/output error"), 1, "failed: Input/output error."),
    (StudyFolderError("in use"), 2, "error: in use"),
    (MemoryError("for an array"), 1, "failed: out of memory: for an array. End other programs, or raise the limit"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "failed: out of memory: [Errno 12] Cannot allocate memory."),
    (RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)"), 1, "out of memory: unable to"),
    (RuntimeError("can't start new thread"), 1, "failed: out of memory: can't start new thread. End other programs"),
    (ImportError("x.so: failed to map segment from shared object"), 1, "failed: out of memory: x.so: failed to map"),
    (MemoryError(), 1, "failed: out of memory. End other programs"),
    (RuntimeError("could not create a primitive"), 1, "failed: out of memory: could not create a primitive. End"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "said"), CASES, ids=lambda value: type(value).__name__)
def test_what_the_system_says_ends_a_verb(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated: raised in place of a verb's work, once torch is there, as it is where it says that."""
    import torch  # noqa: F401

    @explained
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        verb()
    assert ended.value.exit_code == code and said in capsys.readouterr().err


def test_last_words_are_said_where_there_is_no_memory_for_a_console(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Simulated: the console is what runs out."""

    @explained
    def verb() -> None:
        raise MemoryError("for an array")

    monkeypatch.setattr("adaptive_lora.cli.app._Redacted.print", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(typer.Exit) as ended:
        verb()
    assert ended.value.exit_code == 1
    assert capfd.readouterr().err.startswith("failed: out of memory: for an array. End other programs, or raise")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_nobody_can_take_is_told() -> None:
    """A process, as Python would put its own exit code for ours when it ends."""
    command = [sys.executable, "-m", "adaptive_lora.cli.main", "strategies"]
    with open("/dev/full", "w") as device:
        done = subprocess.run(command, stdout=device, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "failed: No space left on device" in done.stderr
    assert "Exception ignored" not in done.stderr and "Traceback" not in done.stderr
