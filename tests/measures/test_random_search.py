"""A search by chance: its draws are `random`'s, the best on records held back wins, and what diverged cannot."""

from __future__ import annotations

import pytest

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import MeasurementResult
from adaptive_lora.measures.random_search import Candidates, candidates, searched
from adaptive_lora.planning.modules import total_cost
from adaptive_lora.planning.strategies.base import SearchOptions
from adaptive_lora.training.base import FrozenBase
from tests.measures.conftest import Recorder, request_of


def test_draws_are_on_the_budget_and_the_best_wins(gpt2: FrozenBase) -> None:
    record = Recorder()
    request = request_of(gpt2, SearchOptions(draws=3, min_rank=2), bank=record.bank())
    search = candidates(request)
    ranks = [tuple(plan.ranks.values()) for plan in search.plans]
    assert len(set(ranks)) == 3 and min(map(min, ranks)) == 2
    assert {total_cost(request.modules, plan.ranks) for plan in search.plans} == {request.budget}
    (found,) = searched([search])
    assert isinstance(found, MeasurementResult)
    losses = found.facts["search_losses"]
    winner = search.plans[losses.index(min(losses))]
    assert found.values == {name: float(rank) for name, rank in winner.ranks.items()}
    (members,) = record.members
    assert {member.seed for member in members} == {search.seed}
    assert record.judges == [list(search.judges)] * 3
    assert not set(search.judges) & set(members[0].examples)


def test_another_seed_draws_others_and_more_draws_begin_alike(gpt2: FrozenBase) -> None:
    def drawn(**changes: int) -> list[dict[str, int]]:
        request = request_of(gpt2, SearchOptions(draws=changes.pop("draws", 2)), **changes)
        return [dict(plan.ranks) for plan in candidates(request).plans]

    assert drawn(draws=3)[:2] == drawn()
    assert drawn(seed=6) != drawn()


def test_what_diverged_cannot_win(gpt2: FrozenBase) -> None:
    (found,) = searched([candidates(request_of(gpt2, SearchOptions(draws=2), learning_rate=1e30))])
    assert isinstance(found, TrainingError) and "All 2 plans of the search diverged" in str(found)


def test_searches_share_a_bank_and_are_what_each_is_alone(gpt2: FrozenBase) -> None:
    both: list[Candidates] = [candidates(request_of(gpt2, SearchOptions(draws=2), seed=seed)) for seed in (5, 6)]
    assert [f.values for f in searched(both)] == [searched([own])[0].values for own in both]  # type: ignore[union-attr]


@pytest.mark.parametrize("planned", [40, 100])
def test_what_it_costs_is_all_draws(planned: int) -> None:
    assert SearchOptions().updates(planned) == 8 * planned
    assert SearchOptions(draws=3, short_run_steps=5).updates(planned) == 15
