"""The C kernels: compiled once per source, flags, compiler and processor; and what happens where they cannot be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from ctypes import CDLL
from pathlib import Path

import pytest
import torch

from adaptive_lora import doctor
from adaptive_lora.training import bank_model, kernel_cache, kernels
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.kernels import attention_kernel, forget_kernels, kernel_places, kernel_status, lora_kernel
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
    (library,) = cached(tmp_path)
    made = library.stat().st_mtime_ns
    assert library.parent.stat().st_mode & 0o777 == 0o700
    forget_kernels()
    assert attention_kernel() is not None
    assert [path.stat().st_mtime_ns for path in cached(tmp_path)] == [made]
    assert not kernel_places()


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
    assert len(cached(tmp_path)) == 2


@needs_compiler
def test_a_compiler_may_have_arguments(fresh: pytest.MonkeyPatch) -> None:
    """As in CC="ccache gcc"."""
    fresh.setenv("CC", f"env {COMPILER}")
    assert set(kernel_status().values()) == {"compiled"}


def cached(folder: Path) -> list[Path]:
    return sorted((folder / "adaptive-lora" / "kernels").iterdir())


def as_file(folder: Path) -> None:
    (folder / "adaptive-lora").write_text("no folder")


def as_proc(folder: Path) -> None:
    (folder / "adaptive-lora").symlink_to("/proc")  # is there and takes no file, not even root's


def as_anothers(folder: Path) -> None:
    (folder / "adaptive-lora" / "kernels").mkdir(parents=True)
    (folder / "adaptive-lora" / "kernels").chmod(0o777)


UNFIT = {"cannot be made": as_file, "cannot be made: No such": as_proc, "can be written by others": as_anothers}


@needs_compiler
@pytest.mark.parametrize("why", UNFIT)
def test_a_cache_that_cannot_be_ours_is_done_without(fresh: pytest.MonkeyPatch, tmp_path: Path, why: str) -> None:
    if why.endswith("such") and not Path("/proc/self").is_dir():
        pytest.skip("no /proc")
    fresh.setattr(kernel_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    UNFIT[why](tmp_path)
    assert attention_kernel() is not None
    private = tmp_path / f"adaptive-lora-{os.geteuid()}"
    assert private.stat().st_mode & 0o777 == 0o700 and len(list(private.iterdir())) == 1
    library, place = kernels._opened("attention", kernels._compiler(), ())
    assert library is not None and f"{tmp_path / 'adaptive-lora' / 'kernels'} {why}" in place
    assert place.endswith(f"; kept in {private}")
    private.chmod(0o755 | 0o020)
    _, place = kernels._opened("attention", kernels._compiler(), ())
    assert f"{private} can be written by others; compiled by every process" in place


def test_a_folder_of_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").mkdir(mode=0o700)
    assert not kernel_cache._unfit(tmp_path / "kernels")
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert kernel_cache._unfit(tmp_path / "kernels").endswith("belongs to another user")


def cut_short(library: Path) -> None:
    os.truncate(library, 4096)  # the headers are whole: loading it ends in SIGBUS


def garbage(library: Path) -> None:
    library.write_bytes(b"not a library")


def open_to_others(library: Path) -> None:
    library.chmod(0o777)


def a_link(library: Path) -> None:
    library.rename(library.with_suffix(".elsewhere"))
    library.symlink_to(library.with_suffix(".elsewhere"))


@needs_compiler
@pytest.mark.parametrize("spoil", [cut_short, garbage, open_to_others, a_link])
def test_what_is_not_what_was_compiled_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(kernel_cache, "user_cache", lambda: tmp_path)
    built, loaded = list[Path](), list[str]()

    def compile_to(path: Path) -> None:
        built.append(path)
        path.write_bytes(bytes(9000))

    monkeypatch.setattr(kernel_cache.ctypes, "CDLL", loaded.append)
    kernel_cache.load_or_compile("attention-key", compile_to)
    kernel_cache.load_or_compile("attention-key", compile_to)
    assert len(built) == 1 and loaded[0] == loaded[1]
    spoil(Path(loaded[0]))
    kernel_cache.load_or_compile("attention-key", compile_to)
    assert len(built) == 2 and loaded[2] == loaded[0]
    assert kernel_cache._is_sound(Path(loaded[2])) and Path(loaded[2]).stat().st_size == 9000


def test_two_processes_that_compile_at_once_have_a_whole_file_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is through while this one compiles."""
    monkeypatch.setattr(kernel_cache, "user_cache", lambda: tmp_path)
    loaded = list[bytes]()
    monkeypatch.setattr(kernel_cache.ctypes, "CDLL", lambda path: loaded.append(Path(path).read_bytes()))

    def ours(path: Path) -> None:
        kernel_cache.load_or_compile("attention-key", lambda other: other.write_bytes(b"theirs") and None)
        path.write_bytes(b"ours")

    kernel_cache.load_or_compile("attention-key", ours)
    assert loaded == [b"theirs", b"ours"]
    assert len(list((tmp_path / "kernels").iterdir())) == 2  # nothing half-made is left
    kernel_cache.load_or_compile("attention-key", ours)
    assert len(loaded) == 3


@needs_compiler
def test_a_compiler_may_lie_at_a_path_with_blanks(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my tools").mkdir()
    (tmp_path / "my tools" / "cc").symlink_to(str(COMPILER))
    fresh.setenv("CC", str(tmp_path / "my tools" / "cc"))
    assert kernels._compiler() == [str(tmp_path / "my tools" / "cc")]


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


@needs_compiler
def test_the_doctor_says_where_kernels_are_kept_instead(fresh: pytest.MonkeyPatch) -> None:
    kernel = kernels._Kernel(CDLL(None), place="~/.cache belongs to another user; kept in /tmp/private")
    fresh.setattr(kernels, "_loaded", lambda *_: kernel)
    fresh.setattr(kernels, "split_kernel", lambda: None)
    state, found = doctor.CHECKS["kernels"][0]()
    assert state == "note" and found.count("~/.cache belongs to another user; kept in /tmp/private") == 1
    fresh.undo()


def test_the_doctor_says_what_multiplies_float32(fresh: pytest.MonkeyPatch) -> None:
    for kernel, words in ((None, "float32 products: oneDNN"), (CDLL(None), "float32 products: by bfloat16 tiles")):
        fresh.setattr(kernels, "split_kernel", lambda kernel=kernel: kernel)
        assert words in doctor.CHECKS["kernels"][0]()[1]


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

    tiled = ", tiled products" if kernels.split_kernel() else ""
    assert said() == f"compiled attention, compiled lora{tiled}"
    assert said(stacked=True).split(", ") == ["compiled attention", *tiled.split(", ")[1:], "batched lora"]
    with fresh.context() as padded:
        padded.setattr(bank_model, "_packed_attention", refuse)
        assert said() == f"compiled lora, the model's attention{tiled}"
    fresh.setenv("ADAPTIVE_LORA_KERNEL", "off")
    forget_kernels()
    assert said() == "torch attention, torch lora"
    gpt2.model.bfloat16()
    assert said() == "torch attention, torch lora"
