"""Facts as every reader wants them, of studies of every age."""

from __future__ import annotations

import copy
from pathlib import PurePath
from typing import Any

from adaptive_lora.study.lock import verdicts_rest_on
from adaptive_lora.study.results import plain_name

_NAMES = ("name", "task", "metric", "filter")
"""What a metric of a study is called by."""


def completed(facts: dict[str, Any]) -> dict[str, Any]:
    """With the names that the tables have, and with a lock, which is empty where the study never had one."""
    facts = copy.deepcopy(facts)
    spec, controls = facts["spec"], {"arms": {}, "compute": {}, "baseline_alone_at": [], "twin": False}
    lock: dict[str, Any] = {"primary": [], "deviations": [], "controls": controls, **facts.get("lock", {})}
    lock.setdefault("first", verdicts_rest_on(spec, lock["primary"]))
    for analysis in (spec["analysis"], lock["first"]["analysis"]):
        analysis["baseline"] = plain_name(analysis["baseline"])
        if isinstance(own := analysis.get("metric"), dict):
            own |= {key: plain_name(PurePath(str(own[key])).name) for key in _NAMES if key in own}
    for part in (*lock["primary"], *lock["first"]["primary"]):
        part["arm"], part["budget"] = plain_name(part["arm"]), plain_name(part["budget"])
    for arm in spec["arms"]:
        arm["name"] = plain_name(arm["name"])
    arms = {plain_name(arm): source for arm, source in lock["controls"]["arms"].items()}
    compute, shadows = (
        {plain_name(one): plain_name(other) for one, other in lock["controls"].get(part, {}).items()}
        for part in ("compute", "shadows")
    )
    controls = {**lock["controls"], "arms": arms, "compute": compute, "shadows": shadows}
    return {**facts, "lock": {**lock, "controls": controls}}
