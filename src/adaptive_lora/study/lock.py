"""The lock: what was decided before the first step (hypotheses, seeds, controls, model, data). `study.lock.json`.

A lock is written once. A study file that has changed since is refused with what differs, or goes on as a deviation
that the lock records and the report prints on top.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.errors import StudyFileError, StudyFolderError
from adaptive_lora.files import write_atomically
from adaptive_lora.stats.metrics import Metric, metric_of
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.matrix import Role
from adaptive_lora.study.protocol import MOST_PRIMARY
from adaptive_lora.study.study_file import Study, identity_of
from adaptive_lora.study.yaml import Location

FORM = 1
DECIDED = ("locked", "hypotheses", "primary", "controls", "deviations", "first", "exploratory", "seeds")
"""What the ledger keeps of a lock, beside the facts that both have."""
_SHARED = ("identity", "spec", "model", "data")
LEAST_SEEDS = 4
"""Evaluation seeds of a study that gives verdicts: with fewer, a spread over seeds is hardly known."""
LEAST_AT_A_LOOK = 3


def check_decidable(study: Study) -> None:
    """StudyFileError with what `undecidable` says."""
    if found := undecidable(study):
        raise StudyFileError(str(study.path), [study.complaint(*found)])


def undecidable(study: Study) -> tuple[Location, str] | None:
    """Why a study cannot decide its primary comparisons, and the key that is to blame; None where it can.

    There may be `MOST_PRIMARY` of them, and they take `LEAST_SEEDS` evaluation seeds, `LEAST_AT_A_LOOK` at the first
    look.
    """
    spec, comparisons = study.spec, len(study.matrix.comparisons)
    seeds, looks = len(spec.seeds.evaluation), spec.seeds.looks
    if comparisons > MOST_PRIMARY:
        return ("analysis", "primary"), (
            f"too many primary comparisons ({comparisons}; at most {MOST_PRIMARY}): name those that matter under "
            "`analysis.primary`, or `primary: []` for a study without verdicts. The others are shown all the same"
        )
    if comparisons and seeds < LEAST_SEEDS:
        return ("seeds", "evaluation"), (
            f"{seeds} evaluation seed{'s' if seeds > 1 else ''} can decide nothing; give {LEAST_SEEDS} or more, or "
            "`primary: []` for a study without verdicts"
        )
    if looks and looks[0] < LEAST_AT_A_LOOK:
        return ("seeds", "looks"), (
            f"the first look has {looks[0]} seeds, too few to decide anything; begin with {LEAST_AT_A_LOOK} or more"
        )
    return None


def lock_of(study: Study, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The decisions of a study; `facts` are the ledger's, with versions, model and data."""
    spec, matrix = study.spec, study.matrix
    metric = metric_of(spec.analysis.model_dump(mode="json"))
    named = [vars(comparison) for comparison in matrix.comparisons]
    every = [{"arm": cell.arm.name, "budget": cell.budget} for cell in matrix.cells]
    unclipped = [arm.name for arm in matrix.arms_with_role(Role.UNCLIPPED)]
    return {
        "form": FORM,
        "locked": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "identity": study.identity,
        "hypotheses": [
            f"{c.arm} differs in {metric.title} from {spec.analysis.baseline} at {c.budget}, or is equivalent to it "
            f"within {_margin_in_words(spec.analysis.margin, metric)}"
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
            **({"unclipped": unclipped} if unclipped else {}),
            "twin": "twin" in spec.controls,
        },
        "seeds": spec.seeds.model_dump(mode="json"),
        "spec": spec.model_dump(mode="json"),
        "versions": facts["versions"],
        "model": facts["model"],
        "data": facts["data"],
        "deviations": [],
    }


def _margin_in_words(margin: float | str, metric: Metric) -> str:
    return "a quarter of what half the budget costs" if isinstance(margin, str) else f"{margin:g} {metric.unit}"


def read_lock(folder: Path) -> dict[str, Any] | None:
    """The lock of a study folder; None where there is none, StudyFolderError where it cannot be read."""
    path = StudyPaths(folder).decisions
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = found["identity"], identity_of(found["spec"]), [own["reason"] for own in found["deviations"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise StudyFolderError(
            f"{path}: file is corrupt. It says what was decided before the study began. `adaptive-lora recover "
            f"{folder}` writes it again, where the ledger has all of it; else bring it back from a copy, or name a new "
            "folder with --out."
        ) from None
    return found


def write_lock(folder: Path, lock: Mapping[str, Any]) -> None:
    """Replaces the lock as a whole."""
    write_atomically(StudyPaths(folder).decisions, json.dumps(lock, indent=2) + "\n")


def decided(lock: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger keeps of a lock, and a digest of all of it."""
    return {**{name: lock[name] for name in DECIDED if name in lock}, "digest": _digest(lock)}


def _digest(lock: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()


def lock_of_ledger(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The lock as the ledger has it; None where it does not have all of it (ledgers of versions before)."""
    kept: Mapping[str, Any] = facts.get("lock", {})
    shared = ("identity", "spec", "versions", "model", "data")
    if not ({*DECIDED} - {"first"} <= kept.keys() and {*shared} <= facts.keys()):
        return None
    order = ("locked", "identity", "hypotheses", "primary", "exploratory", "controls", "seeds", *shared[1:])
    every = {**facts, **kept}
    return {"form": FORM, **{name: every[name] for name in (*order, "deviations", "first") if name in every}}


def check_lock(folder: Path, lock: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """StudyFolderError where lock and ledger, or the lock and its own identity, say different things.

    What was decided is written before the first result; where one of the two was changed since, nobody can tell by the
    results what was decided before them. A ledger that is one deviation behind is what a kill leaves.
    """
    path, known = StudyPaths(folder).decisions, facts.get("lock")
    if identity_of(lock["spec"]) != lock["identity"]:
        found = "its `spec` is not the one that its `identity` was made of"
    elif known is None or _is_behind(known, facts, lock):
        return
    else:
        sides = ("in the lock", "in the ledger")
        named = [name for name in DECIDED if name in known or (name in lock and name not in ("exploratory", "seeds"))]
        found = "; ".join(
            [text for name in named for text in differences(lock.get(name), known.get(name), sides, name)]
            + [
                text
                for name in _SHARED
                if name in facts
                for text in differences(lock.get(name), facts[name], sides, name)
            ]
        )
        if not found and known.get("digest", own := _digest(lock)) != own:
            found = "its digest, which the ledger has, is another"
    if found:
        raise StudyFolderError(
            f"{path} is not the lock that this study was begun with: {found}. One of the two was changed after the "
            f"study began. Bring {path.name} back from a copy, or let `adaptive-lora recover {folder}` write it again "
            "from the ledger. A change that is meant goes into the study file, with its reason: `run --deviation "
            "REASON`; the report will show it."
        )


def _is_behind(known: Mapping[str, Any], facts: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    """Whether the ledger was written before the last deviation of the lock."""
    own, older = lock["deviations"], known["deviations"]
    same = own[:-1] == older and lock.get("locked") == known.get("locked")
    return bool(facts.get("identity") != lock["identity"] and len(own) == len(older) + 1 and same)


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
    """The family, the rule of judging, the seeds that count and, where there are any, the looks."""
    seeds = spec["seeds"]
    looks = {"looks": seeds["looks"]} if seeds.get("looks") else {}
    return {"primary": list(primary), "analysis": spec["analysis"], "seeds": seeds["evaluation"], **looks}


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
