"""Signals that stop a study: the first asks for a checkpoint, the second quits."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from adaptive_lora.errors import Terminated
from adaptive_lora.study.progress import Sturdy

_ONE_REQUEST = 0.5
"""Seconds within which a second signal is the same request: `timeout` signals its child and then the whole group."""
_WORTH_SAYING = 2.0
"""Seconds of an update from which on it is said how long the checkpoint will wait for it."""


def handled_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM and, where the system has it and nobody asked to ignore it (`nohup`), SIGHUP."""
    hangup = getattr(signal, "SIGHUP", None)
    heard = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hangup] if heard and hangup is not None else [])]


@contextlib.contextmanager
def interruptible(listener: Sturdy) -> Iterator[Callable[[], bool]]:
    """A question "stop now?" that the first SIGINT (Ctrl-C), SIGTERM or SIGHUP answers with yes.

    The second does what it did before: SIGTERM and SIGHUP end the process, SIGINT raises KeyboardInterrupt. Raises
    Terminated instead of KeyboardInterrupt where the first was not SIGINT. In other threads than the main one, where
    Python allows no handlers, the answer is always no.
    """
    asked: list[tuple[int, float]] = []
    before: dict[signal.Signals, Any] = {}

    def ask(signum: int, frame: Any) -> None:
        if not asked:
            asked.append((signum, time.monotonic()))
            listener.stage(_answer(signal.Signals(signum), listener.update_seconds))
        elif time.monotonic() - asked[0][1] > _ONE_REQUEST:
            signal.signal(signum, before[signal.Signals(signum)] or signal.SIG_DFL)
            signal.raise_signal(signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before.update({number: signal.signal(number, ask) for number in handled_signals()})
    try:
        yield lambda: bool(asked)
    except KeyboardInterrupt as error:
        if asked and asked[0][0] != signal.SIGINT:
            raise Terminated(asked[0][0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's


def _answer(number: signal.Signals, update_seconds: float | None) -> str:
    """What is said to a first signal.

    >>> _answer(signal.SIGTERM, 12.34)
    'SIGTERM: saving a checkpoint after this update (the last took 12.3 s); a second signal quits now'
    """
    waits = update_seconds is not None and update_seconds >= _WORTH_SAYING
    when = f" after this update (the last took {update_seconds:.1f} s)" if waits else ""
    if number == signal.SIGINT:
        return f"saving a checkpoint{when}; press Ctrl-C again to quit now"
    return f"{number.name}: saving a checkpoint{when}; a second signal quits now"
