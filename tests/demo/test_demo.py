"""The embedded default: exact tasks, a model that has really learnt, small enough to ship."""

from __future__ import annotations

import json

import pytest

from adaptive_lora import demo
from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.demo.tasks import FINE_TUNING, GROUPS, PRETRAINING, generate
from adaptive_lora.errors import DataError
from adaptive_lora.streams import python_stream
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import evaluate

ANSWERS = {
    "reverse-list": lambda i, x: ", ".join(x.split(", ")[::-1]),
    "sort-list": lambda i, x: ", ".join(sorted(x.split(", "))),
    "sort-backwards": lambda i, x: ", ".join(sorted(x.split(", "), reverse=True)),
    "count-items": lambda i, x: str(x.count(",") + 1),
    "without-last": lambda i, x: x.rpartition(", ")[0],
    "second-item": lambda i, x: x.split(", ")[1],
    "first-and-last": lambda i, x: f"{x.split(', ')[0]} and {x.split(', ')[-1]}",
    "add": lambda i, x: str(sum(map(int, x.split(" and ")))),
    "subtract": lambda i, x: str(int(x.split(" and ")[0]) - int(x.split(" and ")[1])),
    "larger": lambda i, x: str(max(map(int, x.split(" and ")))),
    "smallest": lambda i, x: str(min(map(int, x.split(", ")))),
    "sort-numbers": lambda i, x: ", ".join(map(str, sorted(map(int, x.split(", "))))),
    "count-word": lambda i, x: str(x.split(", ").count(i.split()[3])),
    "contains": lambda i, x: "yes" if i.split()[1] in x.split(", ") else "no",
    "lookup": lambda i, x: x.split(f"{i.split()[2]} likes ")[1].split(",")[0],
    "lookup-back": lambda i, x: x.split(f" likes {i.split()[2][:-1]}")[0].split()[-1],
    "without-repeats": lambda i, x: ", ".join(dict.fromkeys(x.split(", "))),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_right_by_an_independent_solver(name: str) -> None:
    draw = python_stream(5, name)
    for _ in range(50):
        task = GROUPS["all"][name](draw)
        assert task.output == ANSWERS[name](task.instruction, task.input)


def test_same_seed_equal_other_seed_different() -> None:
    assert generate("all", 50, 1) == generate("all", 50, 1)
    assert generate("all", 50, 1) != generate("all", 50, 2)


def test_groups_share_no_family_and_there_are_many() -> None:
    assert not set(PRETRAINING) & set(FINE_TUNING)
    assert len(GROUPS["all"]) >= 30
    questions = {r["instruction"] for r in generate("pretraining", 500)}
    assert not questions & {r["instruction"] for r in generate("fine-tuning", 500)}


def test_questions_do_not_repeat() -> None:
    records = generate("all", 2000)
    assert len({(r["instruction"], r["input"]) for r in records}) == len(records) == 2000


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'fine-tuning'"):
        generate("finetuning", 3)


def test_the_model_is_small_and_has_learnt(embedded: FrozenBase) -> None:
    weights = list(demo.model_folder().glob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= 4_000_000
    assert 1_000_000 <= embedded.outline.total_parameters <= 1_500_000

    encoder = Encoder(embedded.tokenizer, embedded.outline.within(512))
    exact = {}
    for group in ("pretraining", "fine-tuning"):
        records = from_dicts(generate(group, 300, seed=77), "demo").records
        exact[group] = evaluate(embedded.model, list(encoder.encode_all(records)), embedded.device).exact.mean()
    assert exact["pretraining"] > 0.85 and exact["fine-tuning"] < 0.15


def test_the_card_says_what_the_model_does() -> None:
    card = json.loads((demo.model_folder() / "card.json").read_text())
    assert card["exact_match_pretraining"].keys() == PRETRAINING.keys()
    assert card["exact_match_fine_tuning"].keys() == FINE_TUNING.keys()
