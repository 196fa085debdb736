"""Strategies and measures by name, and those that live outside the package: in a package of its own or in one file.

A strategy from outside is named by a *reference* that says which code is meant, so that an edited file is another
strategy wherever the name is recorded:

    my-strategy@3fa2b1c9d0e1          registered by an import, or by an installed package
    my_file.py:my-strategy@3fa2b1c9d0e1    from a file, which is loaded only where the user names it
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from adaptive_lora.errors import AdaptiveLoraError, StrategyError, nearest_hint
from adaptive_lora.files import expanded
from adaptive_lora.planning.strategies.base import MEASURES, Effort, Strategy

GROUP = "adaptive_lora.strategies"
"""The entry-point group in which an installed package lists its strategies: `name = "module:function"`."""

STRATEGIES: dict[str, Strategy] = {}
"""The package's own strategies, and what imports have registered."""
OUTSIDE_MEASURES: dict[str, OutsideMeasure] = {}
"""Measures from outside, by name and hash of their code; `base.MEASURES` has what they cost."""
_MEASURE_KEYS: dict[str, str] = {}
"""Name -> `name@hash` of the measures that imports have registered."""
_PINNED: dict[str, Strategy] = {}
"""`name@hash` -> every strategy from outside that was seen in this process."""
_LOADING: dict[str, _File] = {}
"""Files that are being loaded, by path."""
_LOADED: dict[tuple[str, str], dict[str, Strategy]] = {}
"""(path, hash) -> the strategies of a file."""
_SOURCES: dict[str, str] = {}
"""Hash -> the content of a file that was loaded."""

_REFERENCE = re.compile(r"(?:(?P<file>.+\.py)(?::|(?=@)|$))?(?P<name>[^:@]*)(?:@(?P<digest>[0-9a-f]{12}))?", re.DOTALL)


@dataclass(frozen=True)
class OutsideMeasure:
    """A measure that is not the package's own."""

    name: str
    effort: Effort
    function: Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class _File:
    """A file of strategies, and those found in it so far."""

    path: Path
    digest: str
    strategies: dict[str, Strategy] = field(default_factory=dict)


def register(strategy: Strategy) -> Strategy:
    """Makes a strategy from outside known by its name; one of the same name registered before is replaced.

    Strategies of a file that is being loaded are known by their reference alone. Raises StrategyError for the name of
    one of the package's own, and for a name that stands twice in a file.
    """
    own = STRATEGIES.get(strategy.name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", strategy.name) or (own and own.digest is None):
        why = "one of the package's own strategies has that name" if own else "use letters, digits, `.`, `_` and `-`"
        raise StrategyError(f"A strategy cannot be called {strategy.name!r}: {why}. Choose another name.")
    file = _LOADING.get(strategy.origin or "")
    if file is not None and strategy.name in file.strategies:
        raise StrategyError(f"Two strategies are called {strategy.name!r}; give each its own name.")
    (STRATEGIES if file is None else file.strategies)[strategy.name] = strategy
    _PINNED[f"{strategy.name}@{_short(strategy)}"] = strategy
    return strategy


def register_measure(measure: OutsideMeasure, origin: str, digest: str) -> None:
    """Makes a measure known: to strategies in the same file, and outside of `file.py:name` references to all."""
    if measure.name in MEASURES:
        raise StrategyError(f"The package has a measure called {measure.name!r} of its own. Choose another name.")
    key = f"{measure.name}@{digest[:12]}"
    OUTSIDE_MEASURES[key], MEASURES[key] = measure, measure.effort
    if origin not in _LOADING:
        _MEASURE_KEYS[measure.name] = key


def measure_key(name: str, digest: str) -> str:
    """The key in `MEASURES` that a strategy from outside means; StrategyError where there is none."""
    keys = (f"{name}@{digest[:12]}", _MEASURE_KEYS.get(name, name), name)
    if not any(key in MEASURES for key in keys):
        known = [measure for measure in MEASURES if "@" not in measure]
        raise StrategyError(
            f"There is no measure {name!r}{nearest_hint(name, known)}. There are: {', '.join(known)}; one of your own "
            "is defined above the strategy, with @adaptive_lora.measure."
        )
    return next(key for key in keys if key in MEASURES)


def find_strategy(reference: str) -> Strategy:
    """The strategy of a name or a reference; StrategyError with the nearest name otherwise.

    Files are not loaded here: `pinned` does that, where a user's own words arrive.
    """
    found = STRATEGIES.get(reference) or _PINNED.get(reference[reference.rfind(":") + 1 :])
    if found is None and (point := _installed().get(reference)):
        found = _from_package(point)
    if found is None:
        known = [*STRATEGIES, *(name for name in _installed() if name not in STRATEGIES)]
        raise StrategyError(
            f"There is no strategy {reference!r}{nearest_hint(reference, known)}. There are: {', '.join(known)}; or "
            "name one in a file of your own, `my_file.py:name`."
        )
    return found


def pinned(text: str, folder: Path | None = None) -> str:
    """The reference of the strategy that a user names; the names of the package's own stay as they are.

    `my_file.py:name` loads the file (relative to `folder`); `:name` may be left out where the file has one strategy.
    The reference has the file's name without its folder, so that a study may move. Raises StrategyError.
    """
    found = _REFERENCE.fullmatch(text)
    file, name, digest = found.group("file", "name", "digest") if found else (None, text, None)
    if f"{name}@{digest}" in _PINNED:
        strategy = _PINNED[f"{name}@{digest}"]
    elif file is None:
        strategy = find_strategy(name)
    else:
        strategies = load_strategies((folder or Path()) / expanded(file))
        if name not in strategies and (name or len(strategies) > 1):
            raise StrategyError(
                f"{file} has no strategy {name!r}{nearest_hint(name, strategies)}; it has: {', '.join(strategies)}."
            )
        strategy = strategies[name] if name else next(iter(strategies.values()))
    if strategy.digest is None:
        return text
    if digest not in (None, _short(strategy)):
        raise StrategyError(
            f"{text}: the code has changed, its hash is {_short(strategy)} now. Bring back the code that is meant, or "
            "name the strategy without `@` and the hash."
        )
    return f"{f'{Path(file).name}:' if file else ''}{strategy.name}@{_short(strategy)}"


def with_pinned_source(strategy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a strategy; a `source` whose plan it changes becomes a reference. Raises StrategyError."""
    source = options.get("source")
    if strategy in ("inverted", "shuffled", "by-kind", "by-depth") and isinstance(source, str):
        try:
            return {**options, "source": pinned(source)}
        except StrategyError as error:
            raise StrategyError(f"`source`: {error}") from None
    return dict(options)


def plain_strategy_name(reference: str) -> str:
    """A reference without file and hash.

    >>> plain_strategy_name("my_file.py:my-strategy@3fa2b1c9d0e1"), plain_strategy_name("uniform")
    ('my-strategy', 'uniform')
    """
    found = _REFERENCE.fullmatch(reference)
    return (found.group("name") or Path(found.group("file") or "").stem) if found else reference


def strategy_file(text: str) -> str | None:
    """The file that a user's name of a strategy begins with; None for names alone.

    >>> strategy_file("folder/my_file.py:my-strategy"), strategy_file("uniform")
    ('folder/my_file.py', None)
    """
    found = _REFERENCE.fullmatch(text)
    return found.group("file") if found else None


def all_strategies() -> tuple[dict[str, Strategy], list[str]]:
    """Every strategy that can be named without a file, and why installed ones could not be loaded."""
    found, complaints = dict(STRATEGIES), []
    for name, point in _installed().items():
        if name not in found:
            try:
                found[name] = _from_package(point)
            except StrategyError as error:
                complaints.append(str(error))
    return found, complaints


def load_strategies(path: Path) -> dict[str, Strategy]:
    """Runs a file and returns the strategies that it defines; StrategyError with file and line where it fails."""
    path = path.resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StrategyError(
            f"{path} cannot be read: {error.strerror}. Name a Python file, as `my_file.py:name`."
        ) from None
    file = _File(path, hashlib.sha256(content).hexdigest())
    if (known := (str(path), file.digest)) in _LOADED:
        return _LOADED[known]
    module = ModuleType(f"adaptive_lora_file_{file.digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where pydantic looks up what annotations mean
    _LOADING[str(path)] = file
    try:
        with explained(f"{path.name} cannot be loaded", str(path)):
            source = content.decode("utf-8")
            exec(compile(content, str(path), "exec"), module.__dict__)
    finally:
        del _LOADING[str(path)]
    if not file.strategies:
        raise StrategyError(f"{path} defines no strategy; decorate a function with @adaptive_lora.strategy('name').")
    _SOURCES[file.digest[:12]] = source
    return _LOADED.setdefault(known, file.strategies)


def source_text(reference: str) -> str:
    """The content of the file that a reference names; only for references of this process."""
    return _SOURCES[reference.rpartition("@")[2]]


def code_of(function: Callable[..., Any]) -> tuple[str, str]:
    """File of a function and the SHA-256 of that file, or of the function's source where there is no file."""
    path = function.__code__.co_filename
    if path in _LOADING:
        return path, _LOADING[path].digest
    if Path(path).is_file():
        return path, hashlib.sha256(Path(path).read_bytes()).hexdigest()
    try:
        source = inspect.getsource(function).encode()
    except OSError:  # typed at a prompt
        source = function.__code__.co_code + repr(function.__code__.co_consts).encode()
    return path, hashlib.sha256(source).hexdigest()


@contextlib.contextmanager
def explained(what: str, path: str) -> Iterator[None]:
    """Turns whatever the code of an outside file raises into one StrategyError with the line in that file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines = [error.lineno]
        if isinstance(error, AdaptiveLoraError) and not lines:
            raise
        text = str(error) if isinstance(error, AdaptiveLoraError) else f"{type(error).__name__}: {error}"
        where = f"{path}, line {lines[-1]}: " if lines else ""
        raise StrategyError(f"{where}{what}: {text}") from error


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _from_package(point: EntryPoint) -> Strategy:
    """The strategy of an installed package; StrategyError where it cannot be loaded or is none."""
    package = point.dist.name if point.dist else point.module
    try:
        loaded = point.load()
    except Exception as error:
        raise StrategyError(
            f"The strategy {point.name} of the package {package} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, Strategy) or loaded.name != point.name:
        is_ = f"the strategy {loaded.name!r}" if isinstance(loaded, Strategy) else f"a {type(loaded).__name__}"
        raise StrategyError(
            f"The package {package} lists {point.value} as the strategy {point.name!r}, and that is {is_}. Its author "
            "names there a function decorated with @adaptive_lora.strategy, by the strategy's own name."
        )
    return register(loaded)


def _short(strategy: Strategy) -> str:
    return (strategy.digest or "")[:12]
