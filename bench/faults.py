"""A study that is killed again and again, and met by every fault in turn, ends in the results of an undisturbed one.

A small study of the embedded model is planned, tuned, trained, exported and reported once by processes of their own.
It meets the faults of `fault_cases.py`, `fault_places.py` and `fault_inputs.py` one by one. Then chains of kill -9 go
through the same commands, each run again until it is done: half of the kills at a line of a phase's code that is drawn
by chance, half at a moment by the clock, in the middle of a write or a multiplication too.

identical     every loss by record, every curve, rank, chosen rate, every byte of the adapters, the table of the export
              and which files export and report consist of, are those of the undisturbed study; no seconds
right         where a fault is several `tries`: each ended as it should, in words, soon and in little memory
lost          runs that the ledger had as finished when the command was given again, and that were trained again
kills         kill -9 in all, and by the phase that the process was in

python bench/faults.py [--kills 60] [--seed 0] [--only FAULT ...] [--add] [--out results/bench/faults.json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fault_cases
import fault_inputs
import fault_places
from adaptive_lora.files import write_atomically
from adaptive_lora.streams import numpy_stream
from fault_process import NOWHERE, PHASES, Child, Ending, Watch, die, preload
from fault_study import STUDY, Cases, Place, Row, repeated

CASES = {**fault_cases.CASES, **fault_places.CASES, **fault_inputs.CASES}
VERBS = ("run", "results", "report")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
               "MPLBACKEND": "agg"}  # fmt: skip
"""What the console script sets; and one thread, so that the bench takes the same part of every machine."""


Costs = tuple[dict[str, dict[str, int]], dict[str, float]]
"""Verb -> lines by phase, and its seconds."""


@dataclass
class Kills:
    """All kills of all chains."""

    asked: int
    seed: int
    lines: dict[str, dict[str, int]]
    """Verb -> lines by phase, of the undisturbed commands."""
    seconds: dict[str, float]
    by_phase: Counter[str] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    chains: list[dict[str, Any]] = field(default_factory=list)

    @property
    def made(self) -> int:
        """So far."""
        return sum(self.by_phase.values())

    def chain(self, place: Place) -> None:
        """One study from its beginning to its page, killed on the way."""
        random, before, lost = numpy_stream(self.seed, f"chain {len(self.chains)}"), self.made, 0
        for verb in VERBS:
            for moment in self._moments(verb, random):
                recorded = place.records()
                ended = self._killed(place, verb, moment)
                lost += repeated(place, recorded)
                if ended.code == 0:
                    break
                if ended.code != -9:
                    raise SystemExit(f"{verb} ended with {ended.code}:\n{ended.said}")
            recorded = place.records()
            done = Child(place.command(verb)).wait()
            lost += repeated(place, recorded)
            if done.code:
                raise SystemExit(f"{verb} ended with {done.code}:\n{done.said}")
        self.chains.append({"kills": self.made - before, "lost": lost})

    def _moments(self, verb: str, random: np.random.Generator) -> Sequence[tuple[str, int] | float]:
        """A line of each phase of a verb, and moments by the clock, in an order that is drawn."""
        # A study that goes on comes to fewer lines of what is done already.
        share = 4 if verb == "run" else 1
        lines = {name: count // share for name, count in self.lines[verb].items() if count >= share}
        found: list[tuple[str, int] | float] = [(name, int(random.integers(1, n + 1))) for name, n in lines.items()]
        clock = [float(random.uniform(0, self.seconds[verb] / 2)) for _ in range(len(found) if verb == "run" else 1)]
        both = [*found, *clock]
        return [both[i] for i in random.permutation(len(both))]

    def _killed(self, place: Place, verb: str, moment: tuple[str, int] | float) -> Ending:
        by_clock = isinstance(moment, float)
        watch = Watch(verb, NOWHERE) if isinstance(moment, float) else Watch(verb, moment, die)
        child = Child(place.command(verb), watch)
        if isinstance(moment, float):
            time.sleep(moment)
            child.kill()
        ended = child.wait()
        if ended.code == -9:
            self.by_phase[watch.phase] += 1
            self.by_kind["by the clock" if by_clock else "at a line"] += 1
        return ended


def undisturbed(place: Place) -> None:
    """Every command by an interpreter of its own, as a user gives it."""
    for verb in VERBS:
        say(f"undisturbed: {verb}")
        command = [sys.executable, "-m", "adaptive_lora.cli.main", *map(str, place.command(verb))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measured(place: Place) -> Costs:
    """Lines by phase of every verb, and its seconds, by processes that are forked off and watched."""
    lines, seconds = {}, {}
    for verb in VERBS:
        say(f"forked and watched: {verb}")
        watch = Watch(verb)
        ended = Child(place.command(verb), watch).wait()
        if ended.code:
            raise SystemExit(f"{verb} ended with {ended.code}:\n{ended.said}")
        lines[verb], seconds[verb] = watch.counts, ended.seconds
    return lines, seconds


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def say(text: str) -> None:
    """Progress, with the CPU's seconds so far."""
    print(f"[{cpu_seconds():.0f} s] {text}", file=sys.stderr, flush=True)


def killed(whole: Place, forked: Place, costs: Costs, asked: argparse.Namespace) -> dict[str, Any]:
    """As many chains as it takes."""
    results, made = whole.results(), whole.made()
    same = forked.results() == results and forked.made() == made
    kills = Kills(asked.kills, asked.seed, *costs)
    while kills.made < asked.kills:
        place = Place(whole.study, whole.out.with_name(f"chain-{len(kills.chains)}"))
        kills.chain(place)
        own = kills.chains[-1]
        own["identical"] = place.results() == results and place.made() == made
        say(f"chain {len(kills.chains)}: {own}; {kills.made} of {asked.kills} kills")
    return {
        "kills": kills.made,
        "identical": same and all(own["identical"] for own in kills.chains),
        "lost": sum(own["lost"] for own in kills.chains),
        "by_phase": {name: kills.by_phase[name] for name in PHASES},
        "by_kind": dict(kills.by_kind),
        "runs": len(results["numbers"]) - 1,
        "forked_identical": same,
        "chains": kills.chains,
    }


def met(name: str, cases: Cases) -> Row:
    """One fault."""
    text = json.dumps({"fault": name, **CASES[name](cases)})
    row: Row = json.loads(text.replace(str(cases.folder), "runs"))
    say(json.dumps({key: value for key, value in row.items() if key != "tries"}))
    for own in row.get("tries", ()):
        if not own["right"]:
            say(f"wrong: {json.dumps(own)}")
    return row


def gathered(asked: argparse.Namespace, before: Row, kills: Row | None, faults: Mapping[str, Row]) -> Row:
    """All that is known so far; written at once, so that a bench that is stopped keeps it."""
    rows = [faults[name] for name in CASES if name in faults]
    told = {
        "kills": kills["kills"] if kills else 0,
        "identical": (not kills or kills["identical"]) and all(row["identical"] for row in rows),
        "lost": (kills["lost"] if kills else 0) + sum(row["lost"] for row in rows),
        "right": all(row.get("right", True) for row in rows),
        "killed": kills, "faults": rows,
        "cpu_seconds": before.get("cpu_seconds", 0) + round(cpu_seconds()),
    }  # fmt: skip
    if asked.out:
        write_atomically(asked.out, json.dumps(told, indent=2) + "\n")
    return told


def main() -> None:
    """Faults, then kills; JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--add", action="store_true", help="keep other faults of --out; its kills, with --kills 0")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    before: Row = json.loads(asked.out.read_text()) if asked.add and asked.out.is_file() else {}
    faults, kills = {row["fault"]: row for row in before.get("faults", [])}, before.get("killed")
    with tempfile.TemporaryDirectory() as made:
        folder, study = Path(made), Path(made) / "study.yaml"
        study.write_text(STUDY)
        whole = Place(study, folder / "whole")
        undisturbed(whole)
        preload()
        forked = Place(study, folder / "forked")
        costs = measured(forked)
        cases = Cases(folder, whole, costs[0]["run"]["training"])
        for name in asked.only:
            faults[name] = met(name, cases)
            gathered(asked, before, kills, faults)
        if asked.kills:
            kills = killed(whole, forked, costs, asked)
    told = gathered(asked, before, kills, faults)
    print(json.dumps(told, indent=2))
    good = told["identical"] and told["right"] and not told["lost"] and told["kills"] >= asked.kills
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    if ENVIRONMENT.items() - os.environ.items():  # torch reads its threads as it is loaded, and it is loaded by now
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ENVIRONMENT})
    main()
