"""The tools that adapters are exported for, in a folder beside this environment's packages: what `make interop` uses.

    python scripts/interop.py                            installs them, where that has not been done
    python scripts/interop.py -m pytest tests/export     and runs this in an interpreter that sees them

`bench/interop.txt` pins them with all that they need and the environment does not have, so that neither torch nor
transformers is installed twice. They stay outside of the checkout, in ~/.cache/adaptive-lora/interop-DIGEST (or
$XDG_CACHE_HOME), where DIGEST names that list, the converter, and the version of Python; about a gigabyte, safe to
delete. llama.cpp's converter is taken from the source package of llama-cpp-python, of which nothing is compiled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINNED = ROOT / "bench" / "interop.txt"
CONVERTER = "llama-cpp-python==0.3.36"
INSIDE = ("convert_", "conversion/", "gguf-py/")
"""What of llama.cpp's folder the converter is."""
VARIABLE = "ADAPTIVE_LORA_INTEROP"
"""Set for what is run: the tests then take a tool that is missing for a failure."""


def folder() -> Path:
    """Where the tools are, or will be."""
    named = [PINNED.read_text(encoding="utf-8"), CONVERTER, sysconfig.get_python_version(), sysconfig.get_platform()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "adaptive-lora" / f"interop-{hashlib.sha256(chr(10).join(named).encode()).hexdigest()[:12]}"


def environment(at: Path) -> dict[str, str]:
    """This process's, with the tools before all other packages."""
    paths = [str(at / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "LLAMA_CPP": str(at / "llama.cpp"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, VARIABLE: "1"}


def install(at: Path) -> None:
    """Installs all into a folder beside `at`, which becomes `at` when it is whole: a killed install leaves no half."""
    at.parent.mkdir(parents=True, exist_ok=True)
    for left in at.parent.glob(f"{at.name}.*"):
        if time.time() - left.stat().st_mtime > 3600:  # of an install that was killed
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{at.name}.", dir=at.parent, ignore_cleanup_errors=True) as place:
        made = Path(place) / "made"
        _packages(made / "packages")
        _converter(made / "llama.cpp", Path(place))
        try:
            made.rename(at)
        except OSError:
            if not at.is_dir():  # else another process was first
                raise


def _packages(to: Path) -> None:
    print(f"installing the tools of {PINNED.relative_to(ROOT)} for {to.parents[2]}: about a minute", file=sys.stderr)
    _pip("install", "--no-deps", "--no-compile", "--target", str(to), "--requirement", str(PINNED))


def _converter(to: Path, place: Path) -> None:
    print(f"fetching llama.cpp's converter of {CONVERTER}: a quarter of a minute", file=sys.stderr)
    _pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(place), CONVERTER)
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        for member in source:
            _, found, inside = member.name.partition("/vendor/llama.cpp/")
            if found and member.isfile() and inside.startswith(INSIDE):
                source.extract(member, place / "source", filter="data")
    (folder,) = (place / "source").glob("*/vendor/llama.cpp")
    (folder / "SOURCE").write_text(CONVERTER + "\n", encoding="utf-8")
    folder.rename(to)


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]], check=True)


def main() -> int:
    at = folder()
    try:
        if not at.is_dir():
            install(at)
    except subprocess.CalledProcessError as error:
        print(f"The tools could not be installed: pip ended with {error.returncode}.", file=sys.stderr)
        return 1
    if len(sys.argv) == 1:
        print(at)
        return 0
    return subprocess.run([sys.executable, *sys.argv[1:]], env=environment(at), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
