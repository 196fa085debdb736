"""A metric of the study's own: its command is run once on every adapter that is compared.

The command is the study file's, and so the user's. It is run without a shell, in the folder of the study file, with
three arguments more: the folder of the adapter, the base model, and the file that it is to write.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.errors import ScoringError, StudyFileError
from adaptive_lora.files import expanded
from adaptive_lora.stats.metrics import Metric, metric_of
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.study_file import Study

TAIL = 20
"""Lines of a command's output that an error shows."""
NOTHING_LOST = "Nothing that was trained or scored is lost: the same command goes on with what has no score yet."
_NOTHING_LOST = (
    "Nothing that was trained or scored is lost: mend what the command needs and run the study again, which scores the "
    "adapters that have no score yet. The command's own text is locked; to change it, say why with --deviation."
)


def metric_of_study(study: Study) -> Metric:
    """What a study is judged by."""
    return metric_of(study.spec.analysis.model_dump(mode="json"))


def check_command(study: Study) -> None:
    """StudyFileError where the program of the study's own metric is nowhere to be found."""
    metric = metric_of_study(study)
    if not metric.command:
        return
    program, folder = metric.command[0], study.path.parent
    place = folder / expanded(program) if os.sep in program else program
    if shutil.which(place) is None:
        why = f"there is no program {str(place)!r} that can be run; name one that is on PATH, or by its path"
        raise StudyFileError(str(study.path), [study.complaint(("analysis", "metric", "command"), why)])


def is_to_be_scored(run: Mapping[str, Any], metric: Metric) -> bool:
    """Whether a completed run is to have a score; twins are a check and are not compared."""
    return metric.is_scored and run["phase"] == Phase.EVALUATION and not run["replica"] and metric.covers(run["arm"])


def unscored(ledger: Ledger, metric: Metric) -> list[dict[str, Any]]:
    """The evaluation runs that have still to be scored."""
    if not metric.is_scored:
        return []
    done, runs = ledger.scores.means(metric.key), ledger.runs(status=(Status.COMPLETED,))
    return [run for run in runs if is_to_be_scored(run, metric) and run["run_id"] not in done]


def scores_of(command: Sequence[str], folder: Path, label: str, should_stop: Callable[[], bool]) -> dict[str, float]:
    """Record -> value, as a command writes them into the file that is its last argument."""
    with tempfile.TemporaryDirectory(prefix="adaptive-lora-") as temporary:
        file = Path(temporary) / "scores.csv"
        whole = [*command, str(file)]
        said = _run(whole, folder, label, should_stop)
        try:
            return read_scores(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            why = f"it ended well, but wrote no file at its last argument, {file}"
        except (ValueError, OSError) as error:
            why = f"what it wrote cannot be read: {error}"
        raise _failed(whole, label, why, said)


def _run(command: Sequence[str], folder: Path, label: str, should_stop: Callable[[], bool]) -> str:
    """What the command printed; ScoringError where it could not be run or failed."""
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise _failed(command, label, f"it cannot be run: {error.strerror}", "") from None
    with process:
        try:
            said = _output(process, should_stop)
        except BaseException:
            process.kill()
            raise
    if should_stop():  # Ctrl-C reaches the command too
        raise KeyboardInterrupt
    if process.returncode:
        raise _failed(command, label, f"it ended with exit code {process.returncode}", said)
    return said


def _output(process: subprocess.Popen[str], should_stop: Callable[[], bool]) -> str:
    while True:
        try:
            return process.communicate(timeout=0.5)[0]
        except subprocess.TimeoutExpired:
            if should_stop():
                raise KeyboardInterrupt from None


def _failed(command: Sequence[str], label: str, why: str, said: str) -> ScoringError:
    lines = said.strip().splitlines()
    tail = "\n".join(["its last output:", *(f"  {line}" for line in lines[-TAIL:])]) if lines else "It printed nothing."
    return ScoringError(
        f"The command of `analysis.metric` gave {label} no score: {why}.\nrun: {shlex.join(command)}\n{tail}\n"
        f"{_NOTHING_LOST}"
    )


def read_scores(text: str) -> dict[str, float]:
    """Record -> value, of CSV with these columns or of JSON lines with these keys; ValueError says what is wrong.

    >>> read_scores("record,value\\n7,0.5\\n"), read_scores('{"record": 7, "value": 0.5}')
    ({'7': 0.5}, {'7': 0.5})
    """
    found: dict[str, float] = {}
    for line, row in _json_lines(text) if text.lstrip().startswith("{") else _csv_rows(text):
        record, value = row.get("record"), row.get("value")
        if record in (None, "") or value in (None, ""):
            raise ValueError(f"line {line} lacks `record` or `value`")
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"line {line}: {value!r} is no finite number")
        if str(record) in found:
            raise ValueError(f"line {line}: the record {str(record)!r} is there twice; one value a record")
        found[str(record)] = number
    if not found:
        raise ValueError("it has no value; `record,value` comes first, then one line a record")
    return found


def _csv_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text))
    names = reader.fieldnames or []
    if not {"record", "value"} <= set(names):
        raise ValueError(f"it has the columns {', '.join(names) or 'none'}, and needs `record` and `value`")
    yield from ((reader.line_num, row) for row in reader)


def _json_lines(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            yield number, row


def check_same(records: Sequence[str], values: Mapping[str, float], label: str, by: str) -> None:
    """ScoringError where a run was scored on other records than the ones before it; `by` says what scored it."""
    missing, new = [r for r in records if r not in values], [r for r in values if r not in set(records)]
    if missing or new:
        parts = [f"{len(some)} {what} ({', '.join(some[:3])}{' ...' if len(some) > 3 else ''})"
                 for what, some in (("missing", missing), ("new", new)) if some]  # fmt: skip
        raise ScoringError(
            f"{by} scored {label} on other records than the runs before it, which had {len(records)}: "
            f"{', '.join(parts)}. Runs are compared record by record, so that each needs the same ones under the same "
            f"names. {NOTHING_LOST}"
        )
