"""Banks on workers that are killed, stopped, or lose their node: the results are those of one process, to the bit.

    python bench/cluster.py [--only processes-killed ...] [--out results/bench/cluster.json]

A small study of the embedded model is trained by this process alone, and then by every kind of worker with a fault in
the middle. `equal` is true where every loss by record and every step of every curve has the same bits. What needs a
package that is not installed (`ray`, `submitit`) is left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from adaptive_lora.study.executors.door import Workers
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.merged_rows import numbers_of
from adaptive_lora.study.open_ledger import open_to_read
from adaptive_lora.study.runner import Limits, Silent, run_study
from adaptive_lora.study.study_file import Study, load_study
from adaptive_lora.training.checkpoint import StepRecord

STUDY = """\
name: workers
model: {name: demo}
data: {source: "demo:fine-tuning", train: 60, validation: 20, test: 40, max_length: 64}
budgets: ["rank:4"]
arms: [uniform, linear-decay, random]
seeds: {evaluation: 2}
train: {steps: %d, batch_size: 4, learning_rate: 3e-3, dropout: 0.1}
analysis: {margin: 0.01, primary: []}
controls: [twin]
report: {answers: 0}
"""
BANK_SIZE, LEASE_SECONDS = 2, 20.0


class Fault(Silent):
    """Does something once, when so many updates were heard of."""

    def __init__(self, after: int, do: Callable[[], bool]) -> None:
        self.after, self.do, self.heard, self.done = after, do, 0, False
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def step(self, record: StepRecord) -> None:
        self.heard += 1
        if not self.done and self.heard >= self.after:
            self.done = self.do()


def results_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Run -> its status, and a hash of all its numbers."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return {run["run_id"]: (run["status"], numbers_of(ledger, run["run_id"])) for run in ledger.runs()}


def workers_at(folder: Path) -> list[int]:
    """The processes that have begun a bank."""
    found = []
    for file in sorted(StudyPaths(folder).bank.parent.glob("lease-*/messages.jsonl")):
        for line in file.read_text().splitlines():
            if '"began"' in line:
                found.append(int(json.loads(line)["pid"]))
    return found


def send(folder: Path, number: signal.Signals) -> bool:
    """To one worker; False where none has begun yet."""
    pids = workers_at(folder)
    if pids:
        os.kill(pids[0], number)
    return bool(pids)


def with_fault(study: Study, out: Path, workers: Workers, fault: Callable[[], bool] | None) -> dict[str, Any]:
    """A run with a fault after a few messages about updates."""
    listener, began = Fault(3, fault or (lambda: True)), time.monotonic()
    status = run_study(study, out, listener, "cpu", 0.0, None, Limits(largest_bank=BANK_SIZE), workers)
    return {
        "finished": status.finished, "seconds": round(time.monotonic() - began, 1),
        "attempts_again": sum("go on elsewhere" in text for text in listener.stages), "fault": listener.done,
    }  # fmt: skip


def processes_killed(study: Study, out: Path) -> dict[str, Any]:
    """SIGKILL to one of two processes."""
    workers = Workers("processes", 2, LEASE_SECONDS)
    return with_fault(study, out, workers, lambda: send(out, signal.SIGKILL))


def processes_stopped(study: Study, out: Path) -> dict[str, Any]:
    """SIGSTOP to one of two processes: it hangs, and its lease runs out."""
    workers = Workers("processes", 2, LEASE_SECONDS)
    return with_fault(study, out, workers, lambda: send(out, signal.SIGSTOP))


def driver_killed(study: Study, out: Path) -> dict[str, Any]:
    """SIGKILL to the driver, as soon as there is a checkpoint; the same command goes on."""
    command = [
        sys.executable, "-m", "adaptive_lora.cli.main", "run", str(study.path), "--out", str(out), "--device", "cpu",
        "--executor", "processes", "--workers", "2", "--bank-size", str(BANK_SIZE), "--checkpoint-seconds", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not list(StudyPaths(out).bank.parent.glob("lease-*/bank.json")):
            time.sleep(0.05)
        killed = driver.poll() is None
        driver.kill()
    left = workers_at(out)
    until = time.monotonic() + 90
    while any(alive(pid) for pid in left) and time.monotonic() < until:
        time.sleep(0.2)
    found = with_fault(study, out, Workers("processes", 2, LEASE_SECONDS), None)
    return {**found, "fault": killed, "orphans": sum(map(alive, left))}


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def ray_node_lost(study: Study, out: Path) -> dict[str, Any]:
    """A Ray cluster of three nodes on this machine, two of them with a core; one of these is taken away."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()

        def lose() -> bool:
            if len(workers_at(out)) < 2:
                return False
            cluster.remove_node(nodes[0], allow_graceful=False)
            return True

        found = with_fault(study, out, Workers("ray", None, LEASE_SECONDS), lose)
        return {**found, "nodes": 3, "ray": importlib.metadata.version("ray")}
    finally:
        ray.shutdown()
        cluster.shutdown()


def submitit_local(study: Study, out: Path) -> dict[str, Any]:
    """Jobs of submitit on this machine, one of them killed."""
    resources = {"cluster": "local", "logs": str(out.parent / "jobs"), "timeout_min": 30}
    workers = Workers("slurm", 2, LEASE_SECONDS, resources)
    found = with_fault(study, out, workers, lambda: send(out, signal.SIGKILL))
    return {**found, "submitit": importlib.metadata.version("submitit")}


def threads(study: Study, out: Path) -> dict[str, Any]:
    """An executor of the caller's own."""
    from concurrent.futures import ThreadPoolExecutor

    pool: Executor
    with ThreadPoolExecutor(1) as pool:
        return with_fault(study, out, Workers(pool, 1, LEASE_SECONDS), None)


SCENARIOS = {
    "executor-of-ones-own": (threads, None),
    "processes-killed": (processes_killed, None),
    "processes-stopped": (processes_stopped, None),
    "driver-killed": (driver_killed, None),
    "ray-node-lost": (ray_node_lost, "ray"),
    "submitit-killed": (submitit_local, "submitit"),
}


def run_scenarios(names: list[str], steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name -> what became of it, each beside the undisturbed run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "study.yaml").write_text(STUDY % steps)
        study = load_study(folder / "study.yaml")
        run_study(study, folder / "local", None, "cpu", limits=Limits(largest_bank=BANK_SIZE))
        expected = results_of(folder / "local")
        for name in names:
            scenario, package = SCENARIOS[name]
            if package and importlib.util.find_spec(package) is None:
                yield name, {"left_out": f"{package} is not installed"}
                continue
            found = scenario(study, folder / name)
            yield name, {"equal": results_of(folder / name) == expected, "runs": len(expected), **found}


def main() -> None:
    """Prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = {}
    for name, result in run_scenarios(asked.only, asked.steps):
        found[name] = result
        print(f"{name}: {result}", file=sys.stderr, flush=True)
    every = [result for result in found.values() if "left_out" not in result]
    text = json.dumps({"equal": all(r["equal"] and r["finished"] for r in every), "scenarios": found}, indent=2) + "\n"
    if asked.out:
        asked.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
