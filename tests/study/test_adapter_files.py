"""A kept adapter that is not what was written is refused with its file and a remedy; one without digests is read."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.export.study_runs import runs_of
from adaptive_lora.study.adapter_files import DIGESTS, check_adapter, seal_adapter
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import open_to_read
from tests.reporting.ledgers import make_ledger

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(64), "plan.json": b'{"format": 1}'}


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    seal_adapter(folder)
    return folder


@pytest.mark.parametrize("name", [*FILES, DIGESTS])
def test_any_bit_that_is_changed_is_noticed(name: str, tmp_path: Path) -> None:
    path = adapter(tmp_path / "own") / name
    check_adapter(path.parent)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        with pytest.raises(StudyFolderError, match=r"is damaged: .*back from a copy"):
            check_adapter(path.parent)
    path.write_bytes(whole)
    check_adapter(path.parent)


def test_what_is_gone_and_what_was_added(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "own")
    (folder / "README.md").write_text("a note")
    check_adapter(folder)
    for name in ("plan.json", "adapter_config.json"):
        (folder / name).unlink()
    with pytest.raises(StudyFolderError, match=r"adapter_config\.json, .*plan\.json is damaged"):
        check_adapter(folder)
    (folder / DIGESTS).unlink()
    check_adapter(folder)


@pytest.mark.parametrize(
    "content", ['{"../own/plan.json": "x"}', '{"/proc/kcore": "x"}', '{"loop": "x"}', "[]", "[" * 9_999]
)
def test_a_list_that_someone_else_wrote_leads_nowhere(content: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "own")
    (folder / "loop").symlink_to("/dev/zero")
    (folder / DIGESTS).write_text(content)
    with pytest.raises(StudyFolderError, match="damaged"):
        check_adapter(folder)


def test_a_damaged_adapter_of_a_study_is_not_exported(tmp_path: Path) -> None:
    study = make_ledger(tmp_path / "study", arms=3, seeds=2)
    with contextlib.closing(open_to_read(study)) as ledger:
        folders = [
            adapter(StudyPaths(study).adapter(run["run_id"])) for run in ledger.runs() if run["arm"] == "uniform"
        ]
    found = runs_of(study, "uniform", None, "all")
    assert {run.folder for run in found} <= set(folders)
    path = found[-1].folder / "adapter_model.safetensors"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(StudyFolderError, match=r"safetensors is damaged: .* run the study again in a new folder"):
        runs_of(study, "uniform", None, "all")
