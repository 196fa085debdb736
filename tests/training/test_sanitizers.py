"""The C kernels under AddressSanitizer and UndefinedBehaviorSanitizer, against plain loops."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from adaptive_lora.training import kernels

DRIVER = Path(__file__).with_name("kernel_driver.c")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
KERNELS = {
    "attention": ("-DATTENTION",),
    "dropout": ("-DDROPOUT",),
    "lora float": ("-DREAL=float",),
    "lora double": ("-DREAL=double",),
    "pointwise": ("-DPOINTWISE",),
    "split_product": ("-DSPLIT",),
}
REGISTERS = {
    "native": (),
    "SSE": ("-DBYTES=16", "-DMANY_REGISTERS=0"),
    "NEON": ("-DBYTES=16", "-DMANY_REGISTERS=1"),
    "AVX2": ("-DBYTES=32", "-DMANY_REGISTERS=0"),
    "AVX-512": ("-DBYTES=64", "-DMANY_REGISTERS=1"),
}
"""What `vectors.h` cuts tiles to; the compiler makes of each what this processor has."""
WHOLE = ("dropout", "split_product")
"""Kernels that know nothing of `vectors.h`."""
CASES = [(kernel, cut) for kernel in KERNELS for cut in REGISTERS if cut == "native" or kernel not in WHOLE]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiler whose sanitizers work."""
    found = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    command = [found, *SANITIZERS, "-o", str(folder / "empty"), str(folder / "empty.c")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode or subprocess.run([folder / "empty"], check=False).returncode:
        pytest.skip(f"the compiler has no sanitizers here: {built.stderr.strip()[-200:]}")
    return found


def run(compiler: str, source: Path, flags: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """Compiles the driver with a kernel and runs it; leaks count."""
    program = folder / "driver"
    options = ("-O0", "-g", "-march=native", "-w", *SANITIZERS, f'-DKERNEL="{source}"')
    subprocess.run([compiler, *options, *flags, "-o", str(program), str(DRIVER), "-lm"], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(("kernel", "registers"), CASES)
def test_a_kernel_stays_in_its_arrays_and_computes_what_it_should(
    compiler: str, kernel: str, registers: str, tmp_path: Path
) -> None:
    flags = (*KERNELS[kernel], *REGISTERS[registers])
    done = run(compiler, kernels._SOURCES / f"{kernel.split()[0]}.c", flags, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_access_out_of_bounds_is_detected(compiler: str, tmp_path: Path) -> None:
    text, old = (kernels._SOURCES / "attention.c").read_text(), "d < width; d++) out[d]"
    assert old in text
    for header in kernels._SOURCES.glob("*.h"):
        (tmp_path / header.name).write_text(header.read_text())
    (tmp_path / "attention.c").write_text(text.replace(old, "d <= width; d++) out[d]"))
    done = run(compiler, tmp_path / "attention.c", KERNELS["attention"], tmp_path)
    assert done.returncode and "AddressSanitizer: heap-buffer-overflow" in done.stderr
