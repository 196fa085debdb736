"""Whether runs that are compared were made on one kind of device: dropout draws other masks on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.prepare import PreparedStudy


def warn_of_other_devices(
    prepared: PreparedStudy, ledger: Ledger, runs: Mapping[str, Run], warn: Callable[[str], None]
) -> None:
    """Warns where some of `runs` were trained, wholly or in part, on another kind of device than the rest will be.

    A warning only: the machine that they were made on may be gone.
    """
    here, dropout = prepared.base.device.type, prepared.study.spec.train.dropout
    if not dropout:
        return
    statuses = ledger.statuses()
    left = [run_id for run_id in runs if not statuses[run_id].is_finished]
    begun = [run["device"] for run in ledger.runs() if run["run_id"] in runs and run["step"]]
    elsewhere = [kind for device in begun if (kind := str(device).split(":")[0]) != here]
    if left and elsewhere:
        warn(
            f"warning: {len(elsewhere)} of these runs were trained on {' and '.join(sorted(set(elsewhere)))}, the "
            f"{len(left)} left go on on {here}: with `dropout: {dropout:g}` arms that share a seed drop other inputs "
            f"on each, which adds to their differences. Go on with --device {elsewhere[0]}, or name a new folder "
            "with --out."
        )
