"""Kernels for the CPU: compiled from `attention.c` and `lora.c` where there is a C compiler, once a machine."""

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
from typing import ClassVar

import torch

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_FUNCTIONS = {"attention": ("forward", "backward"), "lora": ("forward", "backward", "product")}
_REALS = {torch.float32: "float", torch.float64: "double"}


def _fields(pointers: str = "", sizes: str = "") -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in pointers.split()] + [(name, ctypes.c_int64) for name in sizes.split()]


class Arguments(ctypes.Structure):
    """`attention` of attention.c."""

    _fields_ = [
        *_fields("q k v", "q_stride k_stride v_stride tokens heads groups width sequences"),
        *_fields("starts"),
        ("scaling", ctypes.c_float),
        *_fields("out scales out_gradient q_gradient k_gradient v_gradient"),
    ]


class LoraPart(ctypes.Structure):
    """`part` of lora.c."""

    _fields_ = [
        *_fields(sizes="begin end rank"),
        *_fields("a b a_gradient b_gradient dropped", "drops"),
        ("scaling", ctypes.c_double),
    ]


class LoraUpdate(ctypes.Structure):
    """`update` of lora.c."""

    NARROWEST: ClassVar = 16
    """Fewest inputs or outputs of a layer that lora.c takes: a vector's."""
    _fields_ = [*_fields(sizes="d_in d_out parts"), *_fields("part x y u x_gradient")]


def attention_kernel() -> ctypes.CDLL | None:
    """The kernel's `attention_forward` and `attention_backward`; nothing where it cannot be compiled.

    ADAPTIVE_LORA_KERNEL=off leaves the kernels out.
    """
    return _loaded("attention", Arguments)


def lora_kernel(dtype: torch.dtype) -> ctypes.CDLL | None:
    """`lora_forward`, `lora_backward` and `lora_product` for a type of numbers; nothing where they cannot be had."""
    real = _REALS.get(dtype)
    return None if real is None else _loaded("lora", LoraUpdate, f"-DREAL={real}")


@functools.cache
def _loaded(name: str, arguments: type[ctypes.Structure], *flags: str) -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or os.environ.get("ADAPTIVE_LORA_KERNEL") == "off" or os.name != "posix":
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler, name, flags)))
    except (OSError, subprocess.SubprocessError):
        return None  # a compiler that does not work is as good as none: torch's own products serve
    for function in _FUNCTIONS[name]:
        found = getattr(library, f"{name}_{function}")
        found.argtypes, found.restype = [ctypes.POINTER(arguments)], ctypes.c_int
    return library


def forget() -> None:
    """Looks for a compiler anew at the next call."""
    _loaded.cache_clear()


def _compiled(compiler: str, name: str, flags: tuple[str, ...]) -> Path:
    """The shared library, from the user's cache if this source was compiled for this processor before."""
    source = Path(__file__).with_name(f"{name}.c")
    identity = "\0".join([source.read_text(), compiler, *_FLAGS, *flags, _processor()])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptive-lora"
    library = folder / f"{name}-{key}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        library = Path(tempfile.mkdtemp(prefix="adaptive-lora-")) / library.name
    temporary = library.with_name(f".{os.getpid()}-{library.name}")
    command = [compiler, *_FLAGS, *flags, "-o", str(temporary), str(source), "-lm"]
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
