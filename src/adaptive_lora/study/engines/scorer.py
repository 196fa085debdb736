"""What scores adapters by a metric that is made after training, and what it is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adaptive_lora.study.scoring import metric_of_study
from adaptive_lora.training.generation import attached_from

if TYPE_CHECKING:  # which holds the scorer
    from adaptive_lora.study.engines.engine import Engine


@dataclass(frozen=True)
class Scoring:
    """One model that is being scored."""

    engine: Engine
    run_id: str
    label: str
    adapter: Path | None
    """The folder of a run's adapter; None for the frozen model."""

    def attached(self) -> AbstractContextManager[Any]:
        """The study's base model with the adapter, as long as it is needed."""
        base = self.engine.prepared.base
        return contextlib.nullcontext() if self.adapter is None else attached_from(base, self.adapter)

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives for a part of the records, a list of JSON values; where an earlier call made it, that."""
        key, scores = metric_of_study(self.engine.prepared.study).key, self.engine.ledger.scores
        if (known := scores.part(self.run_id, key, name)) is not None:
            return known
        if self.engine.should_stop():
            raise KeyboardInterrupt
        found = make()
        scores.keep_part(self.run_id, key, name, found)
        return found


class Scorer(Protocol):
    """Gives every record a value."""

    by: str
    """What scores, in a sentence: such as `the command of analysis.metric`."""
    frozen: bool
    """Whether it can score the frozen model too."""
    facts: Mapping[str, Any]
    """What values rest on beside what the study file says: versions, hashes, lengths."""

    def values(self, scoring: Scoring, told: Callable[[int, int], None]) -> dict[str, float]:
        """Record -> value; `told` hears how many of how many records are done."""
