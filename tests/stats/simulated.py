"""Studies with normal effects of seeds and records, for what is checked against the rule that judges them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptive_lora.stats.crossed import Components, PairedTable


@dataclass(frozen=True)
class Simulated:
    """What all comparisons of a study vary by, and the correlation that a common baseline gives them."""

    components: Components
    seeds: int
    records: int
    correlation: float = 0.0

    def tables(self, draw: np.random.Generator, true: list[float]) -> list[PairedTable]:
        """One for each true difference."""
        own = self.components
        sizes = ((self.seeds, 1), (1, self.records), (self.seeds, self.records))
        parts = [
            np.sqrt(variance) * self._correlated(draw, len(true), size)
            for variance, size in zip((own.seeds, own.records, own.both), sizes, strict=True)
        ]
        effects = parts[0] + parts[1] + parts[2]
        return [
            PairedTable(mean + effects[i], np.ones(self.records), tuple(range(self.seeds)))
            for i, mean in enumerate(true)
        ]

    def _correlated(self, draw: np.random.Generator, count: int, size: tuple[int, int]) -> NDArray[np.float64]:
        shared, single = draw.standard_normal((1, *size)), draw.standard_normal((count, *size))
        return np.sqrt(self.correlation) * shared + np.sqrt(1 - self.correlation) * single
