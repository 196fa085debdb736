"""What can go wrong, as one tree; every message says what was asked, what arrived and what to do.

AdaptiveLoraError
├── UsageError           the user's input cannot be used (exit code 2)
│   ├── StudyFileError     a study file, with everything that is wrong with it
│   ├── DataError          a data set: missing, corrupt, of unknown form, too small
│   ├── ModelError         a model: missing, unsafe, nothing to adapt
│   ├── BudgetError        a budget that no plan can meet
│   ├── StrategyError      an unknown strategy or option
│   ├── PlanError          a plan file that is corrupt or does not fit the model
│   ├── StudyFolderError   a folder that is in use, missing, or another study's
│   │   └── LedgerDamaged    a ledger that is not what was written
│   └── PaperError         a paper that cannot be written or submitted: a fact is missing, or a rule is broken
├── TrainingError        a run that failed while it trained (exit code 1)
├── FolderLostError      a study folder that was removed, moved or replaced while its study ran (exit code 1)
├── ScoringError         a command of the study's own that gave an adapter no score (exit code 1)
├── ExportError          a file that was written and is not what was asked for (exit code 1)
└── HubError             the hub refused something, or could not be reached (exit code 1)
"""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Iterable

from adaptive_lora.redaction import redacted

_LONGEST_LINE, _MOST_LINES = 1500, 100


class AdaptiveLoraError(Exception):
    """Anything this package raises on purpose.

    Messages quote what arrived, which may come from anyone: they are `printable`.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(each) if isinstance(each, str) else each for each in arguments))


class UsageError(AdaptiveLoraError, ValueError):
    """The input cannot be used; the message says what would do."""


class StudyFileError(UsageError):
    """A study file with one or more complaints.

    `complaints` holds one line each, already with line number, key and remedy.
    """

    def __init__(self, path: str, complaints: Iterable[str]) -> None:
        self.path = path
        self.complaints = tuple(complaints)
        count = len(self.complaints)
        heading = f"{path}: {count} error{'s' if count != 1 else ''}"
        super().__init__("\n".join([heading, *(f"  - {line}" for line in self.complaints)]))

    def __reduce__(self) -> tuple[type[StudyFileError], tuple[str, tuple[str, ...]]]:
        return type(self), (self.path, self.complaints)


class DataError(UsageError):
    """A data set that is missing, corrupt, of unknown form, or too small."""


class ModelError(UsageError):
    """A model that is missing, unsafe to load, or has nothing to adapt."""


class BudgetError(UsageError):
    """A budget of trainable parameters that no plan can meet."""


class StrategyError(UsageError):
    """A strategy or one of its options that does not exist."""


class PlanError(UsageError):
    """A plan that cannot be read or does not fit the model."""


class AdapterError(UsageError):
    """An adapter folder that cannot be read, or does not fit its base model; `complaints` holds one line each."""

    def __init__(self, path: str, complaints: Iterable[str]) -> None:
        self.path = path
        self.complaints = tuple(complaints)
        count = len(self.complaints)
        if count == 1:
            super().__init__(f"{path}: {self.complaints[0]}")
        else:
            super().__init__("\n".join([f"{path}: {count} errors", *(f"  - {line}" for line in self.complaints)]))

    def __reduce__(self) -> tuple[type[AdapterError], tuple[str, tuple[str, ...]]]:
        return type(self), (self.path, self.complaints)


class StudyFolderError(UsageError):
    """A study folder that is missing, in use, or belongs to another study."""


class LedgerDamaged(StudyFolderError):
    """A ledger that is not what was written; `what` names the run or the table."""

    def __init__(self, path: str, what: str) -> None:
        self.path, self.what = path, what
        super().__init__(
            f"{path} is damaged: {what}. `adaptive-lora recover {os.path.dirname(path) or '.'}` writes a new ledger of "
            "what is sound and keeps the damaged one; `run` then trains what is missing."
        )

    def __reduce__(self) -> tuple[type[LedgerDamaged], tuple[str, str]]:
        return type(self), (self.path, self.what)


class PaperError(UsageError):
    """A paper that cannot be written or submitted: a fact is missing, or a rule is broken."""


class TrainingError(AdaptiveLoraError, RuntimeError):
    """A run that failed while it trained."""


class FolderLostError(AdaptiveLoraError, RuntimeError):
    """A study folder that was removed, moved or replaced while its study ran."""


class ScoringError(AdaptiveLoraError, RuntimeError):
    """A command of the study's own that gave an adapter no score."""


class ExportError(AdaptiveLoraError, RuntimeError):
    """A file that was written and is not what was asked for, or that a converter did not write."""


class HubError(AdaptiveLoraError, RuntimeError):
    """The Hugging Face hub refused something, or could not be reached; the message has no token in it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: a scheduler wants the machine back, or the terminal is gone. What was under way is saved,
    as after Ctrl-C.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(signum)
        self.signum = signal.Signals(signum)


def printable(text: str) -> str:
    """A message without characters that drive a terminal or hide others, without a token of the Hugging Face hub, and
    not for longer than someone reads.

    >>> printable("a\\x1b[31m\\u202e"), printable("hf_abcdefghijklmnopqrstuvwxyz is refused")
    ('a\\\\x1b[31m\\\\u202e', 'hf_[redacted] is refused')
    """
    lines = redacted(text).split("\n")
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"  ... and {len(lines) - _MOST_LINES:,} more lines"]
    return "\n".join(map(_printable_line, lines))


def _printable_line(line: str) -> str:
    short = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ... ({len(line):,} characters)"
    return short if short.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known word nearest to `word`; empty where none is near.

    >>> nearest_hint("unifrom", ["uniform", "random"])
    " (did you mean 'uniform'?)"
    """
    near = difflib.get_close_matches(word, [name for name in known if name != word], n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
