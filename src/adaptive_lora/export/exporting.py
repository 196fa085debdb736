"""One export from start to end: written, read back, told of."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_lora.errors import UsageError
from adaptive_lora.export.card import CARD_FILE, COMPAT_FILE, Exported, Story, card, compat_json
from adaptive_lora.export.checked_folder import hashes_of
from adaptive_lora.export.checking import PROMPTS, probes
from adaptive_lora.export.fitting import fitted_weights
from adaptive_lora.export.forms import Form
from adaptive_lora.export.low_rank import AdapterWeights
from adaptive_lora.export.peft_folder import BaseFacts
from adaptive_lora.export.tools import Tool
from adaptive_lora.export.writing import Job, check_form, write_form
from adaptive_lora.files import write_atomically
from adaptive_lora.redaction import redacted

if TYPE_CHECKING:
    from adaptive_lora.training.base import FrozenBase


@dataclass(frozen=True)
class Order:
    """How an adapter is to be exported."""

    form: Form
    tool: Tool | None = None
    """Which tool it is for; its commands come first."""
    prompts: Sequence[str] = PROMPTS
    llama_cpp: Path | None = None


def check_free(folder: Path) -> None:
    """UsageError where a folder has something in it: an export overwrites nothing."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and an export overwrites nothing: name another --out, or remove it.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a folder with --out.")


def export_adapter(
    adapter: AdapterWeights,
    base: FrozenBase,
    facts: BaseFacts,
    folder: Path,
    story: Story,
    order: Order,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Writes an adapter in a form, reads it back, and writes its card and `compat.json`.

    The folder appears once all is written; one that was checked and is wrong appears too. Ask `.check.require`, which
    raises. Raises UsageError, with nothing written, where the adapter is not one of the base, or the form cannot be
    written of this model or here.
    """
    check_free(folder)
    adapter = fitted_weights(adapter, facts.modules, story.name)
    with appearing(folder) as partial:
        job = Job(adapter, base, facts, partial, order.llama_cpp)
        say("what the adapter says to the prompts")
        asked = probes(base, adapter, order.prompts)
        say(f"writing the form {order.form}")
        write_form(order.form, job)
        say("reading it back")
        check = check_form(order.form, job, asked)
        found = Exported(order.form, str(folder), story, adapter, facts, check, tuple(asked))
        write_beside(partial, found, order.tool)
    return found


def write_beside(folder: Path, found: Exported, tool: Tool | None) -> None:
    """Writes the card and `compat.json`, which holds the hashes of what lies there before."""
    hashes = hashes_of(folder)
    write_atomically(folder / CARD_FILE, redacted(card(found, tool)))
    write_atomically(folder / COMPAT_FILE, redacted(compat_json(found, hashes)))


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A place beside `folder` to write to, which takes its name in the end; where that fails, nothing is left."""
    place = folder.resolve()  # a link to an empty folder stays a link
    partial = place.with_name(f".{place.name[:40]}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if place.is_dir():
        place.rmdir()  # empty, as was checked
    partial.replace(place)
