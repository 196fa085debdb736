"""From weights to whole ranks, exactly on a budget of trainable parameters.

Three steps. *Water-filling*: real targets in proportion to the weights, inside [min_rank, cap], that
cost the budget exactly. *Largest remainder*: whole ranks next to the targets, never over the budget.
*Exact repair*: the fewest units of rank moved between modules of different cost so that the unspent
rest is as small as integers allow, which is zero whenever some integer ranks cost the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaptive_lora.errors import BudgetError
from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.planning.modules import ModuleShape

_WIDEST_SEARCH = 1 << 25
"""Most partial sums the repair will hold at once (each a few bytes)."""


class Priced(Protocol):
    """What a budget is spent on: a module, or several that share a rank."""

    @property
    def name(self) -> str: ...
    @property
    def params_per_rank(self) -> int: ...
    @property
    def largest_rank(self) -> int: ...


@dataclass(frozen=True)
class Budget:
    """A ceiling on trainable parameters, as the user wrote it."""

    text: str
    parameters: int
    reference_rank: float
    """The uniform rank that costs the budget: r for `rank:r`, else parameters / Σ (d_in + d_out)."""


def resolve_budget(text: str, modules: Sequence[ModuleShape]) -> Budget:
    """The parameters that a budget stands for on these modules.

    `rank:r` is what a uniform rank r costs, whatever the arm. Raises BudgetError for a rank above what
    the largest module can hold.
    """
    unit, number = parse_budget(text)
    per_rank = sum(m.params_per_rank for m in modules)
    if unit == "params":
        return Budget(text, number, number / per_rank)
    largest = max(m.largest_rank for m in modules)
    if number > largest:
        raise BudgetError(
            f"The budget {text} is above rank {largest}, the most any of the {len(modules)} target modules can hold "
            f"(its smaller side). Write rank:{largest} or less."
        )
    return Budget(text, sum(min(number, m.largest_rank) * m.params_per_rank for m in modules), float(number))


def uniform_rank(modules: Sequence[ModuleShape], budget: int) -> int:
    """The smallest whole rank that, the same everywhere (within each module's own limit), costs the budget or more.

    >>> uniform_rank([ModuleShape("q", "attention", 0, 4, 4), ModuleShape("up", "mlp", 0, 4, 12)], budget=48)
    2
    """
    largest = max(m.largest_rank for m in modules)
    costs = (sum(min(rank, m.largest_rank) * m.params_per_rank for m in modules) for rank in range(1, largest))
    return next((rank for rank, cost in enumerate(costs, 1) if cost >= budget), largest)


def spend(
    modules: Sequence[Priced],
    weights: Mapping[str, float],
    budget: int,
    min_rank: int = 1,
    max_rank: int | None = None,
    power: float = 1.0,
) -> dict[str, int]:
    """Ranks in proportion to `weights` (to their `power`) that cost at most `budget` trainable parameters.

    A weight is what one wants of rank, relative to the others; a module's rank lies in
    [min_rank, min(d_in, d_out, max_rank)]. The budget is met exactly whenever integers in those bounds
    allow it, else the rest is smaller than the cheapest unit of rank still below its cap. The order of
    `modules` is irrelevant (ties go by name), and equal weights and shapes differ by one at the most.
    `power` 1/2 is half way to uniform on a log scale, 0 is uniform.

    Raises BudgetError where the budget does not pay for `min_rank` everywhere.

    >>> shapes = [ModuleShape("q", "attention", 0, 4, 4), ModuleShape("up", "mlp", 0, 4, 12)]
    >>> spend(shapes, {"q": 3.0, "up": 1.0}, budget=40)
    {'q': 3, 'up': 1}
    """
    ordered = sorted(modules, key=lambda m: m.name)
    costs = np.array([m.params_per_rank for m in ordered], dtype=np.int64)
    caps = np.array([min(m.largest_rank, max_rank or m.largest_rank) for m in ordered], dtype=np.int64)
    floors = np.minimum(min_rank, caps)
    _check_floor(len(ordered), int((floors * costs).sum()), budget, min_rank)
    wanted = _checked_weights([weights[m.name] for m in ordered]) ** power
    targets = _water_fill(wanted, costs, floors, caps, budget)
    ranks = _round_down_then_up(targets, costs, floors, caps, budget)
    ranks = _repair(ranks, targets, costs, floors, caps, budget - int((ranks * costs).sum()))
    return {module.name: int(rank) for module, rank in zip(ordered, ranks, strict=True)}


def leaves_no_choice(
    modules: Sequence[ModuleShape], budget: int, min_rank: int = 1, max_rank: int | None = None
) -> bool:
    """Whether `spend` gives the same ranks whatever the weights: no unit above the floors, or every one below the caps.

    >>> shapes = [ModuleShape("q", "attention", 0, 4, 4), ModuleShape("up", "mlp", 0, 4, 12)]
    >>> [leaves_no_choice(shapes, budget) for budget in (24, 31, 32, 95, 96)]
    [True, True, False, False, True]
    """
    tops = {m: min(m.largest_rank, max_rank or m.largest_rank) for m in modules}
    rest = budget - sum(min(min_rank, top) * m.params_per_rank for m, top in tops.items())
    most = sum(max(top - min_rank, 0) * m.params_per_rank for m, top in tops.items())
    return rest >= most or rest < min((m.params_per_rank for m, top in tops.items() if top > min_rank), default=0)


def _check_floor(count: int, floor: int, budget: int, min_rank: int) -> None:
    if budget < floor:
        raise BudgetError(
            f"The budget must be at least {floor:,} trainable parameters (rank {min_rank} in each of {count} target "
            f"modules), got {budget:,}. Raise the budget or name fewer `targets`."
        )


def _checked_weights(weights: Sequence[float]) -> NDArray[np.float64]:
    """Weights scaled to a largest of 1; zeros become tiny, so that they are served last and not never."""
    array = np.array(weights, dtype=np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise BudgetError(f"Weights must be finite and not negative, got {weights!r}.")
    largest = array.max()
    return np.maximum(array / largest, 1e-9) if largest > 0 else np.ones_like(array)


def _water_fill(
    weights: NDArray[np.float64],
    costs: NDArray[np.int64],
    floors: NDArray[np.int64],
    caps: NDArray[np.int64],
    budget: int,
) -> NDArray[np.float64]:
    """clip(level · weight, floor, cap) at the level where the whole costs the budget (bisection)."""
    low, high = 0.0, float((caps / weights).max())
    if (caps * costs).sum() <= budget:
        return caps.astype(np.float64)
    for _ in range(200):
        level = (low + high) / 2
        if (np.clip(level * weights, floors, caps) * costs).sum() > budget:
            high = level
        else:
            low = level
    return np.clip(low * weights, floors, caps)


def _round_down_then_up(
    targets: NDArray[np.float64],
    costs: NDArray[np.int64],
    floors: NDArray[np.int64],
    caps: NDArray[np.int64],
    budget: int,
) -> NDArray[np.int64]:
    """Whole ranks: down, then up one unit in order of the largest remainder while the budget lasts.

    A second round serves modules still below their cap by how far they lie under their target, so that
    what is left is less than the cheapest unit that could still be bought.
    """
    ranks = np.clip(np.floor(targets + 1e-9).astype(np.int64), floors, caps)
    rest = budget - int((ranks * costs).sum())
    while True:
        affordable = (ranks < caps) & (costs <= rest)
        if not affordable.any():
            return ranks
        # Stable order: positions are sorted by name, so equal remainders go by name.
        for i in np.argsort(-(targets - ranks), kind="stable"):
            if affordable[i] and costs[i] <= rest:
                ranks[i] += 1
                rest -= int(costs[i])


def _repair(
    ranks: NDArray[np.int64],
    targets: NDArray[np.float64],
    costs: NDArray[np.int64],
    floors: NDArray[np.int64],
    caps: NDArray[np.int64],
    rest: int,
) -> NDArray[np.int64]:
    """Spends `rest` as far as integers allow by moving the fewest units of rank."""
    if rest == 0 or (ranks == caps).all():
        return ranks
    # Modules that have no other rank than theirs (one side of 1) only make the search wider: of their odd price.
    prices = [int(price) for price in np.unique(costs[floors < caps])]
    groups = [np.flatnonzero((costs == price) & (floors < caps)) for price in prices]
    room_up = [int((caps[g] - ranks[g]).sum()) for g in groups]
    room_down = [int((ranks[g] - floors[g]).sum()) for g in groups]
    moves = _fewest_moves(prices, room_down, room_up, rest)
    ranks = ranks.copy()
    for group, move in zip(groups, moves, strict=True):
        bounds, step = (caps, 1) if move > 0 else (floors, -1)
        for _ in range(abs(move)):
            open_ = group[ranks[group] != bounds[group]]
            # The module whose target is furthest on the side that we move to; ties by name.
            best = open_[np.argmax(step * (targets[open_] - ranks[open_]))]
            ranks[best] += step
    return ranks


def _fewest_moves(prices: list[int], room_down: list[int], room_up: list[int], rest: int) -> list[int]:
    """Whole moves m_g in [-room_down_g, room_up_g] with the largest Σ m_g · price_g <= rest, fewest units first.

    A table over partial sums in a window round zero, one price after the other. A solution nearest to
    the start needs no more than 2Δ + 1 units, Δ the largest price over the greatest common divisor
    (Eisenbrand and Weismantel, "Proximity results and faster algorithms for integer programming using
    the Steinitz lemma", SODA 2018), so that a window of (2Δ + 1)Δ misses nothing; nearly always a small one
    suffices, so it is widened by steps.
    """
    unit = math.gcd(*prices)
    steps = [price // unit for price in prices]
    goal, largest = rest // unit, max(steps)
    reach = sum(step * max(d, u) for step, d, u in zip(steps, room_down, room_up, strict=True))
    complete = min((2 * largest + 1) * largest, reach) + goal
    window = min(4 * largest + goal, complete)
    while True:
        moves = _search(steps, room_down, room_up, goal, window)
        met = sum(move * step for move, step in zip(moves, steps, strict=True)) == goal
        if met or window >= min(complete, _WIDEST_SEARCH):
            return moves
        window = min(window * 8, complete, _WIDEST_SEARCH)


def _search(steps: list[int], room_down: list[int], room_up: list[int], goal: int, window: int) -> list[int]:
    """The table of `_fewest_moves` with partial sums in [-window, window]; index = sum + window."""
    size = 2 * window + 1
    unreached = np.iinfo(np.int32).max // 2
    best = np.full(size, unreached, dtype=np.int32)
    best[window] = 0
    tables = [best]
    for step, down, up in zip(steps, room_down, room_up, strict=True):
        rising = _shifted_minimum(best, step, up)
        falling = _shifted_minimum(best[::-1], step, down)[::-1]
        best = np.minimum(rising, falling)
        tables.append(best)
    reached = np.flatnonzero(best[window : window + goal + 1] < unreached)
    at = window + int(reached[-1])
    moves = []
    for step, down, up, before, after in reversed(
        list(zip(steps, room_down, room_up, tables, tables[1:], strict=False))
    ):
        move = _move_that_led_here(before, int(after[at]), at, step, down, up)
        moves.append(move)
        at -= move * step
    return moves[::-1]


def _shifted_minimum(best: NDArray[np.int32], step: int, most: int) -> NDArray[np.int32]:
    """min over 0 <= m <= most of best[i - m·step] + m, by doubling: log(most) passes over the table."""
    most = min(most, (len(best) - 1) // step)
    result, done = best.copy(), 0
    while done < most:
        shift = min(done + 1, most - done)
        moved = result[: len(result) - shift * step] + np.int32(shift)
        result = result.copy()
        np.minimum(result[shift * step :], moved, out=result[shift * step :])
        done += shift
    return result


def _move_that_led_here(before: NDArray[np.int32], units: int, at: int, step: int, down: int, up: int) -> int:
    for size in range(max(down, up) + 1):
        for move in (size, -size):
            source = at - move * step
            if -down <= move <= up and 0 <= source < len(before) and int(before[source]) + size == units:
                return move
    raise AssertionError("the table holds no way back")  # unreachable: `after` was built from `before`
