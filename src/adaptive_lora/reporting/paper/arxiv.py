"""The archive that arXiv takes, and its rules (arXiv's help pages, as of July 2026)."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Mapping

from adaptive_lora.reporting.paper.manuscript import People

MOST_BYTES = 50 * 2**20
_NAME = re.compile(r"[A-Za-z0-9_+\-.,=]+")
_AUXILIARY = (".aux", ".log", ".out", ".toc", ".blg", ".fls", ".fdb_latexmk", ".synctex.gz", ".bak", "~")
_PICTURES = (".pdf", ".png", ".jpg", ".jpeg")
README = "00README.json"


def upload_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files to send, of all that make the paper: text, references, figures as PDF, and how to compile them."""
    told = {
        "spec_version": 1,
        "process": {"compiler": "pdflatex"},
        "sources": [{"filename": "main.tex", "usage": "toplevel"}],
        "texlive_version": 2025,
    }
    kept = {name: content for name, content in files.items() if re.fullmatch(r"main\.(tex|bbl)|figures/.*\.pdf", name)}
    return {README: json.dumps(told, indent=2).encode() + b"\n", **kept}


def broken_rules(files: Mapping[str, bytes], people: People) -> list[str]:
    """What arXiv would not take, or would take wrongly, in plain words; nothing where all is well."""
    found = [told for name in files for told in _of_name(name)]
    tex = files.get("main.tex", b"").decode("utf-8", errors="replace")
    if not tex:
        return [*found, "there is no main.tex", *_of_people(people)]
    size = sum(map(len, files.values()))
    broken = {
        "main.bbl, the list of references under the main file's name, is missing": "main.bbl" not in files,
        "main.tex has \\today, which would change with every compilation": re.search(r"\\today\b", tex),
        "main.tex has no \\date, so that LaTeX prints today's": not re.search(r"\\date\{", tex),
        f"{size:,} bytes are more than the {MOST_BYTES:,} that arXiv takes": size > MOST_BYTES,
    }
    found += [rule for rule, is_broken in broken.items() if is_broken]
    shown = set(re.findall(r"\\includegraphics(?:\[[^\]]*\])?\{([^}]*)\}", tex))
    there = {name for name in files if name.endswith(_PICTURES)}
    found += [f"{name} is shown and not there" for name in sorted(shown - set(files))]
    found += [f"{name} is there and not shown" for name in sorted(there - shown)]
    found += [f"{name} is no PDF, PNG or JPEG" for name in sorted(shown & set(files) - there)]
    return found + _of_people(people)


def _of_name(name: str) -> list[str]:
    parts = name.split("/")
    broken = {
        f"{name} is hidden; arXiv deletes such files": any(part.startswith(".") for part in parts),
        f"{name!r} has characters other than a-z A-Z 0-9 _ + - . , =": not all(map(_NAME.fullmatch, parts)),
        f"{name} is an auxiliary file": name.endswith(_AUXILIARY),
    }
    return [rule for rule, is_broken in broken.items() if is_broken]


def _of_people(people: People) -> list[str]:
    found = [] if people.authors else ["the authors are missing: name them, complete and in order, in authors.txt"]
    names = [author.name for author in people.authors]
    titled = re.compile(r"(?i)(dr|prof|professor|mr|mrs|ms|sir)\b\.?\s")
    nobody = re.compile(r"(?i)\b(anonymous|et al|tbd|todo)\b")
    found += [f"{name}: arXiv takes names without titles" for name in names if titled.match(name)]
    found += [f"{name} is no name of an author" for name in names if nobody.search(name)]
    if not people.tools:
        found.append("authors.txt does not say which generative tools were used (`tools: ...`)")
    return found


def archive(files: Mapping[str, bytes]) -> bytes:
    """A .tar.gz with the same bytes for the same files."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    return gzip.compress(plain.getvalue(), mtime=0)
