"""The attention kernel for the CPU: compiled from `attention.c` where there is a C compiler, once a machine."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("attention.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_POINTERS_FIRST = ("q", "k", "v")
_SIZES = ("q_stride", "k_stride", "v_stride", "tokens", "heads", "groups", "width", "sequences")
_POINTERS_LAST = ("out", "scales", "out_gradient", "q_gradient", "k_gradient", "v_gradient")


class Arguments(ctypes.Structure):
    """`attention` of attention.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS_FIRST),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("starts", ctypes.c_void_p),
        ("scaling", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in _POINTERS_LAST),
    ]


@functools.cache
def attention_kernel() -> ctypes.CDLL | None:
    """The kernel's `attention_forward` and `attention_backward`; nothing where it cannot be compiled.

    ADAPTIVE_LORA_KERNEL=off leaves it out.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or os.environ.get("ADAPTIVE_LORA_KERNEL") == "off" or os.name != "posix":
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None  # a compiler that does not work is as good as none: torch's own attention serves
    for function in (library.attention_forward, library.attention_backward):
        function.argtypes, function.restype = [ctypes.POINTER(Arguments)], ctypes.c_int
    return library


def _compiled(compiler: str) -> Path:
    """The shared library, from the user's cache if this source was compiled for this processor before."""
    key = hashlib.sha256("\0".join([_SOURCE.read_text(), compiler, *_FLAGS, _processor()]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptive-lora"
    library = folder / f"attention-{key}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        library = Path(tempfile.mkdtemp(prefix="adaptive-lora-")) / library.name
    temporary = library.with_name(f".{os.getpid()}-{library.name}")
    command = [compiler, *_FLAGS, "-o", str(temporary), str(_SOURCE), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    temporary.replace(library)
    return library


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        return platform.platform() + platform.processor()
