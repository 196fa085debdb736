"""The lock: what was decided before the first step (hypotheses, seeds, controls, model, data). `study.lock.json`.

A lock is written once. A study file that has changed since is refused with what differs, or goes on as a deviation
that the lock records and the report prints on top.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFileError, StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.stats.seeds import seeds_needed, smallest_p
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.matrix import Role
from adaptive_lora.study.protocol import MOST_PRIMARY
from adaptive_lora.study.study_file import Study
from adaptive_lora.study.yaml import Location

FORM = 1


def check_decidable(study: Study) -> None:
    """StudyFileError with what `undecidable` says."""
    if found := undecidable(study):
        raise StudyFileError(str(study.path), [study.complaint(*found)])


def undecidable(study: Study) -> tuple[Location, str] | None:
    """Why a study can never decide its primary comparisons, and the key that is to blame; None where it can.

    There may be `MOST_PRIMARY` of them, and the evaluation seeds must allow 2 / 2^n <= alpha / m.
    """
    spec, comparisons = study.spec, len(study.matrix.comparisons)
    seeds, alpha = len(spec.seeds.evaluation), spec.analysis.alpha
    if comparisons > MOST_PRIMARY:
        return ("analysis", "primary"), (
            f"too many primary comparisons ({comparisons}; at most {MOST_PRIMARY}): name those that matter under "
            "`analysis.primary`, or `primary: []` for a study without verdicts. The others are shown all the same"
        )
    if comparisons and smallest_p(seeds) > alpha / comparisons:
        return ("seeds", "evaluation"), (
            f"{seeds} seeds can never decide {comparisons} primary comparison{'s' if comparisons > 1 else ''} at "
            f"{alpha:g}: the smallest exact p is {smallest_p(seeds):.3g}, and Holm asks for {alpha / comparisons:.3g}. "
            f"Give {seeds_needed(alpha, comparisons)} seeds, name fewer comparisons under `analysis.primary`, or "
            "`primary: []` for a study without verdicts"
        )
    return None


def lock_of(study: Study, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The decisions of a study; `facts` are the ledger's, with versions, model and data."""
    spec, matrix = study.spec, study.matrix
    named = [vars(comparison) for comparison in matrix.comparisons]
    every = [{"arm": cell.arm.name, "budget": cell.budget} for cell in matrix.cells]
    return {
        "form": FORM,
        "locked": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "identity": study.identity,
        "hypotheses": [
            f"{c.arm} differs in test loss from {spec.analysis.baseline} at {c.budget}, or is equivalent to it within "
            f"{spec.analysis.margin:g} nats per token"
            for c in matrix.comparisons
        ],
        "primary": named,
        "exploratory": [e for e in every if e not in named and e["arm"] != spec.analysis.baseline],
        "controls": {
            "arms": {
                arm.name: matrix.shadow_of.get(arm.name, arm.options.get("source"))
                for arm in matrix.arms_with_role(Role.CHANCE)
            },
            **({"shadows": dict(matrix.shadow_of)} if matrix.shadow_of else {}),
            "baseline_alone_at": list(matrix.assay_budgets),
            "compute": dict(matrix.compute_controls),
            "twin": "twin" in spec.controls,
        },
        "seeds": spec.seeds.model_dump(mode="json"),
        "smallest_p": smallest_p(len(spec.seeds.evaluation)),
        "spec": spec.model_dump(mode="json"),
        "versions": facts["versions"],
        "model": facts["model"],
        "data": facts["data"],
        "deviations": [],
    }


def read_lock(folder: Path) -> dict[str, Any] | None:
    """The lock of a study folder; None where there is none, StudyFolderError where it cannot be read."""
    path = StudyPaths(folder).decisions
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = found["identity"], found["spec"], found["deviations"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise StudyFolderError(
            f"{path}: file is corrupt. It says what was decided before the study began and cannot be made again; "
            "bring it back from a copy, or name a new folder with --out."
        ) from None
    return found


def write_lock(folder: Path, lock: Mapping[str, Any]) -> None:
    """Replaces the lock as a whole."""
    write_atomically(StudyPaths(folder).decisions, json.dumps(lock, indent=2) + "\n")


def with_deviation(lock: Mapping[str, Any], now: Mapping[str, Any], reason: str, results: int) -> dict[str, Any]:
    """The lock of the changed study `now`, with what changed since the `lock` before, why, and after how many results.

    `first` keeps what verdicts rested on when it was locked, as long as there were no results.
    """
    deviation = {
        "when": now["locked"],
        "reason": reason,
        "results": results,
        "differences": list(differences(lock["spec"], now["spec"], ("locked", "now"))),
    }
    first = lock.get("first", verdicts_rest_on(lock["spec"], lock["primary"])) if results else None
    found = {**now, "locked": lock["locked"], "deviations": [*lock["deviations"], deviation]}
    return {**found, "first": first} if first else found


def verdicts_rest_on(spec: Mapping[str, Any], primary: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The family, the rule of judging and the seeds that count."""
    return {"primary": list(primary), "analysis": spec["analysis"], "seeds": spec["seeds"]["evaluation"]}


def differences(old: Any, new: Any, sides: tuple[str, str], at: str = "") -> Iterator[str]:
    """`data.train: 200 there, 100 here` for every value that differs, with the names of the sides."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from differences(old.get(key), new.get(key), sides, f"{at}.{key}" if at else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, sides, f"{at}[{index}]")
    elif old != new:
        yield f"{at}: {old!r} {sides[0]}, {new!r} {sides[1]}"
