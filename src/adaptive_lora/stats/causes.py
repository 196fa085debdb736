"""What a stability study found, in sentences made by rules: does scaling, rate or budget break an arm's training?

Every sentence is exploratory, and no rule looks past an interval: what is not shown is said not to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.stats.breaks import (
    Contrast,
    Course,
    State,
    contrast,
    courses,
    exceeds,
    first_too_high,
    reaches,
    rows_at,
)
from adaptive_lora.stats.remedies import changes
from adaptive_lora.stats.stability import StabilitySummary
from adaptive_lora.stats.tuned import by_rate, choice
from adaptive_lora.stats.variants import Variant
from adaptive_lora.stats.words import counted, listed, written


@dataclass(frozen=True)
class _Study:
    table: pd.DataFrame
    baseline: str
    margin: float
    chosen: Mapping[tuple[str, str], float]
    variants: Mapping[str, Variant]
    tuned: bool
    courses: Mapping[tuple[str, str], Course]

    @property
    def others(self) -> list[Course]:
        return [course for course in self.courses.values() if course.arm != self.baseline]

    @property
    def budgets(self) -> list[str]:
        return list(dict.fromkeys(course.budget for course in self.courses.values()))

    def rates(self, budget: str) -> list[float]:
        found = {c.learning_rate for course in self.courses.values() if course.budget == budget for c in course.cells}
        return sorted(found)


def findings(
    table: pd.DataFrame,
    baseline: str,
    margin: float,
    chosen: Mapping[tuple[str, str], float],
    variants: Mapping[str, Variant],
    tuned: bool = True,
) -> list[str]:
    """Sentences on a `stability_table`: where every arm trains, where each breaks, and what moves that.

    `margin` in nats per token; `chosen` (arm, budget) -> the rate that validation chooses, or the study's where nothing
    was `tuned`; an arm that no rate trains has none. `variants` by arm. Arms are compared with the baseline at the same
    budget, rate and seed; variants with their plain arm, likewise. Scaling is called a cause where the rule alone
    differs, the difference is shown, and only one of the two arms breaks.
    """
    study = _Study(table, baseline, margin, chosen, variants, tuned, courses(table, baseline, margin))
    if not study.others:
        return [f"Nothing can be said of stability: no arm beside {baseline} has finished a run."]
    broken = [course for course in study.others if course.first_break]
    said = [_rule(study)]
    said += [*_trained(study), *(_broke(study, course) for course in broken), *_unbroken(study)] if broken else []
    said += by_rate(broken, study.chosen, study.tuned) if broken else _nothing_broke(study)
    return [*said, *_of_baseline(study), *_by_budget(study), *_by_variant(study), *_of_spikes(study)]


def _rule(study: _Study) -> str:
    cells = sum(len(course.cells) for course in study.others)
    return (
        f"Exploratory, and not corrected for its {counted(cells, 'comparison')}: an arm breaks at a learning rate "
        f"where a run diverges, or where its validation loss is above that of {study.baseline} at the same rate and "
        f"seed by more than {study.margin:g} nats per token with the whole 95 % interval; with two seeds or more and "
        "neither of these, it trains."
    )


def _nothing_broke(study: _Study) -> list[str]:
    pairs = [pair for course in study.others for pair in course.paired]
    known = [cell for cell, state in pairs if state is State.TRAINS]
    looked = _looked_for(study)
    if not known:
        return [f"Too few seeds to say whether anything breaks: {looked}."]
    absent = f"the instability that the original study reports did not appear here ({looked})."
    unknown, margin = len(pairs) - len(known), study.margin
    open_ends = [(cell.excess.high, cell) for cell in known if cell.excess and cell.excess.high is not None]
    wide = [(high, cell) for high, cell in open_ends if high > margin]
    said = [f"No arm {'is shown to break' if wide or unknown else 'breaks'}: {absent}"]
    if wide:
        high, cell = max(wide, key=lambda found: found[0])
        said.append(
            f"An excess beyond the margin is not ruled out at {len(wide)} of {len(pairs)} combinations of arm, budget "
            f"and rate; the highest interval ends at {high:.3f} ({cell.arm} at {cell.budget}, {cell.learning_rate:g})."
        )
    if unknown:
        said.append(f"At {unknown} of {len(pairs)} combinations fewer than two seeds have a loss to compare.")
    return said


def _looked_for(study: _Study) -> str:
    cells = [cell for course in study.others for cell in course.cells]
    rates = sorted({f"{cell.learning_rate:g}" for cell in cells}, key=float)
    scalings = list(dict.fromkeys(cell.scaling for cell in cells))
    arms = len({cell.arm for cell in cells})
    seeds = sorted({cell.seeds for cell in cells})
    each = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else counted(seeds[0], "seed")
    return (
        f"{counted(arms, 'arm')} beside {study.baseline}, learning rate{'s' * (len(rates) > 1)} {listed(rates)}, "
        f"scaling {listed(scalings)}, budget{'s' * (len(study.budgets) > 1)} {listed(study.budgets)}, {each} each"
    )


def _trained(study: _Study) -> list[str]:
    """By budget, the highest rate up to which all arms train."""
    said = []
    for budget in study.budgets:
        here = [course for course in study.courses.values() if course.budget == budget]
        if all(course.arm == study.baseline for course in here):
            continue
        last = None
        for rate in (rates := study.rates(budget)):
            states = {course.state_at(rate) for course in here if any(c.learning_rate == rate for c in course.cells)}
            if states != {State.TRAINS}:
                break
            last = rate
        if last is None:
            why = "an arm breaks" if State.BREAKS in states else "too few seeds tell"
            said.append(f"At {budget} {why} already at the lowest rate, {rates[0]:g}.")
        else:
            top = ", the highest rate" * (last == rates[-1])
            cells = [cell for course in here for cell in course.cells if cell.learning_rate <= last]
            trains = f"every arm trains as {study.baseline} does"
            shown = "no arm is shown to break" if any(reaches(cell.excess, study.margin) for cell in cells) else trains
            said.append(f"At {budget} {shown} up to {last:g}{top}.")
    return said


def _broke(study: _Study, course: Course) -> str:
    cell = course.first_break
    assert cell is not None
    again = [f"{c.learning_rate:g}" for c, state in course.paired[course.cells.index(cell) :] if state is State.TRAINS]
    return (
        f"{course.arm} ({cell.scaling} scaling) at {course.budget} breaks first at {cell.learning_rate:g}: "
        f"{_why(study, cell)}.{choice(course, cell.learning_rate, study.chosen, study.tuned)}"
        f"{f' At {listed(again)} it is not shown to break.' if again else ''}"
    )


def _why(study: _Study, cell: StabilitySummary) -> str:
    parts = []
    if cell.diverged:
        rows = rows_at(study.table, cell.arm, cell.budget, cell.learning_rate)
        step = rows["diverged_at"].min()
        when = "" if pd.isna(step) else f", the first at step {int(step)}"
        parts.append(f"{cell.diverged} of {counted(cell.seeds, 'run')} diverged{when}")
    if cell.excess and exceeds(cell.excess, study.margin):
        parts.append(f"worse than {study.baseline} by {written(cell.excess)}")
    return "; ".join(parts)


def _unbroken(study: _Study) -> list[str]:
    said = []
    for budget in study.budgets:
        here = [c for c in study.others if c.budget == budget and c.first_break is None]
        sound = [c.arm for c in here if State.UNKNOWN not in c.states]
        open_ = [c.arm for c in here if State.UNKNOWN in c.states]
        wide = [c.arm for c in here if any(reaches(cell.excess, study.margin) for cell in c.cells)]
        if sound and set(sound) & set(wide):
            said.append(f"At {budget} {listed(sound)} {'is' if len(sound) == 1 else 'are'} shown to break at no rate.")
        elif sound:
            said.append(f"At {budget} {listed(sound)} break{'s' * (len(sound) == 1)} at no rate looked at.")
        if open_:
            said.append(f"At {budget} too few seeds tell at some rates whether {listed(open_)} would break.")
    return said


def _of_baseline(study: _Study) -> list[str]:
    said = []
    for budget in study.budgets:
        course = study.courses.get((study.baseline, budget))
        found = first_too_high(study.table, course, study.chosen, study.margin) if course else None
        if course and found:
            rate, against = found
            own = study.chosen[study.baseline, budget]
            apart, why = against.difference, []
            if apart and exceeds(apart, study.margin):
                whose = "its rate by validation" if study.tuned else "the study's rate"
                why = [f"worse than at {own:g}, {whose}, by {written(apart)}"]
            why += [_why(study, cell) for cell in course.cells if cell.learning_rate == rate and cell.diverged]
            said.append(
                f"From {rate:g} on the rate is too high for {study.baseline} itself at {budget}: {'; '.join(why)}."
            )
        elif course and course.first_break:
            cell = course.first_break
            said.append(f"{study.baseline} itself at {budget}, rate {cell.learning_rate:g}: {_why(study, cell)}.")
    return said


def _by_budget(study: _Study) -> list[str]:
    """Of arms on several budgets: the smallest against the largest, at the lowest rate where either breaks."""
    said = []
    units = {parse_budget(budget)[0] for budget in study.budgets}
    if len(units) > 1:
        return []
    for arm in dict.fromkeys(course.arm for course in study.others):
        own = sorted((c for c in study.others if c.arm == arm), key=lambda c: parse_budget(c.budget)[1])
        small, large = own[0], own[-1]
        breaks = [cell.learning_rate for c in (small, large) if (cell := c.first_break)]
        if small is large or not breaks:
            continue
        rate = min(breaks)
        rows = [rows_at(study.table, arm, c.budget, rate) for c in (large, small)]
        against = contrast(rows[0], rows[1], "excess")
        words = {1: "More budget makes it worse there", -1: "More budget makes it better there"}
        verdict = words.get(against.shown, "No effect of the budget is shown there")
        said.append(
            f"{arm} {_first(small)} at {small.budget} and {_first(large)} at {large.budget}; at {rate:g} the excess "
            f"at {large.budget} less that at {small.budget}: {_told(against)}. {verdict}."
        )
    return said


def _by_variant(study: _Study) -> list[str]:
    found, untouched = changes(study.table, study.courses, study.variants)
    said = []
    for c in found:
        course, plain = (study.courses[arm, c.budget] for arm in (c.arm, c.variant.of))
        said.append(
            f"{c.variant.differs} ({c.arm}) at {c.budget}: it {_first(course)}, {c.variant.of} {_first(plain)}; at "
            f"{c.learning_rate:g} its loss less that of {c.variant.of}: {_told(c.against)}. {c.effect}."
        )
    if untouched:
        neither = [f"{arm} ({study.variants[arm].differs}) at {budget}" for arm, budget in untouched]
        said.append(f"No break is seen with or without what sets these apart from their plain arms: {listed(neither)}.")
    return said


def _of_spikes(study: _Study) -> list[str]:
    """How many, and where most; a description, without an interval."""
    seen = study.table["spikes"].dropna()
    if seen.empty:
        return []
    if not seen.sum():
        return [f"No loss spike in {counted(len(seen), 'run')}."]
    cells = [cell for course in study.courses.values() for cell in course.cells if cell.spikes is not None]
    most = max(cells, key=lambda cell: cell.spikes or 0.0)
    return [
        f"{counted(int(seen.sum()), 'loss spike')} in {counted(len(seen), 'run')}; most a run, {most.spikes:.1f}, with "
        f"{most.arm} at {most.budget}, rate {most.learning_rate:g}."
    ]


def _first(course: Course) -> str:
    return f"breaks first at {course.first_break.learning_rate:g}" if course.first_break else "is not seen to break"


def _told(found: Contrast) -> str:
    parts = []
    if found.difference is not None:
        parts.append(written(found.difference, signed=True))
    if any(found.diverged):
        parts.append(f"{found.diverged[0]} against {found.diverged[1]} of {counted(found.pairs, 'run')} diverged")
    return ", ".join(parts) or "nothing to compare"
