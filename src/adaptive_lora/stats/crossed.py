"""A difference over new seeds and new records: the crossed table seed x record, and its two-way variance.

The estimand is a difference per token, E[d] / E[t], with d the summed difference of a record and t its tokens, both
over seeds and records of the task that were not seen. With S seeds and R records, D the differences and T the sum of
the tokens, the estimate is m = sum D / (S T). Its linearised residuals (Cochran 1977, section 6)

    e_sr = (D_sr - m t_r) R / T = a_s + b_r + c_sr

have effects of seeds, of records and of both together. By the mean squares of the two-way table (Searle 1971,
section 11; two-way clustering of Cameron, Gelbach and Miller 2011 for a crossed design)

    Var m = (MS_seeds + MS_records - MS_both) / (S R),

with the degrees of freedom of the seeds or of the records, whichever are fewer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from adaptive_lora.stats.estimators import Floats, Interval

BOTH, SEEDS, RECORDS = "seeds and records", "seeds", "test records"
"""What an interval is over."""


@dataclass(frozen=True)
class PairedTable:
    """Differences of two arms, by seed and record."""

    differences: Floats
    """(S, R): summed over a record's tokens, first arm less second."""
    tokens: Floats
    """(R,): of each record; ones where values are means of records already."""
    seeds: tuple[int, ...]
    """Of the rows."""
    added: int = 0
    """How many of the last records are none of the task (`with_two_more`): they count in tests, not in means shown."""

    def __post_init__(self) -> None:
        if self.differences.shape != (len(self.seeds), len(self.tokens)):
            raise ValueError(
                f"`differences` must be ({len(self.seeds)} seeds, {len(self.tokens)} records), "
                f"got {self.differences.shape}."
            )
        if not np.isfinite(self.differences).all() or not (self.tokens > 0).all():
            raise ValueError("Differences must be finite, and every record must have tokens. Leave missing runs out.")

    @property
    def by_seed(self) -> Floats:
        """Difference per token of each seed, (S,)."""
        return np.asarray(self.differences.sum(axis=1) / self.tokens.sum(), dtype=np.float64)

    def of_seeds(self, wanted: Sequence[int]) -> PairedTable:
        """Its rows of these seeds, those that it has."""
        rows = [i for i, seed in enumerate(self.seeds) if seed in set(wanted)]
        return replace(self, differences=self.differences[rows], seeds=tuple(self.seeds[i] for i in rows))

    def plus(self, other: PairedTable, factor: float) -> PairedTable:
        """This table and a multiple of another's rows, over the seeds of both; both have the same records."""
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        one, two = self.of_seeds(seeds), other.of_seeds(seeds)
        return replace(one, differences=one.differences + factor * two.differences)


def of_seed_means(differences: Mapping[int, float]) -> PairedTable:
    """A table of one record, for differences that are known by seed alone."""
    values = np.array(list(differences.values()), dtype=np.float64)[:, None]
    return PairedTable(values, np.ones(1), tuple(differences))


def with_two_more(table: PairedTable, right: float = 1.0) -> PairedTable:
    """With two records more, one that each arm alone got right (Bonett and Price 2012); `right`: what that counts.

    For scores that are right or wrong: few records answered differently, or none, do not look like certainty then.
    """
    differences = np.hstack([table.differences, np.tile([right, -right], (len(table.seeds), 1))])
    return PairedTable(differences, np.append(table.tokens, [1.0, 1.0]), table.seeds, added=2)


def clustered(table: PairedTable, clusters: Sequence[Hashable]) -> PairedTable:
    """With the records of one conversation or document as one: they are no independent draws of the task.

    >>> table = PairedTable(np.array([[1.0, 2.0, 4.0]]), np.ones(3), (0,))
    >>> clustered(table, ["a", "b", "a"]).differences.tolist()
    [[5.0, 2.0]]
    """
    places = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    which = np.array([places[name] for name in clusters], dtype=np.intp)
    sums = np.zeros((len(table.seeds), len(places)))
    np.add.at(sums.T, which, table.differences.T)
    tokens = np.zeros(len(places))
    np.add.at(tokens, which, table.tokens)
    return PairedTable(sums, tokens, table.seeds)


@dataclass(frozen=True)
class Components:
    """What a difference varies by: variances of the effects of seeds, of records, and of both together.

    With S seeds and R records the estimate's variance is seeds / S + records / R + both / (S R).
    """

    seeds: float
    records: float
    both: float

    def variance(self, seeds: int, records: int) -> float:
        """Of a difference over so many seeds and records."""
        return self.seeds / seeds + self.records / records + self.both / (seeds * records)


@dataclass(frozen=True)
class Crossed:
    """A mean difference per token and what it rests on."""

    mean: float
    n: int
    """Seeds."""
    records: int
    seed_variance: float | None
    """Of the seeds' means, with `seed_freedom`; None with one seed."""
    seed_freedom: float
    record_variance: float | None
    """Of the records' means over the seeds; None with one record."""
    both_variance: float | None
    """Of what neither explains; None with one seed or one record."""
    added: int = 0
    """How many of the records are none of the task."""
    of_the_task: float | None = None
    """The mean without them."""

    @property
    def shown(self) -> float:
        """The mean of the task's own records."""
        return self.mean if self.of_the_task is None else self.of_the_task

    @property
    def test_records(self) -> int:
        """How many records the task's own are."""
        return self.records - self.added

    def turned(self) -> Crossed:
        """The other arm less this one."""
        own = None if self.of_the_task is None else 0.0 - self.of_the_task  # no zero with a minus
        return replace(self, mean=0.0 - self.mean, of_the_task=own)

    @property
    def components(self) -> Components | None:
        """Unbiased, and never below zero; None with one seed or one record."""
        if self.seed_variance is None or self.record_variance is None or self.both_variance is None:
            return None
        seeds = max(0.0, self.seed_variance - self.both_variance / self.records)
        records = max(0.0, self.record_variance - self.both_variance / self.n)
        return Components(seeds, records, self.both_variance)

    @property
    def error(self) -> tuple[float, float] | None:
        """Standard error over new seeds and new records, and its degrees of freedom.

        Those are the fewer of the two. Satterthwaite's (1946) would be more, and wrong for few seeds: where these
        happen to vary little, the formula takes the variance of records for all of it and lends a comparison their
        hundreds of degrees of freedom; families of ten then err in 8 studies of 100 instead of 5. With one seed it is
        over records alone, with one record over seeds alone; None with one of each.
        """
        parts = [] if self.seed_variance is None else [(self.seed_variance / self.n, self.seed_freedom)]
        if self.record_variance is not None:
            both = 0.0 if self.both_variance is None else self.both_variance / self.n
            own = max(0.0, self.record_variance - both) if parts else self.record_variance
            parts.append((own / self.records, self.records - 1.0))
        if not parts:
            return None
        return math.sqrt(sum(variance for variance, _ in parts)), min(freedom for _, freedom in parts)

    @property
    def source(self) -> str:
        """What is resampled by `error`."""
        if self.records < 2:
            return SEEDS
        return RECORDS if self.n < 2 else BOTH

    def interval(self, level: float = 0.95) -> Interval:
        """Over new seeds and new records."""
        return _interval(self, self.error, level, self.source)

    def over_seeds(self, level: float = 0.95) -> Interval | None:
        """Of new seeds on the same records; None with one seed."""
        if self.seed_variance is None:
            return None
        return _interval(self, (math.sqrt(self.seed_variance / self.n), self.seed_freedom), level, SEEDS)

    def over_records(self, level: float = 0.95) -> Interval | None:
        """Of new records with the same seeds; None with one record."""
        if self.record_variance is None:
            return None
        error = math.sqrt(self.record_variance / self.records), self.records - 1.0
        return replace(_interval(self, error, level, RECORDS), n=self.test_records)

    def p(self, null: float = 0.0) -> float | None:
        """Two-sided, that the mean is `null`; None where there is no error."""
        below = self.p_below(null)
        return None if below is None else 2 * min(below, 1 - below)

    def p_below(self, null: float = 0.0) -> float | None:
        """One-sided: small where the mean is shown to lie below `null`."""
        if self.error is None:
            return None
        error, freedom = self.error
        if error == 0:
            return 0.5 if self.mean == null else float(self.mean > null)
        return float(special.stdtr(freedom, (self.mean - null) / error))


def crossed(table: PairedTable) -> Crossed:
    """The mean squares of a table; ValueError for one without seeds.

    >>> found = crossed(PairedTable(np.array([[1.0, 3.0], [2.0, 6.0]]), np.ones(2), (0, 1)))
    >>> found.mean, found.seed_variance, found.record_variance, found.both_variance
    (3.0, 2.0, 4.5, 1.0)
    """
    s, r = table.differences.shape
    if s == 0:
        raise ValueError("A comparison needs a seed that both arms have.")
    total = float(table.tokens.sum())
    mean = float(table.differences.sum() / (s * total))
    residuals = (table.differences - mean * table.tokens) * (r / total)
    by_seed, by_record = residuals.mean(axis=1), residuals.mean(axis=0)
    seeds = float((by_seed**2).sum()) / (s - 1) if s > 1 else None
    records = float((by_record**2).sum()) / (r - 1) if r > 1 else None
    both = None
    if s > 1 and r > 1:
        rest = float((residuals**2).sum()) - r * float((by_seed**2).sum()) - s * float((by_record**2).sum())
        both = max(0.0, rest) / ((s - 1) * (r - 1))
    own = None
    if table.added:
        own = float(table.differences[:, : -table.added].sum() / (s * table.tokens[: -table.added].sum()))
    return Crossed(mean, s, r, seeds, float(s - 1), records, both, table.added, own)


def _interval(found: Crossed, error: tuple[float, float] | None, level: float, over: str) -> Interval:
    if error is None:
        return Interval(found.shown, None, None, found.n, level, over)
    half = float(special.stdtrit(error[1], 0.5 + level / 2)) * error[0]
    return Interval(found.shown, found.mean - half, found.mean + half, found.n, level, over)
