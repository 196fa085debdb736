"""Whether runs that are compared were made on one kind of device: dropout draws other masks on each."""

from __future__ import annotations

from collections.abc import Mapping

from adaptive_lora.study.engines.engine import Worker
from adaptive_lora.study.runs import RunSpec


def warn_of_other_devices(worker: Worker, runs: Mapping[str, RunSpec]) -> None:
    """Tells the watcher where some of `runs` were trained, wholly or in part, on another kind of device than the rest
    will be. A warning only: the machine that they were made on may be gone."""
    here, dropout = worker.material.base.device.type, worker.material.study.spec.train.dropout
    left = [run_id for run_id in runs if not worker.ledger.status_of(run_id).is_finished]
    begun = [run["device"] for run in worker.ledger.runs() if run["run_id"] in runs and run["step"]]
    elsewhere = [kind for device in begun if (kind := str(device).split(":")[0]) != here]
    if dropout and left and elsewhere:
        worker.watcher.stage(
            f"warning: {len(elsewhere)} of these runs were trained on {' and '.join(sorted(set(elsewhere)))}, the "
            f"{len(left)} left go on on {here}: with `dropout: {dropout:g}` arms that share a seed drop other inputs "
            f"on each, which adds to their differences. Go on with --device {elsewhere[0]}, or name a new folder "
            "with --out."
        )
