"""One neutral form of what a run made elsewhere scored, item by item."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Item:
    """What a run scored on one item."""

    value: float
    """In the metric's own unit, a mean over `weight`."""
    weight: float = 1.0
    """Tokens or words that the value is a mean over; 1 for a score of the whole item."""
    cluster: str = ""
    """Items of one document or conversation share it; empty for an item of its own."""
    content: str = ""
    """A hash of the item itself, where the file has one: runs on other data are not paired."""
    prompt: str = ""
    """A hash of what the model was asked."""


@dataclass(frozen=True)
class Question:
    """What is compared: one metric of one task."""

    task: str
    """Empty where the source has none."""
    metric: str
    higher_is_better: bool
    unit: str = ""

    @property
    def name(self) -> str:
        """`task: metric`, or the metric alone.

        >>> Question("arc_easy", "acc", True).name
        'arc_easy: acc'
        """
        return f"{self.task}: {self.metric}" if self.task else self.metric


@dataclass(frozen=True)
class Run:
    """What one run scored: per question, item by item or as a mean alone."""

    arm: str
    seed: int | None
    """None where the source does not say; runs of one arm are then numbered in the order they were given."""
    source: str
    """The file, as the user named it."""
    items: dict[Question, dict[str, Item]] = field(default_factory=dict)
    means: dict[Question, float] = field(default_factory=dict)
    """Of questions whose items are not known."""
    settings: dict[str, str] = field(default_factory=dict)
    """How it was made, as far as its file says; a difference between two runs is told."""
    named: bool = True
    """Whether the user or the file said whose run it is, so that a second one of the name is another seed."""

    diverged: set[Question] = field(default_factory=set)
    """What it has no result of because it diverged: a comparison without it is one of survivors."""

    @property
    def questions(self) -> list[Question]:
        """In the order of the source."""
        return [*self.items, *self.means]

    def mean(self, question: Question) -> float:
        """Over all its items, by weight."""
        if question in self.means:
            return self.means[question]
        own = self.items[question].values()
        return math.fsum(i.value * i.weight for i in own) / math.fsum(i.weight for i in own)

    def called(self, arm: str | None, seed: int | None) -> Run:
        """With the name and the seed that the user gave it, where one was given."""
        given = seed if seed is not None else self.seed
        return replace(self, arm=arm or self.arm, seed=given, named=self.named or arm is not None)
