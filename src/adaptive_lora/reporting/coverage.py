"""Which target modules an arm has no adapter on."""

from __future__ import annotations

import pandas as pd

from adaptive_lora.planning.modules import role_labels, role_of


def left_out(ranks: pd.DataFrame) -> dict[str, str]:
    """Arm -> `6 of 12 modules: c_fc, mlp.c_proj`, for arms that leave target modules out, by a `ranks_table`.

    They are named by what they are in their blocks, where that is the same in every block.
    """
    modules = ranks.drop_duplicates(["arm", "module"])
    modules = modules.assign(role=[role_of(name) for name in modules["module"]], out=modules["rank"] == 0)
    roles = list(modules["role"].unique())
    labels = dict(zip(roles, role_labels(roles), strict=True))
    found = {}
    for arm, own in modules[modules.groupby("arm")["out"].transform("any")].groupby("arm", sort=False):
        by_role = own.groupby("role", sort=False)["out"]
        whole, touched = by_role.all(), by_role.any()
        names = ", ".join(labels[str(role)] for role in whole.index[whole])
        found[str(arm)] = (
            f"{int(own['out'].sum())} of {len(own)} modules{f': {names}' if whole.equals(touched) else ''}"
        )
    return found
