"""What a recommendation is about, before any weights are loaded: the model's shape and the data's records."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from adaptive_lora.data.grouping import group_records, without_duplicates
from adaptive_lora.errors import DataError, UsageError
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.outline import ModelOutline
from adaptive_lora.recommend.sizing import FEWEST_RECORDS
from adaptive_lora.recommend.study_text import Question
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.prepare import open_encoder, open_outline, open_records
from adaptive_lora.study.targets import context_warnings, targets_of, warnings_of

SAMPLE = 256
"""Records whose lengths stand for all."""
WORTH_SAYING = 0.05
"""Share of answers that are cut, from which on it is."""
SHORT = 64
"""Tokens a record on average below which an update takes eight records instead of four."""


@dataclass(frozen=True)
class Material:
    """A model and a data set."""

    outline: ModelOutline
    modules: tuple[ModuleShape, ...]
    """Those that get adapters."""
    records: int
    """Usable ones that ask different things."""
    tokens: float
    """A record's, on average."""
    longest: int
    """Tokens of the longest record seen."""
    warnings: tuple[str, ...]

    @property
    def batch_size(self) -> int:
        """Records an update."""
        return 4 if self.tokens >= SHORT else 8


def look_at(question: Question) -> Material:
    """Reads configuration, tokenizer and records; UsageError with the remedy where one of them cannot be used."""
    outline = open_outline(question.model)
    targets = question.targets.split(",") if "," in question.targets else question.targets
    modules = targets_of(outline, targets)
    check_rank(question.rank, modules)
    source = open_records(question.data)
    encoder = open_encoder(question.model, question.max_length, question.template)
    groups = group_records(without_duplicates(source.records), encoder.learn == "all")
    order = numpy_stream(0, "subset").permutation(len(groups))[:SAMPLE]
    seen = list(encoder.encode_all(groups[i][0] for i in order))
    usable = [example for example in seen if example.completion_tokens]
    records = int(len(groups) * len(usable) / max(1, len(seen)))
    if records < FEWEST_RECORDS:
        raise DataError(
            f"{source.name} has about {records:,} different records with room for an answer within "
            f"{encoder.max_length} tokens; a recommendation takes {FEWEST_RECORDS} or more. Add records, or give "
            "`--max-length` more tokens."
        )
    lengths = [len(example.ids) for example in usable]
    warnings = [*warnings_of(outline, modules, ["uniform"]), *context_warnings(outline, question.max_length)]
    cut = sum(example.truncated for example in usable) / len(usable)
    if cut > WORTH_SAYING:
        warnings.append(f"{cut:.0%} of the answers are cut at {encoder.max_length} tokens; `--max-length` takes more.")
    return Material(outline, modules, records, statistics.fmean(lengths), max(lengths), tuple(warnings))


def check_rank(rank: int, modules: tuple[ModuleShape, ...]) -> None:
    """UsageError unless half of a rank is whole and twice of it fits every module."""
    most = min(m.largest_rank for m in modules)
    if rank < 2 or rank % 2 or 2 * rank > most:
        raise UsageError(
            f"`--rank` is the middle of three (its half, itself, twice of it): an even number from 2 to {most // 2} "
            f"for this model's modules, got {rank}."
        )


def middle_rank(modules: tuple[ModuleShape, ...], wanted: int = 8) -> int:
    """The rank that is asked about where none was named: 8, or less where twice of it does not fit every module."""
    most = min(m.largest_rank for m in modules)
    while wanted > 2 and 2 * wanted > most:
        wanted //= 2
    return wanted
