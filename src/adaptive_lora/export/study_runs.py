"""The adapters of an arm of a study: which run is meant, and what is known of it. Needs no torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from adaptive_lora.errors import StudyFolderError, UsageError, nearest_hint
from adaptive_lora.models.locate import is_named
from adaptive_lora.stats.arms import evaluations
from adaptive_lora.study.adapter_files import check_adapter
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.results import runs_table

Which = Literal["best", "median", "all"]


@dataclass(frozen=True)
class TrainedRun:
    """A finished evaluation run with its adapter."""

    run_id: str
    arm: str
    budget: str
    seed: int
    learning_rate: float
    validation_loss: float | None
    test_loss: float | None
    folder: Path
    """Its adapter, in PEFT's format."""
    chosen: str
    """Why this one: `the lowest validation loss of 10 runs`."""
    facts: Mapping[str, Any]
    """Of the study."""

    @property
    def model(self) -> str | None:
        """What the study calls its base model, where that means the same everywhere; None where its adapters, which
        say where it was read from, know better."""
        name = str(self.facts["spec"]["model"]["name"])
        return name if is_named(name) else None

    @property
    def revision(self) -> str | None:
        """The commit, tag or branch that the study asks for."""
        found: str | None = self.facts["spec"]["model"].get("revision")
        return found

    @property
    def name(self) -> str:
        """A name for files: `linear-decay-rank-8`."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.arm}-{self.budget}").strip("-")


def is_study(folder: Path) -> bool:
    """Whether a folder is a study's, or the export of one, and not an adapter's."""
    paths = StudyPaths(folder)
    return paths.ledger.is_file() or paths.is_export


def runs_of(folder: Path, arm: str | None, budget: str | None, which: Which = "best") -> list[TrainedRun]:
    """The run of an arm with the lowest validation loss, the median one (of an even number the lower), or all by seed.

    Test loss chooses nothing: it is what the arm is judged by. Raises UsageError where arm or budget do not say which
    runs are meant, and StudyFolderError where their adapters are not there.
    """
    if StudyPaths(folder).is_export:
        raise StudyFolderError(
            f"{folder} is an export, which has results and no adapters: name the study folder that it was made from."
        )
    ledger = open_recorded(folder)
    assert ledger is not None  # only exports have none
    with contextlib.closing(ledger):
        facts, table = ledger.facts(), evaluations(runs_table(ledger))
    own = _of_cell(table, arm, budget, folder)
    done = own[own["status"] == "completed"].sort_values(["validation_loss", "seed"])
    if done.empty:
        raise StudyFolderError(f"No run of {_named(own)} has finished yet; `adaptive-lora status {folder}` says why.")
    if which == "all":
        picked, why = done.sort_values("seed"), "one of all {n} runs"
    elif which == "best":
        picked, why = done.head(1), "the lowest validation loss of {n} runs"
    else:
        picked, why = done.iloc[[(len(done) - 1) // 2]], "the median validation loss of {n} runs"
    found = [_run(row, folder, facts, why.format(n=len(done))) for row in picked.to_dict("records")]
    if gone := [run for run in found if not (run.folder / "adapter_config.json").is_file()]:
        raise StudyFolderError(
            f"{gone[0].folder} is not there: the adapter of {_named(own)}, seed {gone[0].seed}, {_why_gone(facts)}."
        )
    for run in found:
        check_adapter(run.folder)
    return found


def _of_cell(table: pd.DataFrame, arm: str | None, budget: str | None, folder: Path) -> pd.DataFrame:
    arms = list(dict.fromkeys(table["arm"]))
    # An arm's own budgets: controls are often the baseline's alone. A budget that no arm has is named as unknown.
    budgets = list(
        dict.fromkeys(table[table["arm"] == (arm or arms[0])]["budget"] if budget is None else table["budget"])
    )
    for asked, known, what in ((arm, arms, "arm"), (budget, budgets, "budget")):
        if asked is not None and asked not in known:
            raise UsageError(
                f"{folder} has no {what} {asked!r}{nearest_hint(asked, known)}. It has: {', '.join(known)}."
            )
        if asked is None and len(known) != 1:
            raise UsageError(f"{folder} has {len(known)} {what}s; name one with --{what}: {', '.join(known)}.")
    own = table[(table["arm"] == (arm or arms[0])) & (table["budget"] == (budget or budgets[0]))]
    if own.empty:
        raise UsageError(f"{folder} trains {arm} at other budgets only: "
                         f"{', '.join(dict.fromkeys(table[table['arm'] == arm]['budget']))}.")  # fmt: skip
    return own


def _why_gone(facts: Mapping[str, Any]) -> str:
    kept = facts["spec"].get("report", {}).get("keep_adapters", "all")
    if kept == "best":
        return "was not kept, as the study says `keep_adapters: best`: take `--run best`"
    if kept == "none":
        return "was not kept, as the study says `keep_adapters: none`. Its plan is in the ledger: train it anew"
    return "was moved or deleted"


def _named(runs: pd.DataFrame) -> str:
    first = runs.iloc[0]
    return f"{first['arm']} at {first['budget']}"


def _run(row: Mapping[Any, Any], folder: Path, facts: Mapping[str, Any], chosen: str) -> TrainedRun:
    losses = {name: None if pd.isna(row[name]) else float(row[name]) for name in ("validation_loss", "test_loss")}
    return TrainedRun(
        run_id=str(row["run_id"]),
        arm=str(row["arm"]),
        budget=str(row["budget"]),
        seed=int(row["seed"]),
        learning_rate=float(row["learning_rate"]),
        folder=StudyPaths(folder).adapter(str(row["run_id"])),
        chosen=chosen,
        facts=facts,
        **losses,
    )
