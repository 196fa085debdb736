"""Whether a study's own controls held: the baseline's twin."""

from __future__ import annotations

from adaptive_lora.errors import TrainingError
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.ledger import Ledger


def check_twins(ledger: Ledger) -> int:
    """How many twins came out bit-equal to their run; TrainingError where one did not.

    A twin has the same plan, data and seed in another slot of the bank: whatever makes it differ could make any arm
    differ, so that no result of the study counts until it is found.
    """
    kept = {Status.COMPLETED, Status.DIVERGED}
    runs = [run for run in ledger.runs() if run["phase"] == Phase.EVALUATION and Status(run["status"]) in kept]
    names = ("arm", "budget", "seed", "learning_rate")
    first = {tuple(run[name] for name in names): run for run in runs if run["replica"] == 0}
    # Sums are exact wherever a run comes from; losses by record are rounded in an export that was continued.
    losses = {run_id: total["nll"] for (run_id, split), total in ledger.totals().items() if split == "test"}
    checked = 0
    for twin in runs:
        own = first.get(tuple(twin[name] for name in names))
        if twin["replica"] == 0 or own is None:
            continue
        one, other = (losses.get(run["run_id"]) for run in (own, twin))
        same = own["status"] == twin["status"] and own["step"] == twin["step"]
        if not same or (one is not None and other is not None and one != other):
            raise TrainingError(
                f"The twin of {own['arm']} at {own['budget']}, seed {own['seed']}, differs from it (runs "
                f"{own['run_id']} and {twin['run_id']}). Adapters of a bank must not touch each other, so that no "
                "result of this study counts. Try `engine: reference`, and report it with `adaptive-lora doctor`."
            )
        checked += 1
    return checked
