"""Train, validation and test: disjoint by content, the same for every run of a study."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from adaptive_lora.data.allocation import allocate, is_filled, sizes_that_work
from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.grouping import group_records, without_duplicates
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
    empty: int = 0
    """Records without an answer or a tool call; they are never learnt or measured."""
    idle: int = 0
    """Records in no split, because others that ask the same or are of their conversation are in one."""
    records: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    """The records of `validation` and `test`, in the order of their examples."""

    @functools.cached_property
    def encoding_hash(self) -> str:
        """Hash of the examples as the model sees them; records alone do not tell of another tokenizer or chat
        template. The pool is in the order of a hash, so that its first records are as good as any."""
        pool = self.encoder.encode_all(self.pool[:_HASHED])
        return hash_examples(itertools.chain(self.validation, self.test, pool))

    def training_subset(self, count: int, seed: int) -> tuple[Example, ...]:
        """The examples of `training_draw`."""
        return tuple(example for _, example in self.training_draw(count, seed))

    def training_draw(self, count: int, seed: int) -> tuple[tuple[Record, Example], ...]:
        """`count` training records of this seed with their examples, from its stream `subset`.

        DataError where the pool has too few records with something to learn.
        """
        order = numpy_stream(seed, "subset").permutation(len(self.pool))
        drawn, encoded = itertools.tee(self.pool[i] for i in order)
        found: list[tuple[Record, Example]] = []
        for record, example in zip(drawn, self.encoder.encode_all(encoded), strict=False):
            if len(found) == count:
                break
            if _is_usable(record, example):
                found.append((record, example))
        if len(found) < count:
            raise DataError(
                f"`data.train` asks for {count:,} records, but only {len(found):,} of the {len(self.pool):,} left for "
                f"training have room for a completion within {self.encoder.max_length} tokens. "
                f"Ask for `train: {len(found)}`, or raise `max_length`."
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

    Exact duplicates count once, and records that ask the same thing or are of one conversation stay together
    (`group_records`), so that no prompt of the test is ever trained on. Which record goes where is decided by a hash of
    its prompt and `seed`: neither order nor additions reshuffle the rest. Where whole groups cannot fill a split, part
    of one fills it, and the rest of that group is in no split. Raises DataError, with sizes that work, where the data
    are too few.
    """
    records = without_duplicates(source.records)
    material = _Material.of(records, encoder, seed)
    taken, rest = material.first_fit([test, validation])
    idle = 0
    if sum(map(len, taken)) < test + validation or len(rest) < train:
        sizes = [len(material.usable(i)) for i in range(len(material.groups))]
        found = allocate(sizes, [test, validation], train)
        if not is_filled(found, [test, validation], train):
            raise _too_few(source, material, (train, validation, test))
        taken = [[pair for i, count in part for pair in material.part(i, count)] for part in found.parts]
        rest, idle = [record for i in found.pool for record in material.groups[i]], found.idle
    tested, validated = (material.in_order(part) for part in taken)
    return Splits(
        pool=tuple(sorted(rest, key=material.place)),
        validation=tuple(example for _, example in validated),
        test=tuple(example for _, example in tested),
        duplicates=len(source.records) - len(records),
        unusable=material.without_room,
        encoder=encoder,
        empty=sum(record.is_empty for record in records),
        idle=idle,
        records={name: tuple(r for r, _ in part) for name, part in (("validation", validated), ("test", tested))},
    )


def calibration_subset(training: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` of the training examples (all, if there are fewer) from the stream `calibration`."""
    order = numpy_stream(seed, "calibration").permutation(len(training))
    return [training[i] for i in order[:count]]


_Pair = tuple[Record, Example]


@dataclass(frozen=True)
class _Material:
    """The groups of a source in their fixed order, encoded as far as they are looked at."""

    groups: Sequence[Sequence[Record]]
    encoder: Encoder
    places: Mapping[int, str]
    """`id` of a record -> its place in the order."""
    _encoded: dict[int, tuple[list[_Pair], int]] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Sequence[Record], encoder: Encoder, seed: int) -> _Material:
        split_seed = derive_seed(seed, "split")
        places = {id(r): hashlib.sha256(f"{split_seed} {r.place_key()}".encode()).hexdigest() for r in records}
        groups = sorted(
            group_records(records, encoder.learn == "all"),
            key=lambda group: min(places[id(record)] for record in group),
        )
        return cls(groups, encoder, places)

    def usable(self, group: int) -> list[_Pair]:
        """The records of a group that have something to learn, with their examples."""
        if group not in self._encoded:
            records = self.groups[group]
            pairs = list(zip(records, self.encoder.encode_all(records), strict=True))
            found = [pair for pair in pairs if _is_usable(*pair)]
            full = sum(not record.is_empty and not example.completion_tokens for record, example in pairs)
            self._encoded[group] = found, full
        return self._encoded[group][0]

    @property
    def without_room(self) -> int:
        """Records met whose prompt leaves no room for an answer."""
        return sum(full for _, full in self._encoded.values())

    def first_fit(self, sizes: Sequence[int]) -> tuple[list[list[_Pair]], list[Record]]:
        """Fills splits of `sizes` in turn with whole groups and reads no further than it must; and what is left."""
        taken: list[list[_Pair]] = [[] for _ in sizes]
        rest: list[Record] = []
        for at, group in enumerate(self.groups):
            open_ = [i for i, size in enumerate(sizes) if len(taken[i]) < size]
            if not open_:
                rest.extend(record for later in self.groups[at:] for record in later)
                break
            usable = self.usable(at)
            fits = [i for i in open_ if len(taken[i]) + len(usable) <= sizes[i]]
            if usable and fits:
                taken[fits[0]].extend(usable)
            elif usable:
                rest.extend(group)
        return taken, rest

    def part(self, group: int, count: int) -> list[_Pair]:
        """`count` records of a group, whatever their order in the source."""
        return sorted(self.usable(group), key=lambda pair: pair[0].content_key())[:count]

    def place(self, record: Record) -> str:
        return self.places[id(record)]

    def in_order(self, pairs: Iterable[_Pair]) -> list[_Pair]:
        return sorted(pairs, key=lambda pair: self.place(pair[0]))


def _is_usable(record: Record, example: Example) -> bool:
    return example.completion_tokens > 0 and not record.is_empty


def _too_few(source: RecordSet, material: _Material, asked: tuple[int, int, int]) -> DataError:
    """What there is, what was asked, and sizes that were tried and work."""
    train, validation, test = asked
    sizes = [len(material.usable(i)) for i in range(len(material.groups))]
    different = sum(map(len, material.groups))
    groups = sum(size > 0 for size in sizes)
    empty = sum(record.is_empty for group in material.groups for record in group)
    advised = sizes_that_work(sizes, [test, validation], train)
    ways = " or ".join(f"`train: {t}, validation: {v}, test: {e}`" for t, e, v in advised)
    longer = "raise `max_length`, or " if material.without_room else ""
    remedy = f"{longer}write {ways} under `data`" if ways else f"{longer}add records that ask something else"
    return DataError(
        f"{source.name} has {different:,} different records, but the splits ask for {sum(asked):,} "
        f"(train {train:,}, validation {validation:,}, test {test:,}). {sum(sizes):,} of them can be used "
        f"({material.without_room:,} are without room for a completion within {material.encoder.max_length} tokens, "
        f"{empty:,} have an empty one), in {groups:,} groups that ask the same or are of one conversation; a group is "
        f"never in two splits. {remedy[0].upper()}{remedy[1:]}."
    )
