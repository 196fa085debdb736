"""What verbs of both wings tell at their end: where a study stands, its report, its memory bank."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_lora.cli.app import err, out, print_json, working
from adaptive_lora.errors import UsageError
from adaptive_lora.study.folder import is_in_use

if TYPE_CHECKING:
    from adaptive_lora.reporting.findings import Findings


def tell_status(folder: Path, as_json: bool = False) -> None:
    """Counts of a study's runs, and what went wrong."""
    from adaptive_lora.cli.terminal import status_view
    from adaptive_lora.study.status import study_status

    found = study_status(folder)
    if as_json:
        print_json(found.to_json())
    else:
        out.print(status_view(found))


def tell_report(folder: Path, as_json: bool = False) -> None:
    """Makes the report, and shows its arms."""
    from adaptive_lora.cli.terminal import arms_table
    from adaptive_lora.reporting.findings import read_findings
    from adaptive_lora.reporting.html.build import write_report
    from adaptive_lora.study.ledger import open_to_read

    with contextlib.closing(open_to_read(folder)) as ledger:
        found = read_findings(ledger)
        with working("drawing figures"):
            path = write_report(found, folder)
        remember(folder, found)
    if as_json:
        places = {"report": str(path), "figures": str(folder / "figures"), "tables": str(folder / "tables")}
        print_json({**places, "arms": [asdict(arm) for arm in found.arms]})
        return
    out.print(arms_table(found.arms, found.baseline))
    out.print(f"report: {path}", markup=False, soft_wrap=True)


def remember(folder: Path, found: Findings | None = None) -> None:
    """Brings the memory bank up to date; what keeps it from that is a warning beside work that is done."""
    from adaptive_lora.reporting.findings import read_findings
    from adaptive_lora.reporting.memory.memory_bank import memory_texts, write_memory_bank
    from adaptive_lora.study.ledger import open_to_read

    try:
        with contextlib.closing(open_to_read(folder)) as ledger:
            write_memory_bank(memory_texts(found or read_findings(ledger), is_in_use(folder)), folder)
    except (UsageError, OSError) as error:
        err.print(f"warning: the memory bank is not up to date: {error}", markup=False, soft_wrap=True)
