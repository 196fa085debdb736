"""What a study's models answered to a few test records, as a page shows it; read from its facts, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.study.results import ANSWERS


@dataclass(frozen=True)
class Speaker:
    """Who answers: the frozen model, or the run of an arm."""

    role: str
    """`frozen`, `baseline` or `best`."""
    arm: str | None
    budget: str | None
    seed: int | None

    @property
    def name(self) -> str:
        """`uniform at rank:8`."""
        return "the frozen model" if self.arm is None else f"{self.arm} at {self.budget}"

    @property
    def label(self) -> str:
        """`baseline: uniform at rank:8`."""
        return (
            self.name if self.arm is None else f"{'best other arm' if self.role == 'best' else self.role}: {self.name}"
        )


@dataclass(frozen=True)
class Answer:
    """What one of them said to a record."""

    text: str
    tokens: int
    ended: bool
    """Whether it ended by itself; otherwise it was stopped."""


@dataclass(frozen=True)
class AnsweredRecord:
    """A test record and what was said to it."""

    place: int
    """In the test split, counted from 0."""
    row: int | None
    """In the source, counted from 0."""
    prompt: str
    """As the model sees it, without control tokens."""
    reference: str
    cut: bool
    """Whether the reference was cut with its text."""
    said: Sequence[tuple[Speaker, Answer | None]]
    """Everyone's answer; None where it is still to come."""


@dataclass(frozen=True)
class Missing:
    """Why answers are missing."""

    reason: str
    """`adapters`, `runs`, `error`; empty where nothing is missing."""
    runs: Sequence[str] = ()
    """Those whose adapters are missing."""
    error: str = ""


@dataclass(frozen=True)
class Answers:
    """The section of a page."""

    tokens: int
    """Most tokens of an answer."""
    speakers: Sequence[Speaker]
    records: Sequence[AnsweredRecord]
    missing: Missing

    @property
    def names(self) -> list[str]:
        """Of those who answer."""
        return [speaker.name for speaker in self.speakers]

    @property
    def seed(self) -> int | None:
        """Of the runs that answer."""
        return next((speaker.seed for speaker in self.speakers if speaker.seed is not None), None)

    @property
    def best(self) -> str | None:
        """The best arm beside the baseline, with its budget; None in a study that has no other."""
        return next((speaker.name for speaker in self.speakers if speaker.role == "best"), None)


def answers_of(facts: Mapping[str, Any]) -> Answers | None:
    """From a study's facts; None where it asked for none, or is older than answers.

    StudyFolderError where what is recorded has another form.
    """
    kept = facts.get(ANSWERS)
    if kept is None:
        return None
    try:
        missing = kept.get("missing", {"reason": ""})
        speakers = [_speaker(one) for one in kept.get("speakers", ())]
        return Answers(
            int(kept.get("tokens", 0)),
            speakers,
            list(_records(kept.get("records", ()), speakers)),
            Missing(str(missing["reason"]), list(map(str, missing.get("runs", ()))), str(missing.get("error", ""))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StudyFolderError(
            f"The recorded answers of the study have another form ({type(error).__name__}: {error}). Export it again "
            "with `results --out`, or delete `answers.json` there: all else can be read without it."
        ) from None


def _speaker(kept: Mapping[str, Any]) -> Speaker:
    arm, budget, seed = kept["arm"], kept["budget"], kept["seed"]
    return Speaker(
        str(kept["role"]),
        None if arm is None else str(arm),
        None if budget is None else str(budget),
        None if seed is None else int(seed),
    )


def _records(kept: Sequence[Mapping[str, Any]], speakers: Sequence[Speaker]) -> Iterator[AnsweredRecord]:
    for record in kept:
        answers = [
            None if one is None else Answer(str(one["text"]), int(one["tokens"]), bool(one["ended"]))
            for one in record["answers"]
        ]
        yield AnsweredRecord(
            int(record["place"]),
            None if record["row"] is None else int(record["row"]),
            str(record["prompt"]),
            str(record["reference"]),
            bool(record["cut"]),
            list(zip(speakers, answers, strict=True)),
        )
