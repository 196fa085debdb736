"""Errors of a study file: where, what arrived, what is allowed, the nearest right name."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, Tag, ValidationError

from adaptive_lora.errors import nearest_hint
from adaptive_lora.study.seeds import SEEDS_FROM, expand_seeds
from adaptive_lora.study.yaml import Location


def complaints_of(error: ValueError, model: type[BaseModel], data: Any) -> Iterator[tuple[Location, str]]:
    """(location, message) for every problem pydantic found."""
    if not isinstance(error, ValidationError):
        yield (), str(error)
        return
    for problem in error.errors():
        at = _without_types(problem["loc"], data)
        yield at, _in_words(problem, at, model)


def cross_complaints(data: dict[str, Any]) -> Iterator[tuple[Location, str]]:
    """What one value alone cannot say: names that must exist or differ, seeds that must not meet.

    Works on the raw data, so that it is said together with everything else; what is not of the
    expected type is passed over here, since pydantic speaks of it.
    """
    arms = [arm for arm in _part(data, "arms", list) if isinstance(arm, str | dict)]
    names = [arm if isinstance(arm, str) else str(arm.get("name") or arm.get("strategy") or "ranks") for arm in arms]
    for name, count in Counter(names).items():
        if count > 1:
            yield ("arms",), f"{count} arms are called {name!r}; give each its own `name`"
    yield from _repeats(data, arms)
    baseline = str(_part(data, "analysis", dict).get("baseline", "uniform"))
    if names and baseline not in names:
        hint = nearest_hint(baseline, names)
        yield ("analysis", "baseline"), f"no arm is called {baseline!r}{hint}; arms: {', '.join(names)}"
    yield from _one_size(data, dict(zip(names, arms, strict=True)).get(baseline), baseline)
    yield from _seed_complaints(data)
    fixed = {name for name, arm in zip(names, arms, strict=True) if isinstance(arm, dict) and arm.get("ranks")}
    yield from _primary_complaints(data, names, baseline, fixed)


def _primary_complaints(
    data: dict[str, Any], names: list[str], baseline: str, fixed: set[str]
) -> Iterator[tuple[Location, str]]:
    for index, part in enumerate(_part(_part(data, "analysis", dict), "primary", list)):
        at = ("analysis", "primary", index)
        whole = part if isinstance(part, dict) else {"arm": part}
        arm, budget, budgets = whole.get("arm"), whole.get("budget"), _part(data, "budgets", list)
        if isinstance(arm, str) and arm not in names:
            yield at, f"no arm is called {arm!r}{nearest_hint(arm, names)}; arms: {', '.join(names)}"
        if arm == baseline:
            yield at, f"{arm!r} is the baseline, which the others are compared with"
        if arm in fixed and isinstance(budget, str) and budgets and budget != budgets[0]:
            yield at, f"{arm!r} has fixed `ranks`, which are trained under the first budget alone; write {budgets[0]}"
        if isinstance(budget, str) and budgets and budget not in budgets:
            yield at, f"the study has no budget {budget!r}; budgets: {', '.join(map(str, budgets))}"


def _repeats(data: dict[str, Any], arms: list[Any]) -> Iterator[tuple[Location, str]]:
    """Values that would make the same run twice under two names."""
    for at in (("budgets",), ("train", "learning_rate")):
        part: Any = data
        for key in at:
            part = part.get(key) if isinstance(part, dict) else None
        values = [str(value) for value in part] if isinstance(part, list) else []
        if len(set(values)) < len(values):
            yield at, f"each value once, got {', '.join(values)}"
    contents: dict[str, str] = {}
    for index, arm in enumerate(arms):
        whole = {"strategy": arm} if isinstance(arm, str) else arm
        name = str(whole.get("name") or whole.get("strategy"))
        scaling = whole.get("scaling") or data.get("scaling") or "constant"
        own = whole.get("options") or {}, whole.get("ranks"), whole.get("train") or {}
        content = repr((whole.get("strategy"), *own, scaling))
        if contents.setdefault(content, name) != name:
            yield ("arms", index), f"{name!r} is the same arm as {contents[content]!r}; leave one out"


def _one_size(data: dict[str, Any], arm: Any, baseline: str) -> Iterator[tuple[Location, str]]:
    """Fixed ranks stand under the first budget alone; a baseline is needed at each."""
    budgets = list(dict.fromkeys(map(str, _part(data, "budgets", list))))
    if isinstance(arm, dict) and arm.get("ranks") is not None and len(budgets) > 1:
        yield (
            ("budgets",),
            f"the baseline {baseline!r} has fixed `ranks` and so one size, and none to compare with at the others; "
            f"give one budget, or a baseline with a `strategy`; got {', '.join(budgets)}",
        )


def _seed_complaints(data: dict[str, Any]) -> Iterator[tuple[Location, str]]:
    seeds = _part(data, "seeds", dict)
    lists = {phase: expand_seeds(seeds.get(phase), phase) for phase in SEEDS_FROM}
    lists = {phase: values if isinstance(values, list) else [] for phase, values in lists.items()}
    for phase, values in lists.items():
        if len(set(map(str, values))) < len(values):
            yield ("seeds", phase), f"seeds must differ from each other, got {values}"
    if shared := sorted(set(map(str, lists["evaluation"])) & set(map(str, lists["tuning"]))):
        yield (
            ("seeds",),
            f"{', '.join(shared)} both tune and evaluate; choose learning rates with other seeds",
        )
    yield from _look_complaints(_part(seeds, "looks", list), len(lists["evaluation"]))
    rates = _part(data, "train", dict).get("learning_rate")
    if (rates == "auto" or (isinstance(rates, list) and (len(rates) > 1 or "auto" in rates))) and not seeds.get(
        "tuning"
    ):
        yield (
            ("seeds", "tuning"),
            "a grid of learning rates needs tuning seeds to choose with; write for example `tuning: 3`",
        )
    elif _part(data, "train", dict).get("tune") == "baseline" and len(lists["tuning"]) < 2:
        yield (
            ("seeds", "tuning"),
            "`tune: baseline` needs two tuning seeds or more, whose spread says which preference is beyond the noise; "
            "write for example `tuning: 3`",
        )


def _look_complaints(looks: list[Any], cap: int) -> Iterator[tuple[Location, str]]:
    if not looks or not all(isinstance(look, int) for look in looks):
        return
    shown = ", ".join(map(str, looks))
    if looks != sorted(set(looks)):
        yield ("seeds", "looks"), f"each look has more evaluation seeds than the one before, got {shown}"
    elif cap and looks[-1] != cap:
        yield (
            ("seeds", "looks"),
            f"the last look has all evaluation seeds, which are {cap}, got {shown}; end with {cap}, or write "
            f"`evaluation: {looks[-1]}`",
        )


def _part(data: dict[str, Any], key: str, kind: type) -> Any:
    """data[key] if it is of this kind, else an empty one."""
    value = data.get(key)
    return value if isinstance(value, kind) else kind()


def _without_types(loc: tuple[Any, ...], data: Any) -> Location:
    """pydantic puts names of union members into locations, our own with a `~`; keep what stands in the file."""
    at: list[str | int] = []
    here = data
    for part in loc:
        if isinstance(part, str) and part.startswith("~") and not (isinstance(here, dict) and part in here):
            continue
        if isinstance(here, dict):
            at.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            at.append(part)
            here = here[part] if part < len(here) else None
    return tuple(at)


def _in_words(problem: Any, at: Location, model: type[BaseModel]) -> str:
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        forms = [Tag(part) for part in problem["loc"] if isinstance(part, str) and part.startswith("~")]
        known = _keys_at(model, at[:-1], forms)
        return f"unknown key{nearest_hint(str(at[-1]), known)}; keys here: {', '.join(known)}"
    if kind == "missing":
        return "this key is missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "literal_error":
        expected = problem["ctx"]["expected"]
        hint = nearest_hint(str(value), [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])
        return f"expected {expected}, got {value!r}{hint}"
    message = str(problem["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    if kind == "string_pattern_mismatch":
        message = "letters, digits, `.`, `_` and `-`, at most 64, not beginning with a sign"
    return f"expected {message}, got {value!r}"


def _keys_at(model: type[BaseModel], at: Location, forms: Sequence[Tag] = ()) -> list[str]:
    """The keys allowed at a location, by walking the types; `forms` says which of a union's was meant."""
    here: Any = model
    for part in at:
        if isinstance(part, str):
            here = here.model_fields[part].annotation if _is_model(here) and part in here.model_fields else None
        meant = next((t for t in _types_in(here) if any(own in forms for own in typing.get_args(t))), here)
        found = [t for t in _types_in(meant) if _is_model(t)]
        here = found[0] if found else None
    return list(here.model_fields) if _is_model(here) else []


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _types_in(inner)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
