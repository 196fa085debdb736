"""Options of `run` that say who trains, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptive_lora.errors import UsageError

if TYPE_CHECKING:
    from adaptive_lora.study.executors.door import Workers
    from adaptive_lora.study.runner import Limits


def limits_of(bank_size: int | None, shard: str | None) -> Limits:
    """What bounds the call."""
    from adaptive_lora.study.runner import Limits
    from adaptive_lora.study.shards import Shard

    return Limits(largest_bank=bank_size, shard=Shard.parse(shard) if shard is not None else None)


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
