"""C kernels for the CPU: compiled on first use where there is a C compiler, and cached."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from adaptive_lora.training.kernel_cache import load_or_compile

TILED = "tiled products"
"""What a ledger calls frozen products of float32 on bfloat16 tiles."""
_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_BOTH = ("forward", "backward")
_FUNCTIONS = {
    "attention": _BOTH,
    "dropout": ("positions",),
    "lora": (*_BOTH, "product"),
    "split_product": ("available", "multiply"),
    "pointwise": ("costs", *(f"{what}_{way}" for what in ("norm", "gate", "gelu", "rotate") for way in _BOTH)),
}
_REALS = {torch.float32: "float", torch.float64: "double"}


def _fields(pointers: str = "", sizes: str = "") -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in pointers.split()] + [(name, ctypes.c_int64) for name in sizes.split()]


class AttentionArgs(ctypes.Structure):
    """`attention_args` of attention.c."""

    _fields_ = [
        *_fields("q k v", "q_stride k_stride v_stride tokens heads groups width sequences"),
        *_fields("starts"),
        ("scaling", ctypes.c_float),
        *_fields("out scales grad_out grad_q grad_k grad_v"),
    ]


class DropoutArgs(ctypes.Structure):
    """`dropout_args` of dropout.c."""

    _fields_ = [
        *_fields("exponentials", "count"),
        ("scale", ctypes.c_double),
        *_fields("ends", "modules"),
        *_fields("positions cuts", "module last found"),
    ]


class LoraSegment(ctypes.Structure):
    """`segment` of lora.c."""

    _fields_ = [
        *_fields(sizes="begin end rank"),
        *_fields("a b a_gradient b_gradient dropped", "drops"),
        ("scaling", ctypes.c_double),
    ]


class LoraArgs(ctypes.Structure):
    """`lora_args` of lora.c."""

    MIN_WIDTH: ClassVar = 16
    """Fewest inputs or outputs of a layer that lora.c supports: one vector register."""
    _fields_ = [*_fields(sizes="d_in d_out segments"), *_fields("segment x y u grad_x")]


class CostArgs(ctypes.Structure):
    """`cost_args` of pointwise.c."""

    _fields_ = [*_fields(sizes="rows width"), *_fields("x targets weights nll likeliest out")]


class PointwiseArgs(ctypes.Structure):
    """`pointwise_args` of pointwise.c."""

    _fields_ = [
        *_fields(sizes="rows width heads stride"),
        *_fields("x weight grad other out"),
        ("epsilon", ctypes.c_double),
    ]


class SplitArgs(ctypes.Structure):
    """`split_args` of split_product.c."""

    _fields_ = _fields(sizes="rows d_in d_out w_row w_column") + _fields("x w y workspace", "bytes")


@dataclass(frozen=True)
class _Kernel:
    """A loaded library, or the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str = ""
    place: str = ""
    """Why it is not kept in the user's cache."""


def attention_kernel() -> ctypes.CDLL | None:
    """The library with `attention_forward` and `attention_backward`; None where it cannot be compiled.

    ADAPTIVE_LORA_KERNEL=off disables all kernels.
    """
    return _loaded("attention", AttentionArgs).library


def dropout_kernel() -> ctypes.CDLL | None:
    """The library with `dropout_positions`; None where it cannot be compiled."""
    return _loaded("dropout", DropoutArgs).library


def lora_kernel(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The library with `lora_forward`, `lora_backward` and `lora_product` for a dtype; None where there is none."""
    real = _REALS.get(dtype)
    return None if real is None else _loaded("lora", LoraArgs, f"-DREAL={real}").library


def pointwise_kernel() -> ctypes.CDLL | None:
    """The library with `pointwise_norm_forward` and so on: norms, gates and rotations; None where there is none."""
    return _loaded("pointwise", PointwiseArgs).library


@functools.cache
def split_kernel() -> ctypes.CDLL | None:
    """The library with `split_product_multiply`; None where it cannot be compiled or this processor has no tiles."""
    library = _loaded("split_product", SplitArgs).library
    return library if library is not None and library.split_product_available(None) else None


def kernel_status() -> dict[str, str]:
    """By kernel that every processor has, `compiled`, or `torch (REASON)` where torch's own operations stand in."""
    kernels = _kernels().items()
    return {name: "compiled" if kernel.library else f"torch ({kernel.reason})" for name, kernel in kernels}


def kernel_places() -> tuple[str, ...]:
    """Why kernels are not kept in the user's cache, each reason once; none where they are."""
    return tuple(dict.fromkeys(kernel.place for kernel in _kernels().values() if kernel.place))


def _kernels() -> dict[str, _Kernel]:
    return {
        "attention": _loaded("attention", AttentionArgs),
        "lora": _loaded("lora", LoraArgs, "-DREAL=float"),
        "pointwise": _loaded("pointwise", PointwiseArgs),
    }


def forget_kernels() -> None:
    """Makes the next call look for a compiler and the cache again."""
    _loaded.cache_clear()
    split_kernel.cache_clear()


@functools.cache
def _loaded(name: str, arguments: type[ctypes.Structure], *flags: str) -> _Kernel:
    if os.environ.get("ADAPTIVE_LORA_KERNEL") == "off":
        return _Kernel(None, "ADAPTIVE_LORA_KERNEL=off")
    try:
        compiler = _compiler()
        if not compiler or os.name != "posix":
            return _Kernel(None, "no C compiler: install cc, gcc or clang, or set CC")
        library, place = _opened(name, compiler, flags)
    except subprocess.CalledProcessError as error:
        first = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[0]
        return _Kernel(None, f"{shlex.join(compiler)} failed: {first}")
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        return _Kernel(None, f"{type(error).__name__}: {error}")
    for function in _FUNCTIONS[name]:
        found = getattr(library, f"{name}_{function}")
        of_costs = function == "costs"
        found.argtypes, found.restype = [ctypes.POINTER(CostArgs if of_costs else arguments)], ctypes.c_int
    return _Kernel(library, place=place)


def _compiler() -> list[str]:
    """The compiler's command, which may have arguments (CC="ccache gcc") or a path with blanks; empty where there is
    none."""
    if named := os.environ.get("CC"):
        return [named] if Path(named).is_file() else shlex.split(named)
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return [found] if found else []


def _opened(name: str, compiler: list[str], flags: tuple[str, ...]) -> tuple[ctypes.CDLL, str]:
    """The library, if it was compiled for this processor before from where it was kept, and what is odd about that."""

    def compile_to(built: Path) -> None:
        command = [*compiler, *_FLAGS, *flags, "-o", str(built), str(_SOURCES / f"{name}.c"), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)

    return load_or_compile(f"{name}-{_cache_key(name, compiler, flags)}", compile_to)


def _cache_key(name: str, compiler: list[str], flags: tuple[str, ...]) -> str:
    source = [path.read_text() for path in (_SOURCES / f"{name}.c", *sorted(_SOURCES.glob("*.h")))]
    identity = "\0".join([*source, *compiler, *_FLAGS, *flags, _processor()])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        return platform.platform() + platform.processor()
