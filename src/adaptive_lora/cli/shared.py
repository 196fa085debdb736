"""What verbs of both wings tell at their end: where a study stands, its report, its memory bank."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.cli.app import err, out, print_json, working
from adaptive_lora.errors import UsageError
from adaptive_lora.study.folder import StudyPaths, is_in_use

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


def tell_report(folder: Path, as_json: bool = False, to: Path | None = None) -> None:
    """Makes the report, in the study folder itself or in another, and shows its arms."""
    from adaptive_lora.cli.terminal import arms_table
    from adaptive_lora.reporting.exported import open_findings
    from adaptive_lora.reporting.html.build import write_report

    with open_findings(folder) as found:
        if to is None and StudyPaths(folder).is_export:
            raise UsageError(
                f"{folder} is an export, which stays as it is: name a folder for its page, as in `adaptive-lora report "
                f"{folder} --out runs/pages/{folder.resolve().name}`."
            )
        with working("drawing figures"):
            path = write_report(found, to or folder)
        if to is None:
            remember(folder, found)
    if as_json:
        places = {"report": str(path), **{name: str(path.parent / name) for name in ("figures", "tables")}}
        print_json({**places, "arms": [asdict(arm) for arm in found.arms]})
        return
    out.print(arms_table(found.arms, found.baseline, found.judged, found.metric))
    out.print(f"report: {path}", markup=False, soft_wrap=True)


def remember(folder: Path, found: Findings | None = None) -> None:
    """Brings a study folder's memory bank up to date; what keeps it from that is a warning beside work that is done."""
    from adaptive_lora.reporting.exported import open_findings
    from adaptive_lora.reporting.memory.memory_bank import memory_texts, write_memory_bank

    try:
        with contextlib.nullcontext(found) if found else open_findings(folder) as own:
            write_memory_bank(memory_texts(own, is_in_use(folder)), folder)
    except (UsageError, OSError) as error:
        with contextlib.suppress(OSError):  # a terminal that hung up
            err.print(f"warning: the memory bank is not up to date: {error}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def ctrl_c_quits() -> Iterator[None]:
    """Ctrl-C ends the process at once with code 130, wherever no one saves a checkpoint first.

    Unwinding would wait for passes that other threads compute. Nothing is lost that a kill would not lose.
    """

    def quit_now(signum: int, frame: Any) -> None:
        with contextlib.suppress(OSError):
            err.show_cursor(True)
            err.print("interrupted; run the same command again to continue")
        os._exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, quit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
