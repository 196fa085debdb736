"""The current batch: each thread its own, and none once all have left."""

from __future__ import annotations

import sys
import threading

import pytest

from adaptive_lora.data.encoding import Example
from adaptive_lora.training import current_batch as module
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.current_batch import BankBatch, current_batch, get_current_batch
from adaptive_lora.training.packing import pack
from tests.training.conftest import demo_examples, seven_members


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


def test_there_is_none_after_a_step(gpt2: FrozenBase) -> None:
    with Bank(gpt2, seven_members(gpt2, steps=2)[:2]) as bank:
        bank.step()
        bank.evaluate(demo_examples(gpt2)[:3])
        assert get_current_batch() is None
