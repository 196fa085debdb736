"""The C kernels: compiled once per source, flags, compiler and processor; and what happens where they cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adaptive_lora import doctor
from adaptive_lora.training import bank_model, kernels
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.kernels import attention_kernel, forget_kernels, kernel_status, lora_kernel
from tests.training.conftest import by_bank, seven_members

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler here: the kernels are not built")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A machine with an empty kernel cache, whose environment may be changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_FLAGS", ("-O0", *kernels._FLAGS[1:]))  # compiled many times here
    forget_kernels()
    yield monkeypatch
    monkeypatch.undo()
    forget_kernels()


@needs_compiler
def test_a_kernel_is_compiled_once(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert attention_kernel() is not None
    (library,) = (tmp_path / "adaptive-lora").iterdir()
    made = library.stat().st_mtime_ns
    forget_kernels()
    assert attention_kernel() is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "adaptive-lora").iterdir()] == [made]


def change(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """Makes the kernels' sources a copy in which one has another comment."""
    for path in (*kernels._SOURCES.glob("*.c"), *kernels._SOURCES.glob("*.h")):
        (folder / path.name).write_text(path.read_text() + ("\n/* changed */\n" if path.name == name else ""))
    monkeypatch.setattr(kernels, "_SOURCES", folder)


@needs_compiler
@pytest.mark.parametrize("changed", ["processor", "source", "header", "flags", "compiler", "dtype"])
def test_a_change_of_what_a_kernel_depends_on_compiles_it_again(
    fresh: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    assert lora_kernel(torch.float32) is not None
    forget_kernels()
    if changed == "processor":
        fresh.setattr(kernels, "_processor", lambda: "another processor")
    elif changed == "source":
        change(fresh, tmp_path, "lora.c")
    elif changed == "header":
        change(fresh, tmp_path, "vectors.h")
    elif changed == "flags":
        fresh.setattr(kernels, "_FLAGS", (*kernels._FLAGS, "-g"))
    elif changed == "compiler":
        fresh.setenv("CC", f"{COMPILER} -pipe")
    assert lora_kernel(torch.float64 if changed == "dtype" else torch.float32) is not None
    assert len(list((tmp_path / "adaptive-lora").iterdir())) == 2


@needs_compiler
def test_a_compiler_may_have_arguments(fresh: pytest.MonkeyPatch) -> None:
    """As in CC="ccache gcc"."""
    fresh.setenv("CC", f"env {COMPILER}")
    assert set(kernel_status().values()) == {"compiled"}


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be made
    assert attention_kernel() is not None
    if Path("/proc/self").is_dir():  # is there and takes no file, not even root's
        (tmp_path / "read-only").mkdir()
        (tmp_path / "read-only" / "adaptive-lora").symlink_to("/proc")
        fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "read-only"))
        forget_kernels()
        assert attention_kernel() is not None


@needs_compiler
def test_a_corrupt_file_in_the_cache_is_replaced(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Before the first call: a library that this process has opened is not read again.
    library = tmp_path / "adaptive-lora" / f"attention-{kernels._cache_key('attention', kernels._compiler(), ())}.so"
    library.parent.mkdir()
    library.write_bytes(b"not a library")
    assert attention_kernel() is not None
    assert library.stat().st_size > 1000


REASONS = {
    "ADAPTIVE_LORA_KERNEL=off": "ADAPTIVE_LORA_KERNEL=off",
    "CC=no-such-compiler -O2": "no-such-compiler",
    "CC=false": "false failed: exit status 1",
    "CC=gcc 'unbalanced": "No closing quotation",
    "PATH=/nowhere": "no C compiler: install cc, gcc or clang, or set CC",
}


@pytest.mark.parametrize("setting", REASONS)
def test_where_there_is_no_kernel_the_reason_is_known(fresh: pytest.MonkeyPatch, setting: str) -> None:
    name, value = setting.split("=", 1)
    fresh.delenv("CC", raising=False)
    fresh.setenv(name, value)
    assert attention_kernel() is None and lora_kernel(torch.float32) is None
    for status in kernel_status().values():
        assert status.startswith("torch (") and REASONS[setting] in status


def test_the_doctor_says_which_kernels_are_used_and_why(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("CC", "no-such-compiler")
    check, _ = doctor.CHECKS["kernels"]
    state, found = check()
    assert state == "note" and "no-such-compiler" in found and "attention: torch (" in found


@pytest.mark.parametrize("setting", ["ADAPTIVE_LORA_KERNEL=off", "CC=no-such-compiler"])
def test_without_kernels_torch_trains_the_same(gpt2: FrozenBase, fresh: pytest.MonkeyPatch, setting: str) -> None:
    members = seven_members(gpt2, steps=3)[:2]
    compiled = by_bank(gpt2, members)
    name, value = setting.split("=")
    fresh.setenv(name, value)
    forget_kernels()
    for ours, theirs in zip(by_bank(gpt2, members), compiled, strict=True):
        assert [r.loss for r in ours.records] == pytest.approx([r.loss for r in theirs.records], rel=1e-5)


def refuse(*_: object) -> None:
    raise ValueError("not here")


@needs_compiler
def test_a_bank_says_what_computes_it(gpt2: FrozenBase, fresh: pytest.MonkeyPatch) -> None:
    def said(**how: bool) -> str:
        with Bank(gpt2, seven_members(gpt2, steps=2)[:2], chunk_tokens=500, **how) as bank:
            before = bank.kernels
            bank.step()
            assert bank.kernels == before
            return before

    assert said() == "compiled attention, compiled lora"
    assert said(stacked=True) == "compiled attention, batched lora"
    with fresh.context() as padded:
        padded.setattr(bank_model, "_packed_attention", refuse)
        assert said() == "compiled lora, the model's attention"
    fresh.setenv("ADAPTIVE_LORA_KERNEL", "off")
    forget_kernels()
    assert said() == "torch attention, torch lora"
    gpt2.model.bfloat16()
    assert said() == "torch attention, torch lora"
