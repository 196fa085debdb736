"""What a comparison on planted models found, from the JSON of `bench/recovery.py`: read, ordered, and as a table.

Shares are computed from the divergences; what the file itself says of them is not read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.tables import Column, Row, Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval, mean_interval
from adaptive_lora.stats.recovery import CLEAR, CONCENTRATED, CONTROLS, shares_by_seed, summary

REFERENCES = ("oracle", "floor", "uniform")
"""What every result has beside the strategies."""
LONGER = "uniform-x"
"""Before how many times as long: uniform ranks with what others train to plan."""
_UNIFORM = "uniform"
_LEVEL = 0.95


class _Result(BaseModel, strict=True):
    """One truth and seed."""

    truth: str
    seed: int
    divergence: dict[str, float]
    correlation: dict[str, float | None]
    plan_seconds: dict[str, float]
    planning: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What was measured for each plan."""


class _File(BaseModel, strict=True):
    circumstances: dict[str, Any]
    results: list[_Result]


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
    def every_concentrated(self) -> tuple[str, ...]:
        """The concentrated truths that were run, whether they count or not."""
        return tuple(t for t in self.truths if t in CONCENTRATED)

    @property
    def shown(self) -> tuple[str, ...]:
        """Truths with a gain to take a share of: all but `uniform`, the concentrated ones first."""
        return (*self.every_concentrated, *(t for t in self.truths if t not in (*CONCENTRATED, _UNIFORM)))

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
        return tuple(t for t in self.every_concentrated if self.provisional or t in self.counting)

    @property
    def spread(self) -> tuple[str, ...]:
        """The truths that count and do not lie in few layers."""
        return tuple(t for t in self.counting if t not in CONCENTRATED)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that have all the truths that means are over."""
        return self._seeds_of(self.concentrated)

    @property
    def uneven(self) -> bool:
        """Whether some concentrated truths have more seeds than others: these were added after a look."""
        return len({self.truths[t]["seeds"] for t in self.every_concentrated}) > 1

    def share(self, truth: str, name: str) -> Interval | None:
        """Of the oracle's gain on one truth, over its seeds; None where a student diverged."""
        return self._interval(truth, name, "share_of_oracle_gain")

    def is_uniform(self, truth: str, name: str) -> bool:
        """Whether a strategy's student was the uniform one on every seed."""
        return all(r["divergence"][name] == r["divergence"][_UNIFORM] for r in self.results if r["truth"] == truth)

    def excess(self, name: str) -> Interval | None:
        """Over uniform on the uniform truth, in units of the concentrated truths' median gain, if that was run."""
        return self._interval(_UNIFORM, name, "excess") if _UNIFORM in self.truths else None

    def concentrated_share(self, name: str, every: bool = False) -> Interval | None:
        """Over seeds, of the mean over the concentrated truths, or `every` one; None where no seed has them all."""
        found = {(r["truth"], r["seed"]): r["divergence"] for r in self.results}
        truths = self.every_concentrated if every else self.concentrated
        shares, seeds = [], self._seeds_of(truths)
        for truth in truths if seeds else ():
            own = [found[truth, seed] for seed in seeds]
            own_gains, gains = ([d[_UNIFORM] - d[other] for d in own] for other in (name, "oracle"))
            shares.append(shares_by_seed(own_gains, gains))
        known = shares and all(own and all(map(math.isfinite, own)) for own in shares)
        return mean_interval(np.mean(shares, axis=0).tolist(), _LEVEL) if known else None

    def planning_seconds(self, name: str) -> float | None:
        """Median over truths of the median over seeds; None for what needs no planning."""
        if not all(name in r["plan_seconds"] for r in self.results):
            return None
        return float(np.median([own["strategies"][name]["plan_seconds"] for own in self.truths.values()]))

    def cost(self, name: str) -> float | None:
        """Tokens that went through the model before there was a plan, over those of one training; median over results.

        None where the file does not say. 0 for plans by shapes alone; of `uniform-xN`, uniform ranks trained N times as
        long, what that takes beyond one training.
        """
        if name.startswith(LONGER):
            return float(name.removeprefix(LONGER)) - 1
        said = [self.circumstances.get(key) for key in ("steps", "batch_size", "length")]
        plans = [r["planning"][name] for r in self.results if name in r.get("planning", {})]
        if not plans or not all(isinstance(n, int) and n > 0 for n in said):
            return None
        return float(np.median([_tokens(plan) for plan in plans]) / math.prod(n for n in said if isinstance(n, int)))

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


def _tokens(planning: Mapping[str, Any]) -> int:
    """Of short runs and races, and of calibration once for every pass.

    >>> _tokens({"short_run_tokens": 800, "calibration_tokens": 20, "passes": 2})
    840
    """
    own = {key: value for key, value in planning.items() if key.endswith("_tokens") and isinstance(value, int)}
    return sum(value * (planning.get("passes", 1) if key == "calibration_tokens" else 1) for key, value in own.items())


def read_recovered(path: Path) -> Recovered:
    """The comparison in a JSON of `bench/recovery.py`.

    PaperError where it is corrupt, is something else, lacks what is needed, or has no concentrated truth.
    """
    try:
        held = _File.model_validate_json(path.read_text(encoding="utf-8"))
        results = [result.model_dump() for result in held.results]
        _check(results)
        return Recovered(held.circumstances, results)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or str(error)
    raise PaperError(
        f"{path} cannot be read as a comparison on planted models: {wrong}. Make one with `python bench/recovery.py "
        f"--out FILE`, in a new file, with at least one of {listed(CONCENTRATED)} in --truths."
    )


def _check(results: Sequence[Mapping[str, Any]]) -> None:
    """ValueError with what types cannot say."""
    named = {*REFERENCES, *results[0]["divergence"]} if results else set()
    for place, result in enumerate(results):
        divergence = result["divergence"]
        if set(divergence) != named or not named <= result["correlation"].keys():
            raise ValueError(f"results.{place} lacks a divergence or correlation of one of {listed(sorted(named))}")
        # A student that diverged has no finite loss; the two ends of every share must have one.
        if not math.isfinite(divergence[_UNIFORM] + divergence["oracle"]):
            raise ValueError(f"results.{place} has no finite divergence of {_UNIFORM} or oracle")
    pairs = Counter((result["truth"], result["seed"]) for result in results)
    if twice := [f"{truth} with seed {seed}" for (truth, seed), n in pairs.items() if n > 1]:
        raise ValueError(f"it has {listed(twice)} more than once")
    truths = list(dict.fromkeys(truth for truth, _ in pairs))
    if not set(truths) & set(CONCENTRATED):
        raise ValueError(f"it has no concentrated truth, but {listed(truths) if truths else 'no result at all'}")


def recovery_table(found: Recovered) -> Table:
    """One row a strategy, then the controls, then `floor`; shares by truth, excess on the uniform truth, planning."""
    columns = (
        Column("strategy", "strategy", "text"),
        # In the unit's place, which LaTeX gives a line of its own: columns stay narrow.
        Column("concentrated", "concentrated", "interval", ".2f", "provisional" if found.provisional else ""),
        *(
            Column(t.replace("-", "_"), t, "interval", ".2f", "" if t in found.counting else "does not count")
            for t in found.shown
        ),
        Column("excess", "uniform truth: excess", "interval", ".2f", optional=True),
        Column("plan_seconds", "planning", form=",.1f", unit="s", optional=True),
    )
    rows = tuple(
        Row((name, found.concentrated_share(name), *(found.share(truth, name) for truth in found.shown),
             found.excess(name), found.planning_seconds(name)), marked=name in (*CONTROLS, "floor"))
        for name in (*found.order(), "floor")
    )  # fmt: skip
    model = found.circumstances.get("model")
    title = f"Recovery of planted ranks on {model}" if model else "Recovery of planted ranks"
    planned = any(row.cells[-1] is not None for row in rows)
    return Table("recovery", title, columns, rows, recovery_caption(found, planned))


def recovery_caption(found: Recovered, planned: bool) -> str:
    """What the table's numbers mean; `planned`: whether it has a column of planning times."""
    controls = [name for name in found.order() if name in CONTROLS]
    return render("recovery.caption", found, controls, planned, CLEAR)
