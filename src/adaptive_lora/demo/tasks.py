"""Instruction tasks in Alpaca form with exact answers, drawn from a seed.

Two groups of families: the demo model is pretrained on `PRETRAINING`; `FINE_TUNING` is what it has
not seen, near enough to what it knows that an adapter can learn it from a few hundred records.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from adaptive_lora.demo import words as w
from adaptive_lora.errors import DataError, nearest_hint
from adaptive_lora.streams import python_stream


class Task(NamedTuple):
    """One question: an instruction, its input (may be empty) and the one right answer."""

    instruction: str
    input: str
    output: str


Draw = random.Random
Family = Callable[[Draw], Task]


def _items(draw: Draw, low: int = 3, high: int = 5) -> list[str]:
    return draw.sample(w.WORDS, draw.randint(low, high))


def _joined(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _of_list(instruction: str, answer: Callable[[list[str]], object]) -> Family:
    """A family that asks one thing about a list of different words."""

    def family(draw: Draw) -> Task:
        items = _items(draw)
        return Task(instruction, _joined(items), str(answer(items)))

    return family


def _of_pair(instruction: str, answer: Callable[[int, int], object], top: int = 50) -> Family:
    """A family that asks one thing about two different numbers, the larger first."""

    def family(draw: Draw) -> Task:
        small, large = sorted(draw.sample(range(top), 2))
        return Task(instruction, f"{large} and {small}", str(answer(large, small)))

    return family


def _of_numbers(instruction: str, answer: Callable[[list[int]], object]) -> Family:
    """A family that asks one thing about a few different numbers in any order."""

    def family(draw: Draw) -> Task:
        numbers = draw.sample(range(1, 100), draw.randint(2, 4))
        return Task(instruction, _joined(numbers), str(answer(numbers)))

    return family


def _of_facts(question: str, facts: dict[str, str]) -> Family:
    """A family that asks for the value of a fact; `{}` in the question is its key."""
    pairs = sorted(facts.items())

    def family(draw: Draw) -> Task:
        key, value = draw.choice(pairs)
        return Task(question.format(key), "", value)

    return family


def _inverse(facts: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in facts.items()}


def _after(cycle: Sequence[str], step: int) -> dict[str, str]:
    return {item: cycle[(i + step) % len(cycle)] for i, item in enumerate(cycle)}


def _larger(draw: Draw) -> Task:
    pair = draw.sample(range(100), 2)
    return Task("Which number is larger?", " and ".join(map(str, pair)), str(max(pair)))


def _sequence(draw: Draw) -> Task:
    start, step = draw.randint(1, 20), draw.randint(1, 5)
    return Task("Continue the sequence with one number.", _joined(start + i * step for i in range(4)),
                str(start + 4 * step))  # fmt: skip


def _category(draw: Draw) -> Task:
    name = draw.choice(sorted(w.CATEGORIES))
    return Task("Name the category of the word.", draw.choice(w.CATEGORIES[name]), name)


def _odd_one_out(draw: Draw) -> Task:
    same, other = draw.sample(sorted(w.CATEGORIES), 2)
    odd = draw.choice(w.CATEGORIES[other])
    items = [*draw.sample(w.CATEGORIES[same], 3), odd]
    draw.shuffle(items)
    return Task("Which word does not belong to the others?", _joined(items), odd)


def _contains(draw: Draw) -> Task:
    items = _items(draw)
    wanted = draw.choice(items if draw.random() < 0.5 else sorted(set(w.WORDS) - set(items)))
    return Task(f"Is {wanted} in the list?", _joined(items), "yes" if wanted in items else "no")


def _replace(draw: Draw) -> Task:
    items = _items(draw)
    old, new = draw.choice(items), draw.choice(sorted(set(w.WORDS) - set(items)))
    return Task(f"Replace {old} with {new}.", _joined(items), _joined(new if i == old else i for i in items))


def _lookup_table(draw: Draw) -> tuple[list[tuple[str, str]], tuple[str, str]]:
    keys, values = draw.sample(w.NAMES, 3), draw.sample(w.FRUITS, 3)
    pairs = list(zip(keys, values, strict=True))
    return pairs, draw.choice(pairs)


def _lookup(draw: Draw) -> Task:
    pairs, (name, fruit) = _lookup_table(draw)
    return Task(f"What does {name} like?", _joined(f"{n} likes {f}" for n, f in pairs), fruit)


def _lookup_back(draw: Draw) -> Task:
    pairs, (name, fruit) = _lookup_table(draw)
    return Task(f"Who likes {fruit}?", _joined(f"{n} likes {f}" for n, f in pairs), name)


def _count_word(draw: Draw) -> Task:
    wanted, *rest = draw.sample(w.WORDS, 4)
    times = draw.randint(1, 4)
    items = [wanted] * times + rest[: draw.randint(1, 3)]
    draw.shuffle(items)
    return Task(f"How often is {wanted} in the list?", _joined(items), str(times))


def _without_repeats(draw: Draw) -> Task:
    items = draw.sample(w.WORDS, 3)
    repeated = items + [draw.choice(items) for _ in range(draw.randint(1, 2))]
    draw.shuffle(repeated)
    return Task("Remove the repeated words.", _joined(repeated), _joined(dict.fromkeys(repeated)))


PRETRAINING: dict[str, Family] = {
    "copy-list": _of_list("Repeat the list.", _joined),
    "first-item": _of_list("What is the first word in the list?", lambda items: items[0]),
    "last-item": _of_list("What is the last word in the list?", lambda items: items[-1]),
    "reverse-list": _of_list("Reverse the list.", lambda items: _joined(items[::-1])),
    "sort-list": _of_list("Sort the list in alphabetical order.", lambda items: _joined(sorted(items))),
    "count-items": _of_list("How many words are in the list?", len),
    "without-first": _of_list("Remove the first word from the list.", lambda items: _joined(items[1:])),
    "join-with-and": _of_list("Join the words with and.", " and ".join),
    "contains": _contains,
    "replace": _replace,
    "without-repeats": _without_repeats,
    "add": _of_pair("Add the two numbers.", lambda a, b: a + b),
    "larger": _larger,
    "largest": _of_numbers("Find the largest number.", max),
    "parity": _of_numbers("Is the first number even or odd?", lambda n: "odd" if n[0] % 2 else "even"),
    "sequence": _sequence,
    "next-day": _of_facts("Which day comes after {}?", _after(w.DAYS, 1)),
    "next-month": _of_facts("Which month comes after {}?", _after(w.MONTHS, 1)),
    "capital": _of_facts("What is the capital of {}?", w.CAPITALS),
    "opposite": _of_facts("What is the opposite of {}?", w.OPPOSITES),
    "past-tense": _of_facts("What is the past tense of {}?", w.PAST_TENSES),
    "plural": _of_facts("What is the plural of {}?", w.PLURALS),
    "category": _category,
    "lookup": _lookup,
}

FINE_TUNING: dict[str, Family] = {
    "second-item": _of_list("What is the second word in the list?", lambda items: items[1]),
    "without-last": _of_list("Remove the last word from the list.", lambda items: _joined(items[:-1])),
    "first-and-last": _of_list("Give the first and the last word.", lambda i: f"{i[0]} and {i[-1]}"),
    "sort-backwards": _of_list("Sort the list backwards.", lambda i: _joined(sorted(i, reverse=True))),
    "smallest": _of_numbers("Find the smallest number.", min),
    "sort-numbers": _of_numbers("Sort the numbers.", lambda numbers: _joined(sorted(numbers))),
    "subtract": _of_pair("Subtract the second number from the first.", lambda a, b: a - b, top=20),
    "previous-day": _of_facts("Which day comes before {}?", _after(w.DAYS, -1)),
    "country": _of_facts("Which country has the capital {}?", _inverse(w.CAPITALS)),
    "count-word": _count_word,
    "lookup-back": _lookup_back,
    "odd-one-out": _odd_one_out,
}

GROUPS = {"pretraining": PRETRAINING, "fine-tuning": FINE_TUNING, "all": {**PRETRAINING, **FINE_TUNING}}


def stream(group: str, seed: int) -> Iterator[dict[str, str]]:
    """Endless Alpaca records with a `family` field, families in turn at random.

    Raises DataError for a group that does not exist.
    """
    if group not in GROUPS:
        raise DataError(
            f"The demo has no group of tasks called {group!r}{nearest_hint(group, GROUPS)}; "
            f"write `demo:` and one of {', '.join(GROUPS)}."
        )
    families = sorted(GROUPS[group].items())
    draw = python_stream(seed, "demo", group)
    while True:
        name, family = draw.choice(families)
        yield {**family(draw)._asdict(), "category": name}


def generate(group: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """The first `count` records of `stream` whose question has not come before.

    The same arguments give the same records on every machine. Where the families run out of new
    questions (some have a dozen), the list ends early.

    >>> generate("fine-tuning", 1, seed=3)[0].keys() == {"instruction", "input", "output", "category"}
    True
    """
    seen: set[tuple[str, str]] = set()
    records: list[dict[str, str]] = []
    for attempt, record in enumerate(stream(group, seed)):
        if len(records) == count or attempt > 20 * count + 1000:
            break
        question = (record["instruction"], record["input"])
        if question not in seen:
            seen.add(question)
            records.append(record)
    return records
