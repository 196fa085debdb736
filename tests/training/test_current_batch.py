"""The current batch: each thread its own, and none once all have left."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import pytest

from adaptive_lora.data.encoding import Example
from adaptive_lora.training import current_batch as module
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.current_batch import BankBatch, current_batch, get_current_batch
from adaptive_lora.training.dropout import DropoutMasks, Positions
from adaptive_lora.training.packing import pack
from tests.training.conftest import demo_examples, like, seven_members


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CURRENT", module._Current())


def batch() -> BankBatch:
    return BankBatch(pack([[Example((1, 2, 3), 1, False)]], "cpu"))


def test_there_is_none_after_two_threads_that_overlap() -> None:
    """The second begins within the first and ends after it; the first's batch must not remain."""
    began, inside, left = threading.Event(), threading.Event(), threading.Event()
    one, two, seen = batch(), batch(), []

    def first() -> None:
        with current_batch(one):
            began.set()
            inside.wait(10)
            seen.append(get_current_batch() is one)
        left.set()

    def second() -> None:
        began.wait(10)
        with current_batch(two):
            inside.set()
            left.wait(10)
            seen.append(get_current_batch() is two)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [True, True]
    assert get_current_batch() is None


def test_a_thread_without_a_batch_falls_back_to_the_last_active_one() -> None:
    """As autograd's threads do on accelerators."""
    found = []

    def look() -> None:
        thread = threading.Thread(target=lambda: found.append(get_current_batch()))
        thread.start()
        thread.join(20)

    with current_batch(first := batch()):
        with current_batch(last := batch()):
            look()
        look()
    assert found[0] is last and found[1] is first


def test_many_threads_have_their_own_batches_and_leave_none_behind() -> None:
    interval, wrong = sys.getswitchinterval(), list[object]()

    def work() -> None:
        try:
            for own in [batch(), batch()] * 1000:
                with current_batch(own):
                    if get_current_batch() is not own:
                        wrong.append(own)
        except Exception as error:
            wrong.append(error)

    sys.setswitchinterval(1e-6)  # as often as they can get into each other's way
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and get_current_batch() is None


def test_dropout_masks_live_as_long_as_their_pass(gpt2: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every adapter of a bank would keep those of its last update."""
    drawn, draw = list[weakref.ref[Positions]](), DropoutMasks._draw

    def watched(self: DropoutMasks, step: int, tokens: int) -> Positions:
        found = draw(self, step, tokens)
        drawn.append(weakref.ref(found))
        return found

    monkeypatch.setattr(DropoutMasks, "_draw", watched)
    members = [like(member, dropout=0.1) for member in seven_members(gpt2, steps=2)[:3]]
    with Bank(gpt2, members) as bank:
        drawn.clear()  # opening it has tried a pass
        bank.step()
        assert len(drawn) == 3  # once a pass, not once a module
        gc.collect()
        assert not any(positions() for positions in drawn)


def test_there_is_none_after_a_step(gpt2: FrozenBase) -> None:
    with Bank(gpt2, seven_members(gpt2, steps=2)[:2]) as bank:
        bank.step()
        bank.evaluate(demo_examples(gpt2)[:3])
        assert get_current_batch() is None
