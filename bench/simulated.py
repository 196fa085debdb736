"""Studies drawn from real ones: seeds and records both, for `calibration.py` and `efficiency.py`.

From a study's losses by record the differences of every comparison are taken apart into effects of seeds, of records
and of both. A simulated study draws new ones: records with replacement from the real ones, all comparisons together,
so that tokens, tails and correlations are theirs; what is of both from real rows; seeds from a distribution with the
real deviations and correlation, normal or of another shape. With so few real seeds, drawing from theirs alone would
make every tail light.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.stats.crossed import Crossed, PairedTable, crossed
from adaptive_lora.stats.evidence import StudyTables
from adaptive_lora.stats.verdicts import Evidence
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.results import runs_table

Array = np.ndarray
FEWEST_SEEDS, FEWEST_RECORDS = 5, 100
HALF = "half"
"""The baseline at half the budget, as a comparison."""


@dataclass(frozen=True)
class RealTable:
    """What the comparisons of one study at one budget vary by; (J, ...) over comparisons, the last is `HALF`'s."""

    name: str
    arms: tuple[str, ...]
    means: Array
    """(J,), nats per token."""
    deviations: Array
    """(J,): of seeds, unbiased."""
    correlation: float
    """Between two comparisons' seeds."""
    records: Array
    """(J, R): effects of records, scaled to their unbiased variance, with a mean of zero."""
    both: Array
    """(J, S, R)."""
    tokens: Array
    """(R,)."""

    @property
    def half(self) -> int | None:
        """Where `HALF` stands; None where it was not trained."""
        return self.arms.index(HALF) if HALF in self.arms else None


def read_tables(folder: Path, baseline: str = "uniform") -> list[RealTable]:
    """One for each study and budget below a folder that has losses by record of enough seeds."""
    found = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or not any((path / name).is_file() for name in ("ledger.npz", "study.db")):
            continue
        ledger = open_recorded(path)
        if ledger is None:
            continue
        with contextlib.closing(ledger):
            tables = StudyTables(runs_table(ledger), ledger.by_record)
            budgets = dict.fromkeys(budget for arm, budget in tables.cells if arm != baseline)
            found += [real for b in budgets if (real := _real(path.name, tables, b, baseline)) is not None]
    return found


def _real(name: str, tables: StudyTables, budget: str, baseline: str) -> RealTable | None:
    base = (baseline, budget)
    pairs = {arm: tables.paired((arm, b), base) for arm, b in tables.cells if b == budget and arm != baseline}
    if (half := halved(budget)) and (baseline, half) in tables.cells:
        pairs[HALF] = tables.paired((baseline, half), base)
    known = {arm: t for arm, t in pairs.items() if t is not None and len(t.seeds) >= FEWEST_SEEDS}
    seeds = sorted(set.intersection(*(set(t.seeds) for t in known.values()))) if known else []
    known = {arm: t.of_seeds(seeds) for arm, t in known.items() if np.ptp(t.by_seed) > 0}
    if len(seeds) < FEWEST_SEEDS or not known or min(len(t.tokens) for t in known.values()) < FEWEST_RECORDS:
        return None
    return _taken_apart(f"{name} {budget}", known)


def _taken_apart(name: str, tables: Mapping[str, PairedTable]) -> RealTable:
    values = np.stack([t.differences for t in tables.values()])  # (J, S, R)
    tokens = next(iter(tables.values())).tokens
    found = [crossed(t) for t in tables.values()]
    means = np.array([c.mean for c in found])
    residuals = (values - means[:, None, None] * tokens) / tokens.mean()
    by_seed, by_record = residuals.mean(axis=2), residuals.mean(axis=1)
    both = residuals - by_seed[:, :, None] - by_record[:, None, :]
    s, r = by_seed.shape[1], by_record.shape[1]
    both = both * math.sqrt(s * r / ((s - 1) * (r - 1)))
    parts = [c.components for c in found if c.components is not None]
    shrink = np.array(
        [math.sqrt(p.records / max(float(b.var()), 1e-300)) for p, b in zip(parts, by_record, strict=True)]
    )
    centred = by_seed / np.maximum(by_seed.std(axis=1, keepdims=True), 1e-300)
    rho = np.corrcoef(centred)[np.triu_indices(len(centred), 1)].mean() if len(centred) > 1 else 0.0
    return RealTable(
        name=name,
        arms=tuple(tables),
        means=means,
        deviations=np.sqrt([p.seeds for p in parts]),
        correlation=float(min(0.9, max(0.0, rho))),
        records=by_record * shrink[:, None],
        both=both,
        tokens=tokens,
    )


SHAPES: dict[str, Callable[[Array], Array]] = {
    "normal": lambda z: z,
    "heavy": lambda z: special.stdtrit(3, special.ndtr(z)) / math.sqrt(3),
    "skewed": lambda z: -np.log1p(-special.ndtr(z)) - 1,
}
"""Seeds' effects of unit variance from normal scores: normal, Student's t(3), exponential."""


@dataclass(frozen=True)
class Simulated:
    """One drawn study: comparisons that are judged, the half budget, and others of the study that lend variances."""

    family: Mapping[int, Evidence]
    pool: tuple[PairedTable, ...]
    truth: Array
    """(M,): of the family."""


class Simulator:
    """Draws studies of one kind from a real table."""

    def __init__(self, real: RealTable, shape: str, draw: np.random.Generator) -> None:
        self.real, self.shape, self.draw = real, shape, draw
        self.others = [j for j in range(len(real.arms)) if j != real.half]

    def deviations(self, count: int) -> Array:
        """Those of `count` comparisons, each one of the real ones'."""
        return np.maximum(self.real.deviations[self.chosen(count)], 1e-6)

    def chosen(self, count: int) -> Array:
        """Which real comparisons `count` simulated ones are like."""
        return self.draw.choice(self.others, count)

    def study(self, like: Array, truth: Array, seeds: int, records: int, half: float | None = None) -> Simulated:
        """Comparisons like the real ones `like` with true means `truth`; `half`: what half the budget costs."""
        own = self.real.half if self.real.half is not None else self.others[0]
        rows = np.append(like, own)
        true = np.append(truth, 0.0 if half is None else half)
        tables = self._tables(rows, true, seeds, records)
        costs = None if half is None else tables[-1]
        done = frozenset(range(seeds))
        family = {j: Evidence(tables[j], costs, finished=done) for j in range(len(like))}
        return Simulated(family, (), truth)

    def _tables(self, rows: Array, truth: Array, seeds: int, records: int) -> list[PairedTable]:
        real = self.real
        picked = self.draw.integers(0, len(real.tokens), records)
        tokens = real.tokens[picked]
        # Record by record, so that two simulated seeds share no more than two real ones do.
        lots = self.draw.integers(0, real.both.shape[1], (seeds, records))
        shared = math.sqrt(real.correlation) * self.draw.standard_normal(seeds)
        scores = shared + math.sqrt(1 - real.correlation) * self.draw.standard_normal((len(rows), seeds))
        effects = np.maximum(real.deviations[rows], 1e-6)[:, None] * SHAPES[self.shape](scores)
        found = []
        for j, row in enumerate(rows):
            rest = real.records[row][picked] + real.both[row][lots, picked]  # (S, R)
            values = (truth[j] + effects[j])[:, None] * tokens + real.tokens.mean() * rest
            found.append(PairedTable(values, tokens, tuple(range(seeds))))
        return found


def components(real: RealTable) -> list[Crossed]:
    """Of its comparisons, as the study itself would report them."""
    values = real.records[:, None, :] + real.both + real.means[:, None, None] * real.tokens / real.tokens.mean()
    return [crossed(PairedTable(v * real.tokens.mean(), real.tokens, tuple(range(v.shape[0])))) for v in values]
