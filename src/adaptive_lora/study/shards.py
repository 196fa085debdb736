"""`run --shard i/n`: one of n processes that share a study's banks and never speak to each other, as in an array job.

A shard trains every n-th bank of what is asked for, plans all of it (plans rest on measurements that are taken
together), and stops where it would need what the others have: the rates that tuning chooses, or a look's verdicts. Then
`merge` puts the folders together, and the shards go on from what it made (`--merged`), or one process does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptive_lora.errors import AdaptiveLoraError, StudyFolderError, UsageError

if TYPE_CHECKING:
    from adaptive_lora.study.ledger import Ledger
    from adaptive_lora.study.matrix import Run

FACT = "shard"
"""The ledger's fact that says which share a folder has, and which runs were finished when the shares were made."""
LARGEST_SHARE = 64
"""Most runs of a bank; see `engines.bank.LARGEST_BANK`."""


class ShardWaits(AdaptiveLoraError):
    """A shard has done its share of what can be done before the others' results are there; nothing is wrong."""

    def __init__(self, missing: int) -> None:
        self.missing = missing
        super().__init__(f"{missing} runs are the share of other shards.")

    def __reduce__(self) -> tuple[type[ShardWaits], tuple[int]]:
        return type(self), (self.missing,)


@dataclass(frozen=True)
class Shard:
    """Share `index` (from 0) of `of`.

    >>> Shard.parse("0/3")
    Shard(index=0, of=3)
    """

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `i/n`; UsageError where it is none."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if found is None or int(found[1]) >= int(found[2]):
            raise UsageError(f"A shard is i/n with i from 0 to n - 1, such as 0/3, 1/3 and 2/3; got {text!r}.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def share(self, runs: Mapping[str, Run], size: int | None) -> dict[str, Run]:
        """The runs of every n-th bank; the same for all shards that are given the same runs and `size` of a bank."""
        most = max(1, min(LARGEST_SHARE, size or math.ceil(len(runs) / self.of)))
        banks = list(banks_of(list(runs.items()), most))
        return dict(item for bank in banks[self.index :: self.of] for item in bank)


def banks_of(runs: Sequence[tuple[str, Run]], size: int) -> Iterator[Sequence[tuple[str, Run]]]:
    """Runs by id in banks of at most `size`; a run and its twin, which follows it, stay together where 2 have room."""
    at = 0
    while at < len(runs):
        end = min(at + size, len(runs))
        if end < len(runs) and runs[end][1].replica and end - 1 > at:
            end -= 1
        yield runs[at:end]
        at = end


def finished_before(ledger: Ledger, shard: Shard) -> set[str]:
    """Runs that were finished when the shares were made, noted at the first call; StudyFolderError for another shard's
    folder."""
    known = ledger.facts().get(FACT)
    if known is None:
        known = note_share(ledger, shard, finished_in(ledger))
    elif (known["index"], known["of"]) != (shard.index, shard.of):
        raise StudyFolderError(
            f"The folder is that of shard {known['index']}/{known['of']}, got --shard {shard}. Give every shard a "
            "folder of its own; `adaptive-lora merge` puts them together."
        )
    return set(known["finished"])


def note_share(ledger: Ledger, shard: Shard, finished: set[str]) -> dict[str, Any]:
    """Notes which share a folder has, of all runs but those that were `finished` before."""
    noted = {"index": shard.index, "of": shard.of, "finished": sorted(finished)}
    ledger.set_facts({FACT: noted})
    return noted


def finished_in(ledger: Ledger) -> set[str]:
    """Every run with a result."""
    return {run_id for run_id, status in ledger.statuses(every=True).items() if status.is_finished}
