"""From what the user names on the command line to runs: NAME=PATH, NAME:SEED=PATH or a path alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.columns import SUFFIXES, read_table
from adaptive_lora.foreign.lines import parsed
from adaptive_lora.foreign.lm_eval import is_samples, read_lm_eval
from adaptive_lora.foreign.peft_suite import is_peft_result, read_peft
from adaptive_lora.foreign.scores import Run
from adaptive_lora.foreign.studies import is_study, read_study
from adaptive_lora.study.seeds import check_seed


@dataclass(frozen=True)
class Reading:
    """What the user says of files that do not say it themselves."""

    metric: str | None = None
    """What a table's values are, where no column names it."""
    better: str | None = None
    """`higher` or `lower`, for a metric whose name does not say it."""
    cluster: str | None = None
    """Field of lm-evaluation-harness's documents whose items belong together."""


def read_runs(given: Sequence[str], how: Reading = Reading()) -> list[Run]:
    """Every run of the files and folders; those of one arm are numbered as seeds where nothing numbers them.

    UsageError for what cannot be read, and for two runs of which nothing says that they are one arm's.
    """
    runs = [run for text in given for run in _read(text, how)]
    found: list[Run] = []
    for run in runs:
        same = [other for other in runs if other.arm == run.arm and _overlap(other, run)]
        earlier = [other for other in found if other.arm == run.arm and _overlap(other, run)]
        _check_named(same)
        seed = run.seed if run.seed is not None or len(same) == 1 else len(earlier) + 1
        twin = next((other for other in earlier if other.seed == seed), None)
        if twin is not None:
            raise UsageError(
                f"{twin.source} and {run.source} are both seed {seed} of {run.arm!r}. Say which is which: "
                f"{run.arm}:SEED=PATH, or give one of them another name."
            )
        found.append(replace(run, seed=seed))
    return found


def _overlap(one: Run, other: Run) -> bool:
    """Whether they answer the same question, and so are two runs; the tasks of one run may come in several files."""
    return not set(one.questions).isdisjoint(other.questions)


def _check_named(runs: Sequence[Run]) -> None:
    if len(runs) > 1 and not all(run.named for run in runs):
        files = " and ".join(run.source for run in runs)
        raise UsageError(
            f"{files} are both called {runs[0].arm!r}. Name them, as in NAME={runs[0].source}; "
            "one name for several files makes them seeds of one arm."
        )


def _read(text: str, how: Reading) -> list[Run]:
    name, seed, path = split_source(text)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder. Results are given as PATH, NAME=PATH or NAME:SEED=PATH.")
    runs = _of(path, how)
    arms = list(dict.fromkeys(run.arm for run in runs))
    if name and len(arms) > 1:
        raise UsageError(
            f"{path} holds {len(arms)} arms ({', '.join(arms)}), which have their names; leave out {name!r}."
        )
    if seed is not None and len(runs) > 1:
        raise UsageError(f"{path} holds {len(runs)} runs, which are not all seed {seed}; leave it out.")
    return [run.called(name, seed) for run in runs]


def _of(path: Path, how: Reading) -> list[Run]:
    if path.is_dir() and is_study(path):
        return read_study(path, how.metric)
    if path.is_dir() or is_samples(path):
        return [read_lm_eval(path, how.cluster, how.better, how.metric)]
    if path.suffix == ".json":
        told = parsed(path)
        if is_peft_result(told):
            return [read_peft(path, told, how.better)]
        if "results" in told and "higher_is_better" in told:
            raise UsageError(
                f"{path} has lm-evaluation-harness's means alone, which cannot be paired. Name its folder, with the "
                "samples_*.jsonl that --log_samples writes."
            )
    elif path.suffix in SUFFIXES:
        if how.cluster is not None:
            raise UsageError(
                f"{path}: --cluster is for lm-evaluation-harness's documents; a table has a column `cluster`."
            )
        return read_table(path, how.metric, how.better)
    raise UsageError(
        f"{path} is none of what can be judged: a folder or a samples_*.jsonl of lm-evaluation-harness, a result of "
        f"PEFT's method comparison (.json), or a table ({', '.join(SUFFIXES)})."
    )


def split_source(text: str) -> tuple[str | None, int | None, Path]:
    """(name, seed, path) of PATH, NAME=PATH or NAME:SEED=PATH.

    >>> split_source("rank8:2=out/b")
    ('rank8', 2, PosixPath('out/b'))
    """
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, None, Path(text)
    found = re.fullmatch(r"(.+):([0-9]{1,4300})", name)
    if not name or not path:
        raise UsageError(f"{text!r} is not NAME=PATH.")
    return (found[1], check_seed(int(found[2])), Path(path)) if found else (name, None, Path(path))
