"""Runs of one study on two kinds of device, told where dropout makes it matter; and with other kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from adaptive_lora.study.engines import devices
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.training import bank_model
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.kernels import forget_kernels, split_kernel

WriteStudy = Callable[..., Path]
TWO_ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]")


class Told(Silent):
    """Keeps what is said, and stops at an update."""

    def __init__(self, stop_at: int = 0) -> None:
        self.left, self.warnings = stop_at, []

    def stage(self, text: str) -> None:
        if text.startswith("warning: ") and "no compiled" not in text:
            self.warnings.append(text)

    def step(self, record: StepRecord) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def moved(folder: Path, device: str) -> None:
    """As if all that was done had been done there."""
    with closing(create_or_open(folder)) as ledger, ledger._db as db:
        db.execute("UPDATE runs SET device = ? WHERE device IS NOT NULL", (device,))


@pytest.mark.parametrize(("engine", "stop_at", "begun", "left"), [("reference", 9, 2, 3), ("bank", 3, 4, 4)])
def test_another_kind_of_device_is_told_where_there_is_dropout(
    study_file: WriteStudy, tmp_path: Path, engine: str, stop_at: int, begun: int, left: int
) -> None:
    study = load_study(study_file(TWO_ARMS, ("engine: bank", f"engine: {engine}")))
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", Told(stop_at), checkpoint_seconds=0.0)
    moved(tmp_path / "out", "cuda:1")
    told = Told()
    assert run_study(study, tmp_path / "out", told).finished
    [warning] = told.warnings
    assert f"{begun} of these runs were trained on cuda, the {left} left go on on cpu: with `dropout: 0.1`" in warning
    assert "--device cuda" in warning


@pytest.mark.parametrize(("dropout", "device"), [("0", "cuda"), ("0.1", "cpu")])
def test_nothing_is_said_where_it_does_not_matter(
    study_file: WriteStudy, tmp_path: Path, dropout: str, device: str
) -> None:
    study = load_study(study_file(TWO_ARMS, ("dropout: 0.1", f"dropout: {dropout}")))
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", Told(3), checkpoint_seconds=0.0)
    moved(tmp_path / "out", device)
    told = Told()
    assert run_study(study, tmp_path / "out", told).finished and not told.warnings


def test_nothing_is_said_of_a_finished_study(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file(TWO_ARMS))
    run_study(study, tmp_path / "out")
    moved(tmp_path / "out", "cuda")
    told = Told()
    assert run_study(study, tmp_path / "out", told).finished and not told.warnings


def test_kernels_that_are_missing_at_a_resume_are_told_and_recorded(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = load_study(study_file(TWO_ARMS)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out, Told(3), checkpoint_seconds=0.0)
    began = kernels_of(out)
    tiled = ", tiled products" if split_kernel() else ""
    if began != {f"compiled attention, compiled lora{tiled}"}:
        pytest.skip("no C compiler here: the kernels are not built")
    monkeypatch.setenv("ADAPTIVE_LORA_KERNEL", "off")
    forget_kernels()
    told = Told()
    try:
        assert run_study(study, out, told).finished
    finally:
        monkeypatch.undo()
        forget_kernels()
    *_, warning = told.warnings
    assert len(told.warnings) == (2 if tiled else 1)
    assert warning.startswith("warning: 4 of these runs were trained with the compiled kernels for attention and lora")
    assert "differ in the 7th digit" in warning and "ADAPTIVE_LORA_KERNEL=off" in warning
    assert kernels_of(out) == {f"compiled attention, compiled lora{tiled}; then torch attention, torch lora"}


@pytest.mark.parametrize("here", [True, False])
def test_products_on_tiles_before_or_after_a_resume_are_told(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    study, out = load_study(study_file(TWO_ARMS)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out, Told(3), checkpoint_seconds=0.0)
    with closing(create_or_open(out)) as ledger, ledger._db as db:
        db.execute("UPDATE runs SET kernels = ?", ("compiled lora" if here else "compiled lora, tiled products",))
    monkeypatch.setattr(devices, "uses_tiles", lambda base: here)
    told = Told()
    assert run_study(study, out, told).finished
    [warning] = [text for text in told.warnings if "tiles" in text]
    before, after = ("without tiles", "on bfloat16 tiles") if here else ("on bfloat16 tiles", "without tiles")
    assert warning.startswith(f"warning: 4 of these runs multiplied float32 {before}, the rest go on {after}")


@pytest.mark.parametrize("model", ["products: bfloat16", "dtype: float64"])
def test_nothing_is_said_of_tiles_where_none_would_be_used(
    study_file: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """On a processor that has them, at the resume of a study that multiplies otherwise."""
    monkeypatch.setattr(bank_model, "split_kernel", lambda: object())
    study, out = load_study(study_file(TWO_ARMS, ("model: {name:", f"model: {{{model}, name:"))), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out, Told(3), checkpoint_seconds=0.0)
    told = Told()
    assert run_study(study, out, told).finished and not told.warnings


def kernels_of(folder: Path) -> set[str]:
    with closing(open_to_read(folder)) as ledger:
        return {run["kernels"] for run in ledger.runs()}
