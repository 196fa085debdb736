"""Options of `run` that say who trains, as values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_lora.errors import UsageError

if TYPE_CHECKING:
    from adaptive_lora.study.executors.door import Workers
    from adaptive_lora.study.shards import Shard


ExecutorOption = Annotated[
    str, typer.Option(help="Who trains the banks: local (this process), processes, ray or slurm.")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="How many banks at a time; by default one to each accelerator, or core.")
]
ResourceOption = Annotated[
    list[str] | None, typer.Option(help="What a bank needs of ray or slurm, as NAME=VALUE; repeat for more.")
]
LeaseOption = Annotated[float, typer.Option(help="A worker without a sign of life for so long is given up.")]
BankSizeOption = Annotated[int | None, typer.Option(help="Most runs trained together; at most 64.", min=1)]
ShardOption = Annotated[
    str | None, typer.Option(help="i/n: train every n-th bank alone, without a driver; `merge` joins the folders.")
]
MergedOption = Annotated[
    Path | None, typer.Option(help="With --shard: a folder of `merge`, whose results this shard goes on from.")
]


def shard_of(text: str | None) -> Shard | None:
    """The share that was asked for; UsageError where it is none."""
    from adaptive_lora.study.shards import Shard

    return None if text is None else Shard.parse(text)


def workers_of(executor: str, count: int | None, resources: Sequence[str] | None, lease_seconds: float) -> Workers:
    """Who trains; UsageError with all that is wrong."""
    from adaptive_lora.study.executors.door import Workers

    return Workers(executor, count, lease_seconds, dict(map(_pair, resources or ())))


def _pair(text: str) -> tuple[str, int | float | str]:
    """
    >>> _pair("gpus=1"), _pair("memory_gb=7.5"), _pair("partition=short")
    (('gpus', 1), ('memory_gb', 7.5), ('partition', 'short'))
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"A resource is NAME=VALUE, such as gpus=1; got {text!r}.")
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value
