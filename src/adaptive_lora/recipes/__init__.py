"""Study files that come with the package; `adaptive-lora init NAME` copies one."""

from __future__ import annotations

import re
from pathlib import Path

from adaptive_lora.errors import StudyFileError, UsageError, nearest_hint
from adaptive_lora.files import write_atomically

_FOLDER = Path(__file__).parent


def list_recipes() -> dict[str, str]:
    """Name -> the question it asks (the first comment line of the file)."""
    return {path.stem: path.read_text().splitlines()[0].lstrip("# ") for path in sorted(_FOLDER.glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The file of a recipe; UsageError with the nearest name where there is none."""
    path = _FOLDER / f"{name}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or not path.is_file():
        known = list_recipes()
        raise UsageError(f"There is no recipe {name!r}{nearest_hint(name, known)}. There are: {', '.join(known)}.")
    return path


def write_recipe(name: str, to: Path) -> list[Path]:
    """Copies a recipe, and the rank files that it names, beside each other; nothing is overwritten."""
    text = recipe(name).read_text()
    ranks = [Path(found) for found in re.findall(r"ranks: ([\w./-]+\.json)", text)]
    files = {to: text, **{to.parent / path: (_FOLDER / path).read_text() for path in ranks}}
    if existing := [path for path in files if path.exists()]:
        raise StudyFileError(str(existing[0]), ["the file exists already; name another with --out, or remove it"])
    for path, content in files.items():
        write_atomically(path, content, named=path == to)
    return list(files)
