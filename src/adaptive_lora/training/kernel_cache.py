"""Compiled kernels on disk: what is loaded is ours, whole, and what a compiler made; else it is compiled again.

A library's name ends with the digest of its content, and it lies in a folder that its user alone can write. So one that
was cut short (which would end the process when it is used), changed, or put there by someone else is never loaded, and
of several processes that compile at the same time each finds a whole file.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from adaptive_lora.files import user_cache

_DIGITS = 32
"""Of a digest: 128 bits."""


def kernel_folders() -> tuple[Path, Path]:
    """Where libraries are looked for and kept: the user's cache, and a private folder for temporary files."""
    return user_cache() / "kernels", Path(tempfile.gettempdir()) / f"adaptive-lora-{os.geteuid()}"


def load_or_compile(stem: str, compile_to: Callable[[Path], None]) -> tuple[ctypes.CDLL, str]:
    """The library `stem`, from a folder of `kernel_folders` or made by `compile_to`; and why it is not the first one.

    Where no folder can hold it, this process has it alone. Raises OSError where it can be loaded from nowhere, and what
    `compile_to` raises.
    """
    complaints, folders = list[str](), list[Path]()
    for folder in kernel_folders():
        if why := _unfit(folder):
            complaints.append(why)
            continue
        folders.append(folder)
        for path in _sound_files(folder, stem):
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(path)), _told(complaints, f"kept in {folder}")
    with tempfile.TemporaryDirectory(prefix="adaptive-lora-") as private:
        built = Path(private) / f"{stem}.so"
        compile_to(built)
        for folder in folders:
            try:
                return ctypes.CDLL(str(_keep(folder, stem, built))), _told(complaints, f"kept in {folder}")
            except OSError as error:  # a full disk, or one that nothing may be executed from
                complaints.append(f"{folder}: {error.strerror or error}")
        return ctypes.CDLL(str(built)), _told(complaints, "compiled by every process")  # it outlives its file


def _told(complaints: list[str], instead: str) -> str:
    return f"{'; '.join(complaints)}; {instead}" if complaints else ""


def _unfit(folder: Path) -> str:
    """Why a folder, made where there is none, cannot hold libraries; empty where it can."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        return f"{folder} cannot be made: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    return f"{folder} can be written by others" if found.st_mode & 0o022 else ""


def _sound_files(folder: Path, stem: str) -> Iterator[Path]:
    """Libraries that are what their name says; others are removed."""
    for path in sorted(folder.glob(f"{stem}-*.so")):
        if _is_sound(path):
            yield path
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_sound(path: Path) -> bool:
    try:
        found = path.lstat()
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        return ours and path.stem.endswith(f"-{_digest(path)}")
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]


def _keep(folder: Path, stem: str, built: Path) -> Path:
    """A copy of a library under its name there; it appears whole or not at all."""
    kept = folder / f"{stem}-{_digest(built)}.so"
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{stem}-")
    os.close(handle)
    try:
        shutil.copyfile(built, partial)
        os.chmod(partial, 0o700)
        os.replace(partial, kept)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return kept
