"""The command line in processes that are forked off with torch loaded, watched line by line: for `bench/faults.py`.

A child knows of its parent only what was imported; the study, the model and the data it loads itself. Each line of this
package that it comes to belongs to a phase of a study's life, by its file, so that it can be killed, stopped or robbed
of something at a moment that is drawn by chance and the same every time.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import adaptive_lora

SOURCE = f"{Path(adaptive_lora.__file__).parent}{os.sep}"
PHASES = ("start", "loading", "planning", "training", "checkpoint", "ledger", "evaluation", "export", "report")
"""`start` is what comes before anything else; what belongs to no other phase belongs to the one before it."""
_FILES = {
    "models/": "loading", "data/": "loading", "study/prepare.py": "loading", "training/base.py": "loading",
    "measures/": "planning", "study/planning_phase.py": "planning", "study/plan_task.py": "planning",
    "planning/strategies/": "planning",
    "study/engines/bank_training.py": "training", "training/bank.py": "training", "training/slots.py": "training",
    "training/optimizer.py": "training", "training/batches.py": "training",
    "training/checkpoint.py": "checkpoint", "study/engines/resume.py": "checkpoint",
    "study/ledger.py": "ledger", "study/plan_store.py": "ledger",
    "training/evaluate.py": "evaluation", "study/engines/finish.py": "evaluation", "training/adapter.py": "evaluation",
}  # fmt: skip
_EVALUATE = {"evaluate", "_evaluate", "evaluate_some", "fill"}
"""Functions of the bank that evaluate."""
_THROUGH = ("files.py",)
"""Works for whoever calls it: its lines count for the phase before, an atomic write in the middle among them."""
_ASKED_ALWAYS = {"check_place"}
"""After every update: no work of the ledger."""
_VERBS = {"results": "export", "report": "report"}
NOWHERE = ("nowhere", 0)
Act = Callable[[], None]


def preload() -> None:
    """Imports what the verbs import, so that a child has it; starts no thread."""
    for name in (
        "torch", "transformers", "peft", "matplotlib.figure", "pandas", "adaptive_lora.cli.main",
        "adaptive_lora.study.runner", "adaptive_lora.reporting.html.build", "adaptive_lora.publishing.exports",
        "adaptive_lora.recovery.recovering", "adaptive_lora.cli.progress", "transformers.models.llama.modeling_llama",
    ):  # fmt: skip
        importlib.import_module(name)


class Watch:
    """Follows a child through the phases; does something at the n-th line of one. Made before the fork.

    Without `at` it counts the lines of all; `NOWHERE` only follows which one the child is in, which costs little.
    """

    def __init__(self, verb: str, at: tuple[str, int] | None = None, do: Act | None = None) -> None:
        self._verb, self._at, self._do = _VERBS.get(verb), at, do
        self._known: dict[tuple[str, str], str | None] = {}
        self._counts, self._now = dict.fromkeys(PHASES, 0), "start"
        self._shared = mmap.mmap(-1, 1 + 8 * len(PHASES))  # both processes see it

    @property
    def phase(self) -> str:
        """The last one that the child came to."""
        return PHASES[self._shared[0]]

    @property
    def counts(self) -> dict[str, int]:
        """Lines by phase, of a child that came to its end."""
        at = range(1, len(self._shared), 8)
        return {name: int.from_bytes(self._shared[i : i + 8], "little") for name, i in zip(PHASES, at, strict=True)}

    def begin(self) -> None:
        """From now on, in the child."""
        sys.settrace(self._called)

    def end(self) -> None:
        """Leaves the counts to the parent."""
        sys.settrace(None)
        for number, name in enumerate(PHASES):
            self._shared[1 + 8 * number : 9 + 8 * number] = self._counts[name].to_bytes(8, "little")

    def _called(self, frame: FrameType, event: str, value: Any) -> Any:
        code = frame.f_code
        key = code.co_filename, code.co_name
        if key not in self._known:
            self._known[key] = self._phase_of(*key)
        phase = self._known[key]
        if phase is None:
            return None
        self._enter(phase or self._now)
        # Lines are followed where they are counted for nothing in particular, or where something is to be done at one.
        return self._lines(phase) if self._at is None or (phase or self._now) == self._at[0] else None

    def _phase_of(self, file: str, function: str) -> str | None:
        if not file.startswith(SOURCE) or function in _ASKED_ALWAYS:
            return None
        name = file.removeprefix(SOURCE).replace(os.sep, "/")
        if name in _THROUGH:
            return ""
        if self._verb is not None:
            return self._verb
        if name == "training/bank.py" and function in _EVALUATE:
            return "evaluation"
        return next((phase for own, phase in _FILES.items() if name.startswith(own)), None)

    def _lines(self, phase: str) -> Callable[[FrameType, str, Any], Any]:
        def line(frame: FrameType, event: str, value: Any) -> Any:
            if event == "line":
                self._line(phase or self._now)
            return line

        return line

    def _enter(self, phase: str) -> None:
        if phase != self._now:
            self._now = phase
            self._shared[0] = PHASES.index(phase)

    def _line(self, phase: str) -> None:
        self._enter(phase)
        self._counts[phase] += 1
        if self._do is not None and self._at == (phase, self._counts[phase]):
            self._do()


@dataclass
class Child:
    """A verb in a process of its own, begun at once."""

    arguments: Sequence[object]
    watch: Watch | None = None
    first: Sequence[Act] = ()
    """What is done in the child before the verb begins."""
    pid: int = field(init=False)
    began: float = field(init=False)
    _resident: int = field(init=False)

    def __post_init__(self) -> None:
        self._out, end = os.pipe()
        self._resident = _pages(1)
        sys.stdout.flush()
        sys.stderr.flush()
        self.began, self.pid = time.monotonic(), os.fork()
        if self.pid == 0:
            os.close(self._out)
            self._live(end)
        os.close(end)

    def _live(self, end: int) -> None:
        code = 70
        try:
            for number in (1, 2):
                os.dup2(end, number)
            os.close(end)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` has children ignore
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            code = self._verb()
        except BaseException as error:
            with contextlib.suppress(MemoryError):  # a traceback may need more memory than there is
                os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _verb(self) -> int:
        from adaptive_lora.cli.main import app

        for act in self.first:
            act()
        if self.watch is not None:
            self.watch.begin()
        try:
            app([str(argument) for argument in self.arguments])
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            if self.watch is not None:
                self.watch.end()
        return 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def stopped(self) -> None:
        """Waits until it has stopped itself."""
        if not os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1]):
            raise SystemExit("a process ended before it came to the line where it should have stopped")

    def wait(self) -> Ending:
        """Waits for its end."""
        with os.fdopen(self._out, "rb") as output:
            said = output.read().decode(errors="replace")
        _, status, used = os.wait4(self.pid, 0)
        seconds, grown = time.monotonic() - self.began, max(0, used.ru_maxrss * 1024 - self._resident)
        return Ending(os.waitstatus_to_exitcode(status), said, seconds, used.ru_utime + used.ru_stime, grown)


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    code: int
    said: str
    seconds: float
    cpu: float
    """Seconds of the processor."""
    grown: int
    """Bytes of memory that it took at its most, beyond what was there when it was forked off."""

    def told(self, *words: str) -> dict[str, Any]:
        """Exit code and the line with one of these words in it, else the last."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        found = [line for line in lines if any(word in line for word in words)] or lines[-1:]
        return {"exit": self.code, "said": found[0] if found else ""}


def _pages(column: int) -> int:
    """Bytes of this process: 0 all that is mapped, 1 what is resident."""
    return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()


def die() -> None:
    """As the system's out-of-memory killer does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def raised(number: signal.Signals) -> Act:
    """Sends the process itself a signal."""
    return lambda: os.kill(os.getpid(), number)


def full_disk() -> None:
    """No file can be written any more: SQLite and Python meet EFBIG where they would meet ENOSPC."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def memory_limit(extra: int) -> Act:
    """From here on so many bytes more, and no more: as `ulimit -v` does it."""

    def limit() -> None:
        size = _pages(0) + extra
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    return limit


def obey_modes() -> None:
    """A superuser gives up the right to write where nobody may (Linux)."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def jumping_clock(jumps: Sequence[float]) -> Act:
    """`time.time` jumps by so many seconds, forth and back, at every call; durations are by another clock."""

    def install() -> None:
        real, calls = time.time, iter(range(10**9))
        time.time = lambda: real() + jumps[next(calls) % len(jumps)]

    return install
