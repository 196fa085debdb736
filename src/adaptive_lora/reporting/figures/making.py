"""Writes all figures of a study, the many of a large one in two processes.

Matplotlib draws on one core. A helper, `python -m adaptive_lora.reporting.figures.making FOLDER`, takes figures from
the last on while this process takes them from the first on, until they meet; it reads what it needs from FOLDER, and
each figure is claimed by a file that only one of the two can make. Who drew a figure does not show in its bytes,
and what a helper leaves undone is drawn here.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adaptive_lora.reporting.figures.all import Wanted, wanted_figures
from adaptive_lora.reporting.figures.theme import save, settle
from adaptive_lora.reporting.findings import Findings

_MANY = 100
"""Figures times arms from which on a helper is worth its start."""
_LARGE = 4_000
"""Runs from which on memory is dearer than time: a helper holds the results a second time, figures stay for long."""
_PARTS = 50_000
"""New objects after which Python looks for garbage; fewer cost time, more cost memory."""
_TASK, _DRAWN, _EMPTY = "task", "drawn", "empty"


@contextlib.contextmanager
def drawing(found: Findings, folder: Path) -> Iterator[Callable[[], list[Wanted]]]:
    """Writes PDF, SVG and PNG of every figure that there are results for; the call it gives ends that and says which.

    A helper draws from the beginning where figures are many, runs not too many, and there is a second core.
    """
    wanted, large = wanted_figures(found), len(found.runs) >= _LARGE
    if len(wanted) * found.runs["arm"].nunique() < _MANY or large or _cores() < 2:
        with _collecting_seldom(10_000 if large else _PARTS):
            yield lambda: [w for w in wanted if _write(w, folder, large)]
        return
    with _collecting_seldom(), tempfile.TemporaryDirectory() as name, _helper(found, folder, Path(name)) as helper:

        def finish() -> list[Wanted]:
            drawn = {place: _write(wanted[place], folder) for place in _claimed(range(len(wanted)), Path(name))}
            answers = [line.split() for line in helper.communicate()[0].splitlines()]
            drawn |= {int(place): answer == _DRAWN for place, answer in answers}
            return [w for place, w in enumerate(wanted) if (drawn[place] if place in drawn else _write(w, folder))]

        yield finish


@contextlib.contextmanager
def _helper(found: Findings, folder: Path, claims: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that draws; it does not outlive what it was begun for."""
    (claims / _TASK).write_bytes(pickle.dumps((found, folder)))
    command, silent = [sys.executable, "-m", __name__, str(claims)], subprocess.DEVNULL
    with subprocess.Popen(command, stdin=silent, stdout=subprocess.PIPE, stderr=silent, text=True) as helper:
        try:
            yield helper
        finally:
            helper.kill()


def _help(claims: Path) -> None:
    """Draws from the last figure on, and prints each one's place and whether there was something to draw."""
    found, folder = pickle.loads((claims / _TASK).read_bytes())
    wanted = wanted_figures(found)
    with _collecting_seldom():
        for place in _claimed(reversed(range(len(wanted))), claims):
            print(place, _DRAWN if _write(wanted[place], folder) else _EMPTY, flush=True)


def _claimed(places: Sequence[int] | Iterator[int], claims: Path) -> Iterator[int]:
    """Those places, one at a time, that the other process has not claimed before."""
    for place in places:
        try:
            (claims / str(place)).touch(exist_ok=False)
        except FileExistsError:
            return
        yield place


def _write(wanted: Wanted, folder: Path, sparing: bool = False) -> bool:
    figure = wanted.draw()
    if figure is None:
        return False
    settle(figure)
    save(figure, folder / "figures" / wanted.name)
    if sparing:
        figure.clear()  # its parts refer to one another and would stay for long
    return True


@contextlib.contextmanager
def _collecting_seldom(parts: int = _PARTS) -> Iterator[None]:
    """While figures are made of many small parts, which Python would else look through for garbage over and over."""
    before = gc.get_threshold()
    gc.set_threshold(parts, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    _help(Path(sys.argv[1]))
