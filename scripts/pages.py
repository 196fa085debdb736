"""Makes the report page of every committed study: what `make pages` and CI do.

    python scripts/pages.py [--out runs/pages] [FOLDER ...]

Each study gets a folder with its page, figures and tables, and `index.html` lists them. Needs no torch, so that what is
committed can be read on any machine. Prints how long each took.
"""

from __future__ import annotations

import argparse
import html
import time
from pathlib import Path

from adaptive_lora.files import write_atomically
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.study.folder import StudyPaths

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="exports; default: all in results/")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "pages")
    asked = parser.parse_args()
    folders = asked.folders or [f for f in sorted((ROOT / "results").iterdir()) if StudyPaths(f).is_export]
    entries = []
    for folder in folders:
        began = time.perf_counter()
        with open_findings(folder) as found:
            page = write_report(found, asked.out / folder.name)
        print(
            f"{folder.name:24s} {page.stat().st_size / 1e6:5.1f} MB  {time.perf_counter() - began:5.1f} s", flush=True
        )
        entries.append(f'<li><a href="{html.escape(folder.name)}/report.html">{html.escape(folder.name)}</a></li>')
    title = "Committed studies"
    write_atomically(
        asked.out / "index.html",
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        f"<ul>{''.join(entries)}</ul></html>\n",
    )
    print(asked.out / "index.html")


if __name__ == "__main__":
    main()
