"""Which key of a rank or alpha pattern counts for a module, as PEFT decides it when it loads an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence


def first_key(keys: Sequence[str], name: str) -> str | None:
    """The first key, in the order of the file, that matches the module's name or the end of it at a dot.

    >>> first_key(["mlp.c_fc", "^h.0.mlp.c_fc"], "h.0.mlp.c_fc")
    'mlp.c_fc'
    """
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", name)), None)
