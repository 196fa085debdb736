"""What is in a data set, seen through one model's tokenizer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.grouping import group_records, without_duplicates
from adaptive_lora.data.notices import TextCounts, count_texts, source_notices, text_notices
from adaptive_lora.data.records import Reading, RecordSet
from adaptive_lora.errors import DataError
from adaptive_lora.files import write_atomically


@dataclass(frozen=True)
class Sample:
    """One record as the model would see it."""

    masked: str
    """The prompt, which is not learnt."""
    learnt: str
    """The completion as it comes back from its tokens, end token included."""


@dataclass(frozen=True)
class DataProfile:
    """Counts, lengths in tokens and samples of a data set."""

    source: str
    form: str
    licence: str | None
    records: int
    duplicates: int
    """Records equal to an earlier one; case and white space count."""
    same_prompt: int
    """Further records that ask what an earlier one asks, or are of its conversation; they never part in splits."""
    empty_completions: int
    """Records without an answer or a tool call; they are never used."""
    prompt_tokens: tuple[int, ...]
    """Masked tokens of each record: the prompt, and with `learn: all` what stands between answers."""
    completion_tokens: tuple[int, ...]
    """Learnt tokens of each record."""
    max_length: int
    truncated: int
    """Records that lose the end of their completion at `max_length`."""
    without_room: int
    """Records whose prompt alone fills `max_length`; they are never used."""
    samples: tuple[Sample, ...]
    reading: Reading
    texts: TextCounts

    @property
    def notices(self) -> list[str]:
        """What someone must know before trusting the data."""
        return [*source_notices(self.reading), *text_notices(self.texts, self.empty_completions)]

    def to_json(self) -> dict[str, Any]:
        """Everything but the raw lengths, which are given as quantiles."""
        return {
            "source": self.source, "form": self.form, "licence": self.licence, "records": self.records,
            "duplicates": self.duplicates, "same_prompt": self.same_prompt,
            "empty_completions": self.empty_completions, "max_length": self.max_length,
            "prompt_tokens": quantiles(self.prompt_tokens), "completion_tokens": quantiles(self.completion_tokens),
            "truncated": self.truncated, "truncated_share": self.truncated / self.records,
            "without_room": self.without_room,
            "rows": self.reading.rows or self.records, "left_out": dict(self.reading.left_out),
            "missing": dict(self.reading.missing),
            "columns": {"used": list(self.reading.used), "harmless": list(self.reading.harmless),
                        "unused": list(self.reading.unused)},
            **self.texts.to_json(), "warnings": self.notices,
            "samples": [{"masked": s.masked, "learnt": s.learnt} for s in self.samples],
        }  # fmt: skip


def profile(source: RecordSet, encoder: Encoder, samples: int = 3) -> DataProfile:
    """Encodes every record once, at full length, and counts."""
    longest = replace(encoder, max_length=10**9)
    examples = list(longest.encode_all(source.records))
    different = without_duplicates(source.records)
    limit = encoder.max_length
    return DataProfile(
        source=source.name,
        form=source.form,
        licence=source.licence,
        records=len(examples),
        duplicates=len(source.records) - len(different),
        same_prompt=len(different) - len(group_records(different, encoder.learn == "all")),
        empty_completions=sum(record.is_empty for record in source.records),
        prompt_tokens=tuple(example.prompt_length + _between(example) for example in examples),
        completion_tokens=tuple(len(example.ids) - example.prompt_length - _between(example) for example in examples),
        max_length=limit,
        truncated=sum(example.prompt_length < limit < len(example.ids) for example in examples),
        without_room=sum(example.prompt_length >= limit for example in examples),
        samples=tuple(_sample(encoder, source, i) for i in _spread(len(examples), samples)),
        reading=source.reading,
        texts=count_texts(source.records, encoder.tokenizer),
    )


def quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """Smallest, quartiles, 95 % and largest."""
    marks = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
    return {name: float(np.quantile(lengths, q)) for name, q in marks.items()}


def save_histogram(profile: DataProfile, path: Path) -> None:
    """Lengths of prompts and of whole texts, with the limit, as a picture (PNG, PDF or SVG by its ending)."""
    from matplotlib.figure import Figure

    if path.suffix not in (".png", ".pdf", ".svg"):
        raise DataError(f"{path}: a histogram is written as .png, .pdf or .svg.")
    totals = [p + c for p, c in zip(profile.prompt_tokens, profile.completion_tokens, strict=True)]
    bins = np.linspace(0, max(*totals, profile.max_length) * 1.02, 60).tolist()
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.hist(totals, bins=bins, color="#56B4E9", label="prompt and completion")
    ax.hist(profile.prompt_tokens, bins=bins, histtype="step", color="#D55E00", lw=1.5, label="prompt")
    ax.axvline(profile.max_length, color="black", ls="--", lw=1, label=f"limit {profile.max_length}")
    ax.set_xlabel("tokens")
    ax.set_ylabel("records")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=200)
    write_atomically(path, drawn.getvalue())


def _sample(encoder: Encoder, source: RecordSet, index: int) -> Sample:
    example = encoder.encode(source.records[index])
    return Sample(encoder.tokenizer.decode(example.ids[: example.prompt_length]), encoder.learnt_text(example))


def _between(example: Example) -> int:
    """Masked tokens behind the first answer."""
    return sum(end - begin for begin, end in example.unlearnt)


def _spread(count: int, samples: int) -> list[int]:
    """First, middle and last, or what there is."""
    return sorted({round(i * (count - 1) / max(min(samples, count) - 1, 1)) for i in range(min(samples, count))})
