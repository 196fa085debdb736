"""What a study says of its data: counts, warnings, and which row of the source went where."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from adaptive_lora.data.encoding import Example
from adaptive_lora.data.notices import TextCounts, count_texts, source_notices, text_notices
from adaptive_lora.data.records import Record, RecordSet
from adaptive_lora.data.splits import Splits

Draw = Sequence[tuple[Record, Example]]
"""The training records of one seed with their examples."""

SPLIT_COLUMNS = ("row", "split", "seed", "record")


def data_counts(source: RecordSet, splits: Splits, draw: Draw) -> dict[str, Any]:
    """What was left out, cut, empty or unknown, by name. `draw` is the first evaluation seed's, and stands for all.

    Texts are counted where they are used: in test, validation and that seed's training records.
    """
    reading, texts = source.reading, _texts(splits, draw)
    return {
        "rows": reading.rows or len(source.records),
        "left_out": dict(reading.left_out),
        "missing": dict(reading.missing),
        "unused_columns": list(reading.unused),
        "empty": splits.empty,
        "idle": splits.idle,
        "truncated_validation": sum(example.truncated for example in splits.validation),
        "truncated_training": sum(example.truncated for _, example in draw),
        **texts.to_json(),
    }


def data_notices(source: RecordSet, splits: Splits, draw: Draw) -> list[str]:
    """The sentences that someone should read before trusting a study on these data."""
    found = source_notices(source.reading)
    found += text_notices(_texts(splits, draw), splits.empty, " of test, validation and the first seed's training")
    limit = splits.encoder.max_length
    if splits.unusable:
        found.append(
            f"records without room for an answer within {limit} tokens are left out; {splits.unusable:,} were met"
        )
    examples = {"test": splits.test, "validation": splits.validation, "training": [example for _, example in draw]}
    cut = {name: sum(example.truncated for example in own) for name, own in examples.items()}
    if any(cut.values()):
        shares = ", ".join(f"{count:,} of {len(examples[name]):,} in {name}" for name, count in cut.items() if count)
        found.append(f"answers are cut at {limit} tokens: {shares}")
    if splits.idle:
        found.append(
            f"{splits.idle:,} records stay unused: others that ask the same, or are of their conversation, fill a split"
        )
    return found


def split_rows(splits: Splits, draws: Mapping[int, Draw]) -> dict[str, Any]:
    """Rows of the source by split: test and validation in the order of their records, the training records of every
    seed in the order in which they were drawn, and the pool that they are drawn from, as [first, last] ranges."""
    return {
        **{name: [record.row for record in records] for name, records in splits.records.items()},
        "training": {str(seed): [record.row for record, _ in draw] for seed, draw in draws.items()},
        "pool": _ranges(sorted(record.row for record in splits.pool if record.row is not None)),
    }


def splits_csv(rows: Mapping[str, Any]) -> str:
    """`split_rows` as CSV with `SPLIT_COLUMNS`: rows are counted from 0, `record` is the place within its split.

    >>> splits_csv({"test": [7], "validation": [], "training": {"1": [5]}, "pool": [[4, 5]]}).splitlines()
    ['row,split,seed,record', '7,test,,0', '4,pool,,', '5,pool,,', '5,training,1,0']
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPLIT_COLUMNS)
    for name in ("test", "validation"):
        writer.writerows((row, name, "", place) for place, row in enumerate(rows[name]))
    writer.writerows((row, "pool", "", "") for first, last in rows["pool"] for row in range(first, last + 1))
    for seed, drawn in rows["training"].items():
        writer.writerows((row, "training", seed, place) for place, row in enumerate(drawn))
    return text.getvalue()


def _texts(splits: Splits, draw: Draw) -> TextCounts:
    records: Iterable[Record] = itertools.chain(*splits.records.values(), (record for record, _ in draw))
    return count_texts(records, splits.encoder.tokenizer)


def _ranges(rows: Sequence[int]) -> list[list[int]]:
    def spans() -> Iterator[list[int]]:
        for _, run in itertools.groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
            members = [row for _, row in run]
            yield [members[0], members[-1]]

    return list(spans())
