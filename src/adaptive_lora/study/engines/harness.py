"""A task of lm-evaluation-harness, run on the model in memory with each adapter in turn: the harness's own numbers.

Requests are built by the harness as a whole, so that worked examples are drawn as `lm_eval run` draws them, and are
answered in stretches that are kept one by one: what was cut goes on behind the last of them, with the same batches.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from adaptive_lora.errors import ScoringError, StudyFileError, nearest_hint
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.stats.metrics import known_direction
from adaptive_lora.study.engines.scorer import Scoring
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.schema_metric import TaskPart
from adaptive_lora.study.task_files import TaskFile, is_task_file, read_task_file
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import LARGEST_LOGITS

STRETCH = 64
"""Requests that are kept together."""
_LARGEST_BATCH = 16
_FEWSHOT_SEED = 1234
"""The harness's own default."""
_MISSING = "lm-evaluation-harness is not installed here; `pip install 'adaptive-lora[eval]'` adds it"


class TaskScorer:
    """By one metric of one task, item by item."""

    frozen = True

    def __init__(self, prepared: PreparedStudy) -> None:
        part = prepared.study.spec.analysis.metric
        assert isinstance(part, TaskPart)
        self._part, self._base = part, prepared.base
        self.by = f"The task {part.task}"
        self._file: TaskFile | None = None
        with _explained(prepared, part):
            if is_task_file(part.task):
                self._file = read_task_file(Path(prepared.study.locate(part.task)))
            with self._harness():
                self._task = self._opened()
            self._check()
            if part.fewshot is not None:
                self._task.set_config(key="num_fewshot", value=part.fewshot)
        self._name = str(self._task.get_config("task") or part.task)
        items = len(self._task.eval_docs)
        self.facts: Mapping[str, Any] = {
            "lm_eval": metadata.version("lm_eval"), "task": self._name, "version": str(self._task.VERSION),
            "digest": self._file.digest if self._file else _digest(self._task),
            "items": min(items, part.limit or items),
        }  # fmt: skip

    @contextlib.contextmanager
    def _harness(self) -> Iterator[None]:
        """The harness without its chatter, and with the templates of a task file of the user's own in a sandbox."""
        import datasets
        import lm_eval.api.task as tasks
        import lm_eval.utils as utils
        from jinja2 import BaseLoader, StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        logger, bar = logging.getLogger("lm_eval"), tasks.tqdm
        level, environment, bars = logger.level, utils.env, not datasets.are_progress_bars_disabled()
        logger.setLevel(logging.ERROR)
        tasks.tqdm = functools.partial(bar, disable=True)
        datasets.disable_progress_bars()
        if self._file is not None:
            utils.env = ImmutableSandboxedEnvironment(
                loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
            )
            utils.env.filters.update(environment.filters)
        try:
            with quiet_libraries():
                yield
        finally:
            tasks.tqdm, utils.env = bar, environment
            logger.setLevel(level)
            if bars:
                datasets.enable_progress_bars()

    def _opened(self) -> Any:
        """The harness's task, with its data."""
        if self._file is not None:
            from lm_eval.api.task import ConfigurableTask

            return ConfigurableTask(config=copy.deepcopy(dict(self._file.config)))
        from lm_eval.tasks import TaskManager

        manager, name = TaskManager(), self._part.task
        if name not in manager.all_subtasks:
            raise ValueError(_unknown(name, manager))
        (task,) = manager.load([name])["tasks"].values()
        return task

    def _check(self) -> None:
        """ValueError where the task cannot give one number an item and adapter."""
        task, part = self._task, self._part
        known = {str(name): bool(higher) for name, higher in task.higher_is_better().items()}
        if part.metric not in known:
            raise ValueError(f"the task has no metric {part.metric!r}; it has {', '.join(known)}")
        there, here = "higher" if known[part.metric] else "lower", part.better or known_direction(part.metric)
        if there != here:
            raise ValueError(f"the task says that a {there} {part.metric} is better, and here a {here} one is")
        filters = [str(own.name) for own in getattr(task, "_filters", [])]
        if filters and part.filter not in filters:
            raise ValueError(f"the task has no filter {part.filter!r}; write one of these: {', '.join(filters)}")
        if part.fewshot and task.get_config("num_fewshot") == 0:
            raise ValueError("the task has no worked examples by its own word, `num_fewshot: 0`; leave `fewshot` out")
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError("the task runs code that the model writes, which is not done here")
        asked = task.get_config("generation_kwargs") or {}
        if task.OUTPUT_TYPE == "generate_until" and (asked.get("do_sample") or asked.get("temperature")):
            raise ValueError("the task samples its answers, so that an adapter would have no one score")

    def values(self, scoring: Scoring, told: Callable[[int, int], None]) -> dict[str, float]:
        """Item -> value; items are named by their number and a hash of document, prompt and target."""
        from lm_eval.evaluator import evaluate

        with scoring.attached(), self._harness(), _stopping(self._base.model, scoring.engine.should_stop):
            self._task.set_fewshot_seed(seed=_FEWSHOT_SEED)
            found = evaluate(
                lm=_model(self._base, scoring, told), task_dict={self._name: self._task},
                limit=self._part.limit, bootstrap_iters=0, log_samples=True, apply_chat_template=self._part.chat,
                fewshot_as_multiturn=self._part.chat,
                confirm_run_unsafe_code=False,
            )  # fmt: skip
        return self._read(found["samples"][self._name])

    def _read(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        metric, own = self._part.metric, [s for s in samples if s["filter"] == self._part.filter]
        values = {}
        for sample in own:
            value = sample.get(metric)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ScoringError(
                    f"{metric} of {self._part.task} is no number on item {sample['doc_id']}: {str(value)[:60]!r}. "
                    "Choose a metric with a number for every item, such as acc or exact_match."
                )
            hashes = "".join(str(sample.get(f"{of}_hash")) for of in ("doc", "prompt", "target"))
            values[f"{sample['doc_id']}:{hashlib.sha256(hashes.encode()).hexdigest()[:8]}"] = float(value)
        return values


def _model(base: FrozenBase, scoring: Scoring, told: Callable[[int, int], None]) -> Any:
    """The harness's view of the model in memory, whose answers are kept stretch by stretch."""
    from lm_eval.models.huggingface import HFLM

    class Kept(HFLM):  # type: ignore[misc]
        """`HFLM` that goes on where it was cut."""

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            found = self._in_stretches("loglikelihood", requests, super().loglikelihood)
            return [(float(nll), bool(is_greedy)) for nll, is_greedy in found]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            return [str(text) for text in self._in_stretches("generate_until", requests, super().generate_until)]

        def _in_stretches(self, kind: str, requests: list[Any], ask: Callable[..., list[Any]]) -> list[Any]:
            found: list[Any] = []
            for begin in range(0, len(requests), STRETCH):
                some = requests[begin : begin + STRETCH]
                asked = hashlib.sha256(json.dumps([r.args for r in some], default=str).encode()).hexdigest()[:16]
                make = functools.partial(ask, some, disable_tqdm=True)
                found += scoring.part(f"{kind}:{begin}:{asked}", make)
                told(len(found), len(requests))
            return found

    # The harness gives a tokenizer a token to pad with: the study's own stays as it is.
    return Kept(pretrained=base.model, tokenizer=copy.deepcopy(base.tokenizer), batch_size=batch_size(base))


def batch_size(base: FrozenBase) -> int:
    """Requests at a time, so that their logits stay within what evaluation allows; the same for every adapter."""
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    length = min(base.outline.context or 1024, 1024)
    return max(1, min(_LARGEST_BATCH, LARGEST_LOGITS // (vocabulary * length)))


@contextlib.contextmanager
def _stopping(model: Any, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Asks before every pass of the model; True raises KeyboardInterrupt."""

    def ask(*_: Any) -> None:
        if should_stop():
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(ask)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _explained(prepared: PreparedStudy, part: TaskPart) -> Iterator[None]:
    """Turns what keeps a task from being opened into a StudyFileError at its key."""
    study, at = prepared.study, ("analysis", "metric", "task")
    try:
        yield
    except StudyFileError:
        raise
    except ImportError as error:
        why = _MISSING if (error.name or "").startswith("lm_eval") else f"{part.task} cannot be opened: {error}"
        raise StudyFileError(str(study.path), [study.complaint(at, why)]) from error
    except ValueError as error:
        raise StudyFileError(str(study.path), [study.complaint(at, f"{part.task}: {error}")]) from error
    except Exception as error:
        # The hub, data sets and task authors' code fail in their own ways; nothing has been written by now.
        why = (
            f"the task {part.task} cannot be opened: {type(error).__name__}: {str(error).strip()[:300]}. Tasks of the "
            "harness fetch their data from the hub; without a network, name a task file with data beside it"
        )
        raise StudyFileError(str(study.path), [study.complaint(at, why)]) from error


def _unknown(name: str, manager: Any) -> str:
    if name in manager.all_tasks:
        return "a group of several tasks; one metric is of one task, name one of them"
    hint = nearest_hint(name, manager.all_subtasks)
    return f"lm-evaluation-harness has no such task{hint}; `lm-eval ls tasks` lists them"


def _digest(task: Any) -> str:
    """Of what a task of the harness says, the source of its functions too."""
    config = task.config.to_dict() if hasattr(task.config, "to_dict") else vars(task.config)
    config.pop("metadata", None)  # where the installation lies
    said = re.sub(r"0x[0-9a-f]+", "", json.dumps(config, sort_keys=True, default=str))
    return hashlib.sha256(said.encode()).hexdigest()
