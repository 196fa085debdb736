"""What a lock says, when it is refused, and how a deviation stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import StudyFileError, StudyFolderError
from adaptive_lora.recipes import list_recipes, recipe
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.lock import (
    check_decidable,
    check_lock,
    decided,
    differences,
    lock_of,
    lock_of_ledger,
    read_lock,
    verdicts_rest_on,
    with_deviation,
    write_lock,
)
from adaptive_lora.study.study_file import Study, load_study

WriteStudy = Callable[..., Path]
FACTS: dict[str, Any] = {"versions": {"torch": "2"}, "model": {"revision": "abc"}, "data": {"fingerprint": "d"}}
JUDGED = ("analysis: {primary: []}", "analysis: {primary: [linear-decay, empirical]}")


def test_seeds_that_can_decide_nothing_are_refused_with_what_would_do(study_file: WriteStudy) -> None:
    check_decidable(load_study(study_file(JUDGED, ("evaluation: 2", "evaluation: 4"))))
    with pytest.raises(StudyFileError, match=r"3 evaluation seeds can decide nothing; give 4 or more, or") as error:
        check_decidable(load_study(study_file(JUDGED, ("evaluation: 2", "evaluation: 3"))))
    assert "line 6, seeds.evaluation" in str(error.value)


def test_a_first_look_at_two_seeds_is_refused(study_file: WriteStudy) -> None:
    def asked(looks: str) -> Study:
        return load_study(study_file(JUDGED, ("evaluation: 2", f"evaluation: 6, looks: {looks}")))

    check_decidable(asked("[3, 6]"))
    with pytest.raises(StudyFileError, match=r"line 6, seeds\.looks: the first look has 2 seeds.*begin with 3"):
        check_decidable(asked("[2, 6]"))


def test_more_than_a_handful_are_no_hypotheses(study_file: WriteStudy) -> None:
    def asked(budgets: int) -> Study:
        own = ", ".join(f"'rank:{rank}'" for rank in range(1, budgets + 1))
        return load_study(study_file(JUDGED, ('["rank:2"]', f"[{own}]"), ("evaluation: 2", "evaluation: 12")))

    check_decidable(asked(5))
    with pytest.raises(StudyFileError, match=r"analysis\.primary: too many primary comparisons .12; at most 10"):
        check_decidable(asked(6))


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_can_decide_what_it_asks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("ADAPTIVE_LORA_ASSETS", "ADAPTIVE_LORA_REASONING"):
        monkeypatch.setenv(place, "anywhere")
    check_decidable(load_study(recipe(name)))


def test_a_study_without_hypotheses_needs_no_seeds(study_file: WriteStudy) -> None:
    check_decidable(load_study(study_file()))


def test_a_lock_says_what_was_decided(study_file: WriteStudy) -> None:
    study = load_study(study_file(JUDGED, ("controls: none", "controls: all"), ("evaluation: 2", "evaluation: 7")))
    lock = lock_of(study, FACTS)
    assert lock["primary"] == [{"arm": arm, "budget": "rank:2"} for arm in ("linear-decay", "empirical")]
    assert lock["hypotheses"][0] == (
        "linear-decay differs in test loss from uniform at rank:2, or is equivalent to it within 0.01 nats per token"
    )
    assert lock["exploratory"] == [{"arm": arm, "budget": "rank:2"} for arm in ("random", "shuffled")]
    assert lock["controls"] == {
        "arms": {"shuffled": "linear-decay"}, "baseline_alone_at": ["rank:1", "rank:4"], "compute": {},
        "twin": True,
    }  # fmt: skip
    assert lock["identity"] == study.identity and lock["spec"] == study.spec.model_dump(mode="json")
    assert lock["seeds"] == {"evaluation": list(range(7)), "tuning": []}
    assert {name: lock[name] for name in FACTS} == FACTS and lock["deviations"] == []


def test_a_lock_has_the_looks_and_how_the_margin_is_measured(study_file: WriteStudy) -> None:
    judged = (JUDGED[0], JUDGED[1].replace("{primary", "{margin: half-budget, primary"))
    looks = ("evaluation: 2", "evaluation: 6, looks: [3, 6]")
    study = load_study(study_file(judged, looks, ("controls: none", "controls: [half]")))
    lock = lock_of(study, FACTS)
    assert lock["seeds"]["looks"] == [3, 6]
    assert lock["hypotheses"][0].endswith("is equivalent to it within a quarter of what half the budget costs")
    assert verdicts_rest_on(lock["spec"], lock["primary"])["looks"] == [3, 6]


def test_a_lock_says_whose_ranks_each_control_shuffles(study_file: WriteStudy) -> None:
    seeds = ("evaluation: 2", "evaluation: 7")
    study = load_study(study_file(JUDGED, ("controls: none", "controls: [own-shuffled]"), seeds))
    controls = lock_of(study, FACTS)["controls"]
    assert controls["arms"] == controls["shadows"] == {"shuffled-empirical": "empirical"}
    assert "shadows" not in lock_of(load_study(study_file()), FACTS)["controls"]


def locked(study: Study, folder: Path) -> dict[str, Any]:
    write_lock(folder, lock_of(study, FACTS))
    found = read_lock(folder)
    assert found is not None
    return found


def test_a_deviation_keeps_the_first_date_and_what_changed(study_file: WriteStudy, tmp_path: Path) -> None:
    before = locked(load_study(study_file()), tmp_path)
    changed = load_study(study_file(("seeds: {evaluation: 2}", "seeds: {evaluation: 3}"), name="b.yaml"))
    now = with_deviation({**before, "locked": "then"}, lock_of(changed, FACTS), "a seed more", 4)
    assert now["locked"] == "then" and now["identity"] == changed.identity
    (deviation,) = now["deviations"]
    assert deviation["reason"] == "a seed more"
    assert deviation["differences"] == ["seeds.evaluation: [0, 1] locked, [0, 1, 2] now"]
    again = with_deviation(now, lock_of(load_study(study_file()), FACTS), "back", 6)
    assert [d["reason"] for d in again["deviations"]] == ["a seed more", "back"]


def test_no_lock_is_nothing_and_a_torn_one_is_refused(tmp_path: Path) -> None:
    assert read_lock(tmp_path) is None
    for text in ("{", "[]", json.dumps({"identity": "x"})):
        StudyPaths(tmp_path).decisions.write_text(text)
        with pytest.raises(StudyFolderError, match=r"file is corrupt.*`adaptive-lora recover .* writes it again"):
            read_lock(tmp_path)


def test_differences_name_every_value_that_differs() -> None:
    old, new = {"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"b": 2, "c": [1, 3]}, "e": None, "f": "x"}
    assert list(differences(old, new, ("there", "here"))) == [
        "a.b: 1 there, 2 here", "a.c[1]: 2 there, 3 here", "d: 1 there, None here", "f: None there, 'x' here",
    ]  # fmt: skip
    assert not list(differences(old, old, ("there", "here")))


def test_lock_and_ledger_are_held_against_each_other(study_file: WriteStudy, tmp_path: Path) -> None:
    study = load_study(study_file(JUDGED, ("evaluation: 2", "evaluation: 4")))
    lock = json.loads(json.dumps(lock_of(study, FACTS)))
    ledger = {**FACTS, "identity": study.identity, "spec": lock["spec"], "lock": decided(lock)}
    check_lock(tmp_path, lock, ledger)
    assert lock_of_ledger(ledger) == lock
    of_before = {key: value for key, value in decided(lock).items() if key not in ("digest", "exploratory", "seeds")}
    check_lock(tmp_path, lock, {**ledger, "lock": of_before})
    assert lock_of_ledger({**ledger, "lock": of_before}) is None  # it does not have all of it

    named = lock["hypotheses"][1]
    rewritten = {
        "locked: '1999' in the lock, ": {"locked": "1999"},
        "hypotheses.* in the ledger": {"hypotheses": [named]},
        "first: .*None in the ledger": {"first": {"seeds": [1]}},
        "its `spec` is not the one": {"spec": {**lock["spec"], "budgets": ["rank:9"]}},
        "data.fingerprint: 'e' in the lock, 'd' in the ledger": {"data": {"fingerprint": "e"}},
        "its digest, which the ledger has, is another": {"versions": {"torch": "1"}},
    }
    for match, change in rewritten.items():
        with pytest.raises(StudyFolderError, match=f"{match}.*adaptive-lora recover .* --deviation REASON"):
            check_lock(tmp_path, {**lock, **change}, ledger)


def test_a_lock_is_one_deviation_ahead_of_the_ledger_and_never_another_study(
    study_file: WriteStudy, tmp_path: Path
) -> None:
    study, other = (
        load_study(study_file(JUDGED, ("evaluation: 2", f"evaluation: {n}"), name=f"{n}.yaml")) for n in (4, 5)
    )
    lock, now = lock_of(study, FACTS), lock_of(other, FACTS)
    ledger = {**FACTS, "identity": study.identity, "spec": lock["spec"], "lock": decided(lock)}
    check_lock(tmp_path, with_deviation(lock, now, "more seeds", 3), ledger)  # killed before the ledger was written
    with pytest.raises(StudyFolderError, match=r"identity: .* in the lock, .* in the ledger; spec\.seeds"):
        check_lock(tmp_path, now, ledger)  # rewritten with all that belongs to it, as if it had been so from the start
