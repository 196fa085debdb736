"""Whether the rate that validation chooses avoids an arm's breaks, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptive_lora.stats.breaks import Course, State
from adaptive_lora.stats.words import listed

Rates = Mapping[tuple[str, str], float]
"""(arm, budget) -> the rate it is evaluated at."""


def untrained(course: Course, chosen: Rates) -> bool:
    """Whether no rate could be chosen for it, because a run of it diverged at every one."""
    return (course.arm, course.budget) not in chosen and all(cell.diverged for cell in course.cells)


def choice(course: Course, rate: float, chosen: Rates, tuned: bool) -> str:
    """How an arm's own rate stands to the one at which it breaks first."""
    own = chosen.get((course.arm, course.budget))
    if own is None:
        return " No rate looked at trains it: at each of them a run diverged." if untrained(course, chosen) else ""
    if not tuned:
        return f" {'That' if own == rate else f'Its own rate, {own:g},'} is the study's rate; none was tuned."
    if own < rate:
        return f" Validation chooses {own:g} for it, below that."
    return f" Validation chooses {own:g} for it, {'that very rate' if own == rate else 'above that'}."


def by_rate(broken: Sequence[Course], chosen: Rates, tuned: bool) -> list[str]:
    """Of broken arms: whether those that have a tuned rate break at it, and which have none."""
    if not tuned:
        return []
    without = [course for course in broken if (course.arm, course.budget) not in chosen]
    hopeless = [f"{c.arm} at {c.budget}" for c in without if untrained(c, chosen)]
    waiting = [f"{c.arm} at {c.budget}" for c in without if not untrained(c, chosen)]
    own = [(course, chosen[course.arm, course.budget]) for course in broken if (course.arm, course.budget) in chosen]
    said = [_at_tuned(own, "other " if without else "")] if own else []
    said += [f"No rate looked at trains {listed(hopeless)}, so that none was chosen."] if hopeless else []
    return said + ([f"No rate is chosen yet for {listed(waiting)}."] if waiting else [])


def _at_tuned(own: Sequence[tuple[Course, float]], other: str) -> str:
    hit = [f"{c.arm} at {c.budget}" for c, rate in own if c.state_at(rate) is State.BREAKS]
    if hit:
        return f"At the rate that validation chooses, broken {'is' if len(hit) == 1 else 'are'} {listed(hit)}."
    if all(rate < c.first_break.learning_rate for c, rate in own if c.first_break):
        none = "none" + " of these" * bool(other)
        above = "lies above the rate that validation chooses for the arm"
        return f"Every {other}break {above}: at a tuned rate {none} appears."
    return f"No {other}arm is shown to break at the rate that validation chooses for it."
