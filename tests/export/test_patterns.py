"""Patterns are matched as `re` and PEFT match them, and never for long."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_lora.export.automaton import Automaton, Unmatchable, Work
from adaptive_lora.export.patterns import NameSet, PatternTable

PLENTY = 10_000_000
NAMES = [
    f"model.layers.{block}.{role}"
    for block in (0, 1, 10, 11)
    for role in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "mlp.experts.3.up_proj")
] + ["lm_head", "q_proj", "modelXlayers.0.mlp.down_proj", "vision.layers.0.self_attn.q_proj"]

EXPRESSIONS = [
    "q_proj", "^q_proj", r"layers\.1\..*", r".*\.(q|k)_proj", r"layers\.[01]\..+_proj$",
    r"model.layers.1.mlp.down_proj",
    r"(?:.*?(?:language|model).*?(?:self_attn|mlp).*?(?:k_proj|q_proj))|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.down_proj)",
    r"^(?!.*vision).*q_proj$", r"^model\.layers\.(?:[0-9]|1[0-1])\.mlp\.(?=d).*", r"[^.]+", r"\w+\.\w+\.\d+\.\D*",
    r"a)|(model", r"(?:layers\.\d+\.){0,2}self_attn\.[qk]_proj", r"\Bq_proj", "", "x*", r"^$", "a|",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_automaton_matches_what_re_matches(expression: str) -> None:
    try:
        whole = re.compile(expression)
    except re.error:
        whole = None  # a key that is an expression only in PEFT's brackets
    inside = re.compile(rf"(.*\.)?({expression})$")
    for name in NAMES:
        if whole:
            assert Automaton(expression).matches(name, Work(PLENTY)) == bool(whole.match(name)), name
            assert Automaton(expression).matches(name, Work(PLENTY), whole=True) == bool(whole.fullmatch(name)), name
        assert (PatternTable({expression: 1}).find(name, Work(PLENTY)) is not None) == bool(inside.match(name)), name


ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\b", "^", "$", "a*", "b+?", "(?:ab|b)", "(?=b)", "(?!a)"]
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(ATOMS, st.sampled_from(["", "|"])), min_size=1, max_size=5),
    st.text("ab.", max_size=6),
)
def test_random_expressions_match_what_re_matches(parts: list[tuple[str, str]], name: str) -> None:
    expression = "".join(a + b for a, b in parts)
    for repeated in (expression, f"(?:{expression})*", f"(?:{expression}){{1,2}}b"):
        automaton, wanted = Automaton(repeated), re.compile(repeated)
        assert automaton.matches(name, Work(PLENTY), whole=True) == bool(wanted.fullmatch(name)), repeated
        assert automaton.matches(name, Work(PLENTY)) == bool(wanted.match(name)), repeated


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["a", "b.a", r"b\.a", "^a", r"^b\.a", "a.b", "^a.b$", "b[.]a", ".*a"]), unique=True),
    st.text("ab.", min_size=1, max_size=5),
)
def test_the_first_key_in_the_order_of_the_file_counts(keys: list[str], name: str) -> None:
    from peft.utils.other import get_pattern_key

    found = PatternTable(dict.fromkeys(keys, 1)).find(name, Work(PLENTY))
    assert (name if found is None else found[0]) == get_pattern_key(keys, name)


@pytest.mark.parametrize("sign", "*+?")
def test_repetitions_of_repetitions_take_no_time(sign: str) -> None:
    """Of which backtracking would try every way."""
    expression = "a"
    for _ in range(5):
        expression = f"(?:(?:{expression}){sign})*"
    began = time.process_time()
    assert not Automaton(f"{expression}b").matches("a" * 400, Work(PLENTY), whole=True)
    assert time.process_time() - began < 2


REFUSED: list[Any] = [
    (r"(a)\1", "back reference"),
    ("(?<=a)b", "look-behind"),
    ("(?i:a)", "flags"),
    ("(?i)a", "flag i"),
    ("a++b", "possessive"),
    ("(", "no regular expression"),
    ("a" * 5000, "longer than 4,096"),
    ("(?:a{1000}){1000}", "states above 100,000"),
    ("(" * 2000 + ")" * 2000, "nested"),
]


@pytest.mark.parametrize(("expression", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_is_not_matched_is_refused_by_name(expression: str, why: str) -> None:
    with pytest.raises(Unmatchable, match=why):
        Automaton(expression)


def test_all_work_comes_out_of_one_allowance() -> None:
    work, looking = Work(100_000), Automaton(r"(?:(?=.*(?=.*(?=.*x))).)*y")
    with pytest.raises(Unmatchable, match="too many steps"):
        for _ in range(100):
            looking.matches("a" * 200, work)


def test_many_names_and_keys_are_quick() -> None:
    """Full names with plain dots, as `convert_to_lora` and EVA write them, for a large mixture of experts."""
    names = [f"model.layers.{i}.mlp.experts.{j}.{leaf}" for i in range(24) for j in range(64) for leaf in "abc"]
    table = PatternTable({name: i for i, name in enumerate(names)})
    began = time.process_time()
    assert [table.find(name, Work(PLENTY)) for name in names] == list(zip(names, range(len(names)), strict=True))
    assert time.process_time() - began < 2


def test_targets_are_names_ends_of_names_or_one_expression() -> None:
    assert [name for name in NAMES if NameSet(["k_proj", "layers.0.mlp.down_proj"]).has(name, Work(PLENTY))] == [
        n for n in NAMES if n.endswith((".k_proj", ".layers.0.mlp.down_proj"))
    ]
    assert NameSet(r".*\.1\.self_attn\.q_proj").has("model.layers.1.self_attn.q_proj", Work(PLENTY))
