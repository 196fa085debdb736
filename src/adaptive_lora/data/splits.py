"""Train, validation and test: disjoint by content, the same for every run of a study."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.records import Record, RecordSet
from adaptive_lora.errors import DataError
from adaptive_lora.streams import derive_seed, numpy_stream

_HASHED = 1000
"""Of a large pool this many records tell how all of it is encoded; a hub data set would take half a minute."""


@dataclass(frozen=True)
class Splits:
    """The study's material. Validation and test are fixed; every seed draws its training records from the pool."""

    pool: tuple[Record, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    duplicates: int
    """Records left out because an equal one was there before."""
    unusable: int
    """Records met that left no room for a completion within `max_length`."""
    encoder: Encoder

    @functools.cached_property
    def encoding_hash(self) -> str:
        """Hash of the examples as the model sees them; records alone do not tell of another tokenizer or chat
        template. The pool is in the order of a hash, so that its first records are as good as any."""
        pool = self.encoder.encode_all(self.pool[:_HASHED])
        return hash_examples(itertools.chain(self.validation, self.test, pool))

    def training_subset(self, count: int, seed: int) -> tuple[Example, ...]:
        """`count` training examples of this seed, from its stream `subset`.

        DataError where the pool has too few records with room for a completion.
        """
        order = numpy_stream(seed, "subset").permutation(len(self.pool))
        found: list[Example] = []
        for example in self.encoder.encode_all(self.pool[i] for i in order):
            if len(found) == count:
                break
            if example.completion_tokens > 0:
                found.append(example)
        if len(found) < count:
            raise DataError(
                f"`data.train` asks for {count:,} records, but only {len(found):,} of the {len(self.pool):,} left for "
                f"training have room for a completion within {self.encoder.max_length} tokens. "
                "Ask for fewer, or raise `max_length`."
            )
        return tuple(found)


def hash_examples(examples: Iterable[Example]) -> str:
    """SHA-256 of the token ids and prompt lengths of examples, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        later = [place for span in example.unlearnt for place in span]
        digest.update(np.array([example.prompt_length, len(example.ids), *example.ids, *later], dtype="<i8").tobytes())
    return digest.hexdigest()


def make_splits(source: RecordSet, encoder: Encoder, train: int, validation: int, test: int, seed: int = 0) -> Splits:
    """Fixed test and validation examples, and the pool that is left for training.

    Exact duplicates count once, and records that ask the same thing stay together, so that no prompt of
    the test is ever trained on. Which record goes where is decided by a hash of its prompt and `seed`:
    neither order nor additions reshuffle the rest. Raises DataError where the data are too few.
    """
    groups, duplicates = _group(source.records)
    ordered = sorted(groups.values(), key=lambda group: _position(group[0], seed))
    total = sum(map(len, ordered))
    if total < train + validation + test:
        raise DataError(
            f"{source.name} has {total:,} different records, but the splits ask for {train + validation + test:,} "
            f"(train {train:,}, validation {validation:,}, test {test:,}). Ask for fewer under `data`."
        )
    taken, rest, unusable = _take(ordered, encoder, [test, validation])
    if len(taken[0]) < test or len(taken[1]) < validation or len(rest) < train:
        raise DataError(
            f"{source.name}: keeping records that ask the same together, and leaving out {unusable:,} without room "
            f"for a completion within {encoder.max_length} tokens, test {len(taken[0]):,} of {test:,}, "
            f"validation {len(taken[1]):,} of "
            f"{validation:,} and training {len(rest):,} of {train:,} remain. Ask for fewer, or raise `max_length`."
        )
    return Splits(tuple(rest), tuple(taken[1]), tuple(taken[0]), duplicates, unusable, encoder)


def calibration_subset(training: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` of the training examples (all, if there are fewer) from the stream `calibration`."""
    order = numpy_stream(seed, "calibration").permutation(len(training))
    return [training[i] for i in order[:count]]


def _group(records: Iterable[Record]) -> tuple[dict[str, list[Record]], int]:
    """Records without exact duplicates, together by what they ask."""
    groups: dict[str, list[Record]] = {}
    seen: set[str] = set()
    duplicates = 0
    for record in records:
        if (key := record.content_key()) in seen:
            duplicates += 1
            continue
        seen.add(key)
        groups.setdefault(record.prompt_key(), []).append(record)
    return groups, duplicates


def _position(record: Record, seed: int) -> str:
    return hashlib.sha256(f"{derive_seed(seed, 'split')} {record.prompt_key()}".encode()).hexdigest()


def _take(
    groups: Sequence[list[Record]], encoder: Encoder, sizes: Sequence[int]
) -> tuple[list[list[Example]], list[Record], int]:
    """Fills splits of `sizes` in turn with whole groups; the rest is returned unencoded."""
    taken: list[list[Example]] = [[] for _ in sizes]
    rest: list[Record] = []
    unusable = 0
    for at, group in enumerate(groups):
        open_ = [i for i, size in enumerate(sizes) if len(taken[i]) < size]
        if not open_:
            rest.extend(record for later in groups[at:] for record in later)
            break
        usable = [example for example in encoder.encode_all(group) if example.completion_tokens > 0]
        unusable += len(group) - len(usable)
        fits = [i for i in open_ if len(taken[i]) + len(usable) <= sizes[i]]
        if usable and fits:
            taken[fits[0]].extend(usable)
        elif usable:
            rest.extend(group)
    return taken, rest, unusable
