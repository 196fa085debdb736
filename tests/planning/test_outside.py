"""Strategies from outside the package: the decorators, files, installed packages, and what goes wrong in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from adaptive_lora import StrategyOptions, measure, strategy
from adaptive_lora.errors import StrategyError
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies import STRATEGIES, check_options, find_strategy, registry
from adaptive_lora.planning.strategies.base import MEASURES, AgreementOptions, GradientOptions, Strategy
from adaptive_lora.planning.strategies.contract import check_strategy
from adaptive_lora.planning.strategies.decorators import take_outside
from adaptive_lora.planning.strategies.registry import all_strategies, load_strategies, pinned

MODULES = [ModuleShape(f"h.{i}.mlp.x", "mlp", i, 32, 32) for i in range(4)]
BUDGET = 64 * 20
FILE = '''
import adaptive_lora

@adaptive_lora.strategy("mine", options={"slope": 1.0})
def mine(modules, scores, options):
    """More rank further up."""
    return {m.name: 1.0 + options.slope * m.depth for m in modules}
'''


def ranks_of(found: Strategy, scores: Any = None, budget: int = BUDGET, **options: Any) -> list[int]:
    ranks = found.allocate(MODULES, scores or {}, budget, check_options(found, options))
    return [ranks[m.name] for m in MODULES]


def write(folder: Path, text: str, name: str = "my_file.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def weighing(form: str) -> Any:
    """A function that returns a measure as weights, as whole ranks, or bent by an option of its own."""

    def weigh(modules: Any, scores: Any, options: Any) -> dict[str, Any]:
        own = scores["stable-rank"]
        if form == "own power":
            return {name: value**options.power for name, value in own.items()}
        return {name: int(value) if form == "ranks" else value for name, value in own.items()}

    return weigh


def test_power_bends_the_weights_of_a_measuring_strategy_and_not_twice() -> None:
    modules = [ModuleShape(f"h.{i}.mlp.x", "mlp", i, 64, 64) for i in range(3)]
    scores = {"stable-rank": {m.name: 4.0**m.depth for m in modules}}

    def ranks(made: Strategy, **options: float) -> list[int]:
        return list(made.allocate(modules, scores, 128 * 21, check_options(made, options)).values())

    by_score = strategy("by-score", needs=["stable-rank"])(weighing("weights"))
    whole = strategy("whole", needs=["stable-rank"])(weighing("ranks"))
    own = strategy("own", needs=["stable-rank"], options={"power": 1.0})(weighing("own power"))
    assert ranks(by_score) == ranks(whole) == ranks(own) == [1, 4, 16]
    assert ranks(by_score, power=0.5) == ranks(whole, power=0.5) == ranks(own, power=0.5) == [3, 6, 12]


def test_weights_become_ranks_on_budget() -> None:
    @strategy("by-block", options={"slope": 1.0}, source="a paper")
    def by_depth(modules: Any, scores: Any, options: Any) -> dict[str, float]:
        """More rank further up: 1 + slope · depth.

        The rest of the docstring.
        """
        return {m.name: 1.0 + options.slope * m.depth for m in modules}

    assert ranks_of(by_depth) == [2, 4, 6, 8] and ranks_of(by_depth, slope="0") == [5] * 4
    assert (by_depth.summary, by_depth.source) == ("More rank further up: 1 + slope · depth.", "a paper")
    assert find_strategy("by-block") is by_depth
    assert [f for f in check_strategy(by_depth) if f.came] == []
    with pytest.raises(StrategyError, match=r"by-block: no option `slop` \(did you mean 'slope'\?\)"):
        check_options(by_depth, {"slop": 1})


def test_options_may_be_a_class_with_constraints() -> None:
    class Options(StrategyOptions):
        power: Annotated[float, Field(ge=0)] = 1.0

    @strategy("powered", options=Options)
    def powered(modules: Any, scores: Any, options: Options) -> dict[str, float]:
        return {m.name: (1.0 + m.depth) ** options.power for m in modules}

    assert ranks_of(powered) == [2, 4, 6, 8]
    with pytest.raises(StrategyError, match=r"powered: `power`: input should be greater than or equal to 0, got -1"):
        check_options(powered, {"power": -1})


def test_whole_numbers_are_ranks_and_must_cost_the_budget() -> None:
    @strategy("whole")
    def whole(modules: Any, scores: Any, options: Any, budget: int) -> dict[str, int]:
        each = budget // sum(m.params_per_rank for m in modules)
        return {m.name: each + (1 if m.depth == 0 else 0) - (1 if m.depth == 3 else 0) for m in modules}

    assert ranks_of(whole) == [6, 5, 5, 4]

    @strategy("ones")
    def ones(modules: Any, scores: Any, options: Any) -> dict[str, int]:
        return {m.name: 1 for m in modules}

    with pytest.raises(StrategyError, match=r"whole numbers are ranks.* cost 256 of 1,280 parameters\. Return floats"):
        ranks_of(ones)
    assert ranks_of(ones, budget=64 * 4) == [1] * 4
    with pytest.raises(StrategyError, match=r"between `min_rank` and what a module can hold, got h\.0\.mlp\.x: 1"):
        ranks_of(ones, min_rank=2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{}", r"a value for each of 4 modules by name, and has none for h\.0\.mlp\.x"),
        ("{m.name: float('nan') for m in modules}", r"finite and not negative, got h\.0\.mlp\.x: nan"),
        ("{m.name: -1.0 for m in modules}", r"finite and not negative, got h\.0\.mlp\.x: -1\.0"),
        ("{m.name: None for m in modules}", r"the strategy mine failed: TypeError"),
        ("{m.name: scores['no'] for m in modules}", r"my_file\.py, line 7: the strategy mine failed: KeyError: 'no'"),
    ],
)
def test_what_a_function_returns_or_raises_is_said_with_its_place(tmp_path: Path, value: str, message: str) -> None:
    path = write(tmp_path, FILE.replace("{m.name: 1.0 + options.slope * m.depth for m in modules}", value))
    with pytest.raises(StrategyError, match=message):
        ranks_of(load_strategies(path)["mine"])


def test_a_measure_in_the_same_file_is_the_files_own(tmp_path: Path) -> None:
    """Two versions of a file have the same names, and neither takes the other's measure."""
    text = """
import adaptive_lora

@adaptive_lora.measure("size", effort="data")
def size(base, modules, batches):
    return {m.name: FACTOR * (1 + m.depth) * len(batches) for m in modules}

@adaptive_lora.strategy("mine", needs=["size"])
def mine(modules, scores, options):
    "By size."
    return {m.name: scores["size"][m.name] + 0.0 for m in modules}
"""
    found = [
        load_strategies(write(tmp_path / name, text.replace("FACTOR", factor)))["mine"]
        for name, factor in (("a", "1"), ("b", "7"))
    ]
    (first,), (second,) = (each.needs(each.options()) for each in found)
    assert first != second and "size" not in MEASURES and found[0].basis(found[0].options()) == "data"
    taken = take_outside(registry.OUTSIDE_MEASURES[second], None, MODULES, [[], []])
    assert list(taken.values()) == [14.0, 28.0, 42.0, 56.0]
    assert ranks_of(found[0], {first: {m.name: float(1 + m.depth) for m in MODULES}}) == [2, 4, 6, 8]


def test_a_measure_of_an_import_is_any_strategys() -> None:
    @measure("half", effort="weights")
    def half(base: Any, modules: Any) -> dict[str, float]:
        return {m.name: 0.5 for m in modules}

    (key,) = strategy("by-half", needs=["half"])(lambda modules, scores, options: scores["half"]).needs(None)
    assert key.startswith("half@") and registry.OUTSIDE_MEASURES[key].function is half


def test_a_measure_must_give_a_number_for_every_module() -> None:
    def half(base: Any, modules: Any) -> dict[str, float]:
        return {m.name: 1.0 for m in modules[1:]}

    assert measure("half", effort="weights")(half) is half  # still a plain function
    key = next(key for key in registry.OUTSIDE_MEASURES if key.startswith("half@"))
    with pytest.raises(
        StrategyError, match=r"half must give a finite number for each of 4 modules, got h\.0\.mlp\.x: N"
    ):
        take_outside(registry.OUTSIDE_MEASURES[key], None, MODULES, [])
    with pytest.raises(StrategyError, match=r"effort of 'x' is one of weights, data, gradients, training, got 'much'"):
        measure("x", effort="much")(half)  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match="has a measure called 'stable-rank' of its own"):
        measure("stable-rank", effort="weights")(half)


def test_options_are_what_the_measures_go_by() -> None:
    def weigh(modules: Any, scores: Any, options: Any) -> dict[str, float]:
        return dict.fromkeys([m.name for m in modules], 1.0)

    assert issubclass(strategy("a", needs=["gradient-norm"])(weigh).options, GradientOptions)
    both = strategy("b", needs=["gradient-norm", "marginal-gain"])(weigh).options
    assert issubclass(both, GradientOptions) and issubclass(both, AgreementOptions)
    assert strategy("c", chance=True, covers="mlp")(weigh).options().model_dump()["seed"] == 0
    with pytest.raises(StrategyError, match=r"options of d must derive from AgreementOptions.* got StrategyOptions"):
        strategy("d", needs=["marginal-gain"], options=StrategyOptions)(weigh)
    with pytest.raises(StrategyError, match=r"no measure 'gradient-nrm' \(did you mean 'gradient-norm'\?\)"):
        strategy("e", needs=["gradient-nrm"])(weigh)
    with pytest.raises(StrategyError, match=r"cannot be called 'uniform': one of the package's own"):
        strategy("uniform")(weigh)
    with pytest.raises(StrategyError, match=r"cannot be called 'a b': use letters"):
        strategy("a b")(weigh)
    with pytest.raises(StrategyError, match=r"@strategy\('f'\) decorates a function, got a int"):
        strategy("f")(3)  # type: ignore[arg-type]


def test_a_file_is_named_with_the_hash_of_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, FILE)
    first = pinned(f"{path}:mine")
    assert first == pinned(str(path)) == pinned("my_file.py:mine", tmp_path)
    assert first.startswith("my_file.py:mine@") and find_strategy(first).digest
    assert "mine" not in STRATEGIES  # known by its file alone
    path.write_text(FILE + "# edited\n")
    second = pinned(f"{path}:mine")
    assert second != first and find_strategy(first).digest != find_strategy(second).digest
    registry._PINNED.clear()
    with pytest.raises(StrategyError, match=r"the code has changed, its hash is \w{12} now"):
        pinned(f"{path}:{first.partition(':')[2]}")
    assert pinned(f"{path}:{second.partition(':')[2]}") == second
    assert pinned("uniform") == "uniform"


def test_a_reference_alone_never_runs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a study of someone else's must not run what it names, even where a file of that name is at hand."""
    path = write(tmp_path, FILE + "\nopen('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    for text in ("my_file.py:mine", "my_file.py:mine@0123456789ab"):
        with pytest.raises(StrategyError, match="There is no strategy"):
            find_strategy(text)
        with pytest.raises(StrategyError, match="`source`: There is no strategy"):
            check_options(find_strategy("inverted"), {"source": text})
    assert not (tmp_path / "ran").exists()
    pinned(str(path))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"my_file\.py cannot be read: No such file.*`my_file\.py:name`"),
        ("def f(:\n", r"my_file\.py, line 1: my_file\.py cannot be loaded: SyntaxError"),
        ("import math\n\nimport no_such_package\n", r"my_file\.py, line 3: .* ModuleNotFoundError: No module named"),
        ("raise SystemExit('bye')\n", r"my_file\.py, line 1: .* SystemExit: bye"),
        ("x = 1\n", r"my_file\.py defines no strategy; decorate a function with @adaptive_lora\.strategy"),
        (FILE + FILE, r"my_file\.py, line 11: .* Two strategies are called 'mine'"),
        (FILE.replace('"mine"', '"uniform"'), r"my_file\.py, line 4: .* cannot be called 'uniform'"),
        (FILE.replace('"mine"', '"mind"'), r"has no strategy 'mine' \(did you mean 'mind'\?\); it has: mind\."),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "my_file.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StrategyError, match=message):
        pinned(f"{path}:mine")


def test_installed_packages_bring_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FILE, "their_package.py")
    info = tmp_path / "their_package-1.0.dist-info"
    write(info, "Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n", "METADATA")
    points = "mine = their_package:mine\nbroken = their_package:nowhere\nodd = their_package:mine\n"
    write(info, f"[adaptive_lora.strategies]\n{points}", "entry_points.txt")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_package", raising=False)

    found = find_strategy("mine")
    assert ranks_of(found) == [2, 4, 6, 8] and pinned("mine").startswith("mine@")
    every, complaints = all_strategies()
    assert every["mine"] is found and [text.split()[2] for text in complaints] == ["broken", "their-package"]
    with pytest.raises(StrategyError, match=r"strategy broken of the package their-package cannot be loaded: Attrib"):
        find_strategy("broken")
    with pytest.raises(
        StrategyError, match=r"lists their_package:mine as the strategy 'odd', and that is the strategy"
    ):
        find_strategy("odd")
    with pytest.raises(StrategyError, match=r"did you mean 'mine'"):
        find_strategy("mne")
