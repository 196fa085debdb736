"""What a comparison on planted models found, from the JSON of `bench/recovery.py`: read, ordered, and as a table.

Shares are made anew from the divergences: what the file itself says of them may come from an earlier version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.formatting import formatted
from adaptive_lora.reporting.tables import Cell, Column, Row, Table
from adaptive_lora.stats.estimators import Interval, mean_interval
from adaptive_lora.stats.recovery import CLEAR, CONCENTRATED, CONTROLS, shares_by_seed, summary

REFERENCES = ("oracle", "floor", "uniform")
"""What stands in every result beside the strategies."""
_UNIFORM = "uniform"
_ENDS = ("uniform", "oracle")
_LEVEL = 0.95


@dataclass(frozen=True)
class Recovered:
    """A comparison of strategies on planted models."""

    circumstances: Mapping[str, Any]
    """Model, data, budget, training: as the file has them."""
    results: Sequence[Mapping[str, Any]]
    """One a truth and seed."""

    @cached_property
    def truths(self) -> Mapping[str, Any]:
        """As `stats.recovery.summary` gives them."""
        return summary(self.results, CONCENTRATED)

    @property
    def shown(self) -> tuple[str, ...]:
        """Truths with a gain to take a share of: all but `uniform`, the concentrated ones first."""
        return tuple(sorted((t for t in self.truths if t != _UNIFORM), key=lambda t: t not in CONCENTRATED))

    @property
    def counting(self) -> tuple[str, ...]:
        """Truths on which the oracle's gain exceeds five standard errors."""
        return tuple(t for t in self.shown if self.truths[t]["counts"])

    @property
    def provisional(self) -> bool:
        """Whether no concentrated truth counts, so that means are over those that do not."""
        return not set(self.counting) & set(CONCENTRATED)

    @property
    def concentrated(self) -> tuple[str, ...]:
        """The concentrated truths that means are over: those that count, or all while none does."""
        return tuple(t for t in (self.shown if self.provisional else self.counting) if t in CONCENTRATED)

    @property
    def spread(self) -> tuple[str, ...]:
        """The truths that count and do not lie in few layers."""
        return tuple(t for t in self.counting if t not in CONCENTRATED)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that have all the truths that means are over."""
        return self._seeds_of(self.concentrated)

    @property
    def every_concentrated(self) -> tuple[str, ...]:
        """The concentrated truths that were run, whether they count or not."""
        return tuple(t for t in self.shown if t in CONCENTRATED)

    @property
    def uneven(self) -> bool:
        """Whether some concentrated truths have more seeds than others: these were added after a look."""
        return len({self.truths[t]["seeds"] for t in self.every_concentrated}) > 1

    def share(self, truth: str, name: str) -> Interval | None:
        """Of the oracle's gain on one truth, over its seeds; nothing where a student diverged."""
        return self._interval(truth, name, "share_of_oracle_gain")

    def is_uniform(self, truth: str, name: str) -> bool:
        """Whether a strategy's student was the uniform one on every seed."""
        own = [r["divergence"] for r in self.results if r["truth"] == truth]
        return all(d[name] == d[_UNIFORM] for d in own)

    def excess(self, name: str) -> Interval | None:
        """Over uniform on the uniform truth, in units of the concentrated truths' median gain, if that was run."""
        return self._interval(_UNIFORM, name, "excess") if _UNIFORM in self.truths else None

    def concentrated_share(self, name: str, every: bool = False) -> Interval | None:
        """Over seeds, of the mean over the concentrated truths, or `every` one; nothing where no seed has them all."""
        found = {(r["truth"], r["seed"]): r["divergence"] for r in self.results}
        truths = self.every_concentrated if every else self.concentrated
        shares, seeds = [], self._seeds_of(truths)
        for truth in truths if seeds else ():
            own = [found[truth, seed] for seed in seeds]
            apart, gains = ([d[_UNIFORM] - d[other] for d in own] for other in (name, "oracle"))
            shares.append(shares_by_seed(apart, gains))
        known = shares and all(own and all(map(math.isfinite, own)) for own in shares)
        return mean_interval(np.mean(shares, axis=0).tolist(), _LEVEL) if known else None

    def planning_seconds(self, name: str) -> float | None:
        """Median over truths of the median over seeds; nothing for what needs no planning."""
        if not all(name in r["plan_seconds"] for r in self.results):
            return None
        return float(np.median([own["strategies"][name]["plan_seconds"] for own in self.truths.values()]))

    def order(self) -> list[str]:
        """Strategies, the best on the concentrated truths first, and then the controls."""
        names = [n for n in self.results[0]["divergence"] if n not in REFERENCES]
        worst = {n: -i.mean if (i := self.concentrated_share(n)) else math.inf for n in names}
        return sorted(names, key=lambda n: (n in CONTROLS, worst[n]))

    def _seeds_of(self, truths: Sequence[str]) -> tuple[int, ...]:
        done = {(r["truth"], r["seed"]) for r in self.results}
        every = dict.fromkeys(r["seed"] for r in self.results)
        return tuple(seed for seed in every if all((truth, seed) in done for truth in truths))

    def _interval(self, truth: str, name: str, figure: str) -> Interval | None:
        own = self.truths[truth]
        value = own["strategies"][name][figure]
        if value["mean"] is None:
            return None
        return Interval(value["mean"], value["low"], value["high"], own["seeds"], _LEVEL)


def read_recovered(path: Path) -> Recovered:
    """The comparison in a JSON of `bench/recovery.py`.

    PaperError where it is torn, is something else, lacks what is needed, or has no concentrated truth.
    """
    try:
        return _whole(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        wrong = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        wrong = str(error)
    raise PaperError(
        f"{path} cannot be told as a comparison on planted models: {wrong}. Make one with `python bench/recovery.py "
        f"--out FILE`, in a new file, with at least one of {_listed(CONCENTRATED)} in --truths."
    )


def _whole(held: Any) -> Recovered:
    """ValueError with what is wrong."""
    if not isinstance(held, dict):
        raise ValueError("it holds no JSON object")
    for key, kind in (("circumstances", dict), ("results", list)):
        if not isinstance(held.get(key), kind):
            raise ValueError(f"`{key}` is missing or of the wrong kind")
    results = held["results"]
    for place, result in enumerate(results):
        _check(result, f"`results[{place}]`")
        if set(result["divergence"]) != set(results[0]["divergence"]):
            raise ValueError(f"`results[{place}]` has other strategies than `results[0]`")
    pairs = [(r["truth"], r["seed"]) for r in results]
    if twice := [f"{truth} with seed {seed}" for truth, seed in dict.fromkeys(pairs) if pairs.count((truth, seed)) > 1]:
        raise ValueError(f"it has {_listed(twice)} more than once")
    truths = list(dict.fromkeys(truth for truth, _ in pairs))
    if not set(truths) & set(CONCENTRATED):
        raise ValueError(f"it has no concentrated truth, but {_listed(truths) or 'no result at all'}")
    return Recovered(held["circumstances"], results)


def _check(result: Any, place: str) -> None:
    kinds = {"truth": str, "seed": int, "divergence": dict, "correlation": dict, "plan_seconds": dict}
    for key, kind in kinds.items():
        if not isinstance(result, dict) or not isinstance(result.get(key), kind):
            raise ValueError(f"{place} has no `{key}`, or one of the wrong kind")
    divergence, correlation = result["divergence"], result["correlation"]
    for name in dict.fromkeys((*REFERENCES, *divergence)):
        # A student that diverged has a loss that is no finite number; the two ends of every share must have one.
        if not _number(divergence.get(name)) or (name in _ENDS and not math.isfinite(divergence[name])):
            raise ValueError(f"{place} has no divergence of `{name}`")
        if name not in correlation or not (correlation[name] is None or _number(correlation[name])):
            raise ValueError(f"{place} has no correlation of `{name}`")
    if wrong := [name for name, seconds in result["plan_seconds"].items() if not _number(seconds)]:
        raise ValueError(f"{place} has no planning seconds of {_listed(wrong)}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def recovery_table(found: Recovered) -> Table:
    """One row a strategy, then the controls, then `floor`; shares by truth, excess on the uniform truth, planning."""
    names = [*found.order(), "floor"]
    columns = [
        Column("strategy", "strategy", "text"),
        # In the unit's place, which LaTeX gives a line of its own: columns stay narrow.
        Column("concentrated", "concentrated", "interval", ".2f", "provisional" if found.provisional else ""),
        *(
            Column(t.replace("-", "_"), t, "interval", ".2f", "" if t in found.counting else "does not count")
            for t in found.shown
        ),
        Column("excess", "uniform truth: excess", "interval", ".2f", optional=True),
        Column("plan_seconds", "planning", form=",.1f", unit="s", optional=True),
    ]
    cells: list[tuple[Cell, ...]] = [
        (
            name,
            found.concentrated_share(name),
            *(found.share(truth, name) for truth in found.shown),
            found.excess(name),
            found.planning_seconds(name),
        )
        for name in names
    ]
    rows = tuple(Row(own, marked=own[0] in (*CONTROLS, "floor")) for own in cells)
    return Table("recovery", _title(found), tuple(columns), rows, _caption(found, names))


def _title(found: Recovered) -> str:
    model = found.circumstances.get("model")
    return "Recovery of planted ranks" + (f" on {model}" if isinstance(model, str) and model else "")


def _caption(found: Recovered, names: Sequence[str]) -> str:
    controls = [name for name in names if name in CONTROLS]
    told = [
        "Share of the oracle's gain over uniform, (d of uniform − d) / (d of uniform − d of oracle), summed over seeds "
        "above and below; d is the KL divergence from the planted model on held-out texts. 0 is uniform, 1 the oracle, "
        "which trains at the planted ranks themselves; floor is the oracle with rank 1 left in every module, the most "
        "that a strategy which leaves none out can recover.",
        "Brackets: 95 % t intervals over seeds.",
        f"Concentrated: the mean over {_listed(found.concentrated)}, over the {_counted(len(found.seeds), 'seed')} "
        f"that {'has' if len(found.seeds) == 1 else 'have'} {'it' if len(found.concentrated) == 1 else 'them all'}.",
    ]
    if _UNIFORM in found.truths:
        told.append(
            "Excess: by how much the divergence is above uniform's where uniform is right, in units of the oracle's "
            "median gain on all concentrated truths that were run; positive is worse."
        )
    told += [_counts(found), _seeds(found)]
    if any(found.planning_seconds(name) is not None for name in names):
        told.append("Planning: median seconds.")
    if controls:
        told.append(f"Controls, which spend rank without a reason: {_listed(controls)}.")
    return " ".join(told)


def _counts(found: Recovered) -> str:
    """Which truths count, and by how much the others fall short."""
    rule = f"A truth counts if the oracle's gain exceeds {CLEAR} standard errors over seeds"
    left_out = [t for t in found.shown if t not in found.counting]
    parts = [
        f"{_listed([_gain(found, t) for t in truths])} {verb if len(truths) > 1 else verb_of_one}"
        for truths, verb, verb_of_one in ((found.counting, "count", "counts"), (left_out, "do not", "does not"))
        if truths
    ]
    note = " No concentrated truth counts: what is said of them together is provisional." if found.provisional else ""
    return f"{rule}: in nats per token {'; '.join(parts)}.{note}"


def _gain(found: Recovered, truth: str) -> str:
    own = found.truths[truth]
    error = own["standard_error"]
    form = ".4f" if error is None or error >= 5e-4 else ".6f"
    return f"{truth} ({formatted(own['oracle_gain'], form)}{', one seed' if error is None else f' ± {error:{form}}'})"


def _seeds(found: Recovered) -> str:
    by_truth = {truth: found.truths[truth]["seeds"] for truth in (*found.shown, *({_UNIFORM} & set(found.truths)))}
    if len(set(by_truth.values())) == 1:
        return f"{_counted(next(iter(by_truth.values())), 'seed')} a truth."
    return f"Seeds: {', '.join(f'{truth} {count}' for truth, count in by_truth.items())}."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> _listed(["a", "b", "c"]), _listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
