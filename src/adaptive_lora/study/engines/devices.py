"""Whether runs that are compared were made on one kind of device, where dropout draws other masks on each, and by the
same kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.training.bank_model import uses_tiles
from adaptive_lora.training.kernels import TILED, kernel_status


def warn_of_other_devices(
    prepared: PreparedStudy, ledger: Ledger, runs: Mapping[str, Run], warn: Callable[[str], None]
) -> None:
    """Warns where some of `runs` were trained, wholly or in part, on another kind of device than the rest will be, or
    with other kernels.

    A warning only: the machine that they were made on may be gone.
    """
    _warn_of_other_kernels(prepared, ledger, runs, warn)
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


def _warn_of_other_kernels(
    prepared: PreparedStudy, ledger: Ledger, runs: Mapping[str, Run], warn: Callable[[str], None]
) -> None:
    """Warns where kernels are not compiled here, and where some of `runs` were trained by others."""
    base = prepared.base
    known = [run for run in ledger.runs() if run["run_id"] in runs]
    if base.device.type != "cpu" or base.model.dtype not in (torch.float32, torch.float64):
        return  # where torch computes everything
    if prepared.study.spec.engine == "reference" or all(Status(run["status"]).is_finished for run in known):
        return
    _warn_of_tiles([run["kernels"] for run in known if run["step"] and run["kernels"]], uses_tiles(base), warn)
    missing = {name: status for name, status in kernel_status().items() if status != "compiled"}
    names, reasons = " and ".join(missing), "; ".join(dict.fromkeys(missing.values()))
    with_them = sum(any(f"compiled {name}" in (run["kernels"] or "") for name in missing) for run in known)
    if with_them:
        warn(
            f"warning: {with_them} of these runs were trained with the compiled kernels for {names}, the rest go on "
            f"with {reasons}: results will differ in the 7th digit from those of a study that was not interrupted. The "
            "ledger says of each run what computed it."
        )
    elif missing and "=off" not in reasons:
        warn(f"warning: no compiled kernels for {names}, which makes training slower: {reasons}")


def _warn_of_tiles(kernels: Sequence[str], here: bool, warn: Callable[[str], None]) -> None:
    """Warns where runs that began with these kernels multiplied on bfloat16 tiles and none are here, or the reverse."""
    others = sum((TILED in said) != here for said in kernels)
    if others:
        ways = ("on bfloat16 tiles", "without tiles")
        before, now = reversed(ways) if here else ways
        warn(
            f"warning: {others} of these runs multiplied float32 {before}, the rest go on {now}: results will differ "
            "in the 7th digit from those of a study that was not interrupted. The ledger says of each run what "
            "computed it."
        )
