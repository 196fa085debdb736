"""PDF from LaTeX, where latexmk or tectonic is found, and what its log says is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WIDEST_PT = 2.0
"""Boxes may stick out so far before they count."""
PATIENCE_SECONDS = 300
_PARANOID = {"openin_any": "p", "openout_any": "p"}
"""TeX reads and writes nothing above its folder, whatever stands in a manuscript."""


@dataclass(frozen=True)
class Compiled:
    """What came of compiling."""

    pdf: bytes | None
    complaints: tuple[str, ...]
    """Errors, undefined references, boxes too wide; or why nothing was compiled."""


def compile_pdf(files: Mapping[str, bytes]) -> Compiled:
    """Compiles `main.tex` among `files` in a folder of its own, without any shell escape."""
    command = _command()
    if command is None:
        return Compiled(None, ("neither latexmk nor tectonic is on the path; main.tex is as it should be compiled",))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        try:
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, **_PARANOID}, capture_output=True, timeout=PATIENCE_SECONDS,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Compiled(None, (f"{command[0]} took more than {PATIENCE_SECONDS} s",))
        log, pdf = folder / "main.log", folder / "main.pdf"
        told = log.read_bytes() if log.exists() else done.stderr
        complaints = complaints_of(told.decode(errors="replace"))
        if done.returncode and not complaints:
            complaints = [f"{command[0]} ended with {done.returncode}"]
        return Compiled(pdf.read_bytes() if pdf.exists() and not done.returncode else None, tuple(complaints))


def _command() -> list[str] | None:
    if shutil.which("latexmk") and shutil.which("pdflatex"):
        return ["latexmk", "-pdf", "-bibtex-", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error",
                "main.tex"]  # fmt: skip
    return ["tectonic", "--untrusted", "--keep-logs", "main.tex"] if shutil.which("tectonic") else None


def complaints_of(log: str) -> list[str]:
    """What a log says is wrong with the document.

    >>> complaints_of("Overfull \\\\hbox (1.0pt too wide) x\\nOverfull \\\\hbox (3.5pt too wide) at line 4")
    ['a box is 3.5 pt too wide: at line 4']
    """
    flat = re.sub(r"(?<=.{79})\n(?!\n)", "", log)
    found = [f"error: {text.strip()}" for text in re.findall(r"^! (.*)$", flat, re.M)]
    warnings = r"(?:LaTeX|Package natbib) Warning: ((?:Reference|Citation|Label) .*? (?:undefined|multiply defined))"
    found += re.findall(warnings, flat)
    boxes = re.findall(r"Overfull \\[hv]box \(([\d.]+)pt too (?:wide|high)\) ?(.*)", flat)
    found += [f"a box is {width} pt too wide: {place}" for width, place in boxes if float(width) > WIDEST_PT]
    return list(dict.fromkeys(found))
