"""How a budget is written: `rank:r` or `params:N`."""

from __future__ import annotations

import re

from adaptive_lora.errors import BudgetError

BUDGET = r"^(rank|params):[0-9_,]*[1-9][0-9_,]*$"
"""Every budget, as a regular expression."""
_MOST_DIGITS = 15
"""A thousand times the parameters of the largest models, and whole in a float too."""


def parse_budget(text: str) -> tuple[str, int]:
    """`params:N` or `rank:r` as (unit, number); BudgetError otherwise.

    >>> parse_budget("rank:8")
    ('rank', 8)
    """
    found = re.fullmatch(r"(rank|params):([0-9][0-9_,]*)", text.strip())
    digits = re.sub("[_,]", "", found.group(2)).lstrip("0") if found else ""
    if not found or not 1 <= len(digits) <= _MOST_DIGITS:
        shown = text if len(text) <= 80 else f"{text[:60]}... of {len(text):,} characters"
        raise BudgetError(
            f"A budget is `rank:r` (what a uniform rank r costs) or `params:N` (trainable parameters) with a whole "
            f"number from 1 on, of at most {_MOST_DIGITS} digits, got {shown!r}. Write for example `rank:8`."
        )
    number = int(digits)
    return found.group(1), number


def halved(budget: str) -> str | None:
    """Half a budget; nothing where there is no smaller one.

    >>> halved("rank:8"), halved("rank:1"), halved("params:1001")
    ('rank:4', None, 'params:500')
    """
    unit, number = parse_budget(budget)
    return f"{unit}:{number // 2}" if number > 1 else None


def doubled(budget: str) -> str:
    """Twice a budget.

    >>> doubled("rank:8")
    'rank:16'
    """
    unit, number = parse_budget(budget)
    return f"{unit}:{2 * number}"
