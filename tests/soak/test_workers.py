"""Real processes killed, stopped and orphaned, a Ray node taken away: the scenarios of `bench/cluster.py`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "cluster.py"


def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_cluster", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_cluster"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cluster() -> Iterator[ModuleType]:
    yield bench()
    del sys.modules["bench_cluster"]


@pytest.mark.usefixtures("whole_sources")  # the workers are processes of their own and have all records
@pytest.mark.parametrize("name", list(bench().SCENARIOS))
def test_results_are_those_of_one_process(name: str, cluster: ModuleType) -> None:
    package = cluster.SCENARIOS[name][1]
    if package is not None:
        pytest.importorskip(package)
    [(_, found)] = dict[str, Any](cluster.run_scenarios([name], 16)).items()
    assert found["equal"] and found["finished"] and found["fault"]
    assert not found.get("orphans")
