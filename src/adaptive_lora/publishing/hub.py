"""An export onto the Hugging Face hub: asked first, uploaded whole, and nothing but what was exported and checked.

The token is the one of `hf auth login` or of $HF_TOKEN, taken where a request is made; nothing keeps, writes or prints
it. What the hub says of a failure is redacted before it is told.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_lora.errors import HubError, UsageError
from adaptive_lora.export.checked_folder import CheckedFolder, checked_folder
from adaptive_lora.redaction import has_token, redacted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_OWN_FILES = frozenset({".gitattributes"})
"""What the hub puts into a new repository."""
_TEXTS = (".md", ".json", ".jinja", ".txt", ".yaml")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN in the environment"
_MEANINGS = {
    401: "the hub does not accept the token: log in again with `hf auth login`, or correct HF_TOKEN, which counts "
    "first.",
    403: "the token may not write there: make one with write access to {owner} at {endpoint}/settings/tokens.",
    404: "the hub has no such repository, or the token may not see it.",
    409: "the hub reports a conflict: it was made or changed just now by somebody else, or exists where the token may "
    "not look. Look at {endpoint}/{repo}, or name another repository.",
    412: "it was changed by somebody else just now. Look at {endpoint}/{repo}.",
    413: "it is too large for the hub.",
    429: "the hub asks for fewer requests: try again later.",
}
"""What a refusal means, by its status, and what to do."""


@dataclass(frozen=True)
class Target:
    """A repository of the hub that an export may go to."""

    repo: str
    """OWNER/NAME."""
    public: bool
    endpoint: str
    exists: bool
    """There already, empty and as private or public as was asked for."""
    commit: str | None = None
    """Its newest commit, where it exists: an upload on top of another one is refused by the hub."""

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.endpoint}/{self.repo}"


def check_repo(repo: str) -> str:
    """`repo` where it is a name OWNER/NAME; UsageError otherwise."""
    if has_token(repo):
        raise UsageError(f"--push names a repository, and no token; {_LOGIN}.")
    if not _REPO.fullmatch(repo) or len(repo) > 96 or re.search(r"--|\.\.|\.git$", repo):
        raise UsageError(f"--push names {repo!r}, which is no repository of the hub: write OWNER/NAME.")
    return repo


def open_target(repo: str, public: bool) -> Target:
    """The repository, asked of the hub; nothing is made or changed there.

    UsageError where one is offline, not logged in, or where the repository has files already, or is public where a
    private one was asked for (or the other way round). HubError with the remedy where the hub refuses.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    check_repo(repo)
    api = _api()
    new = Target(repo, public, api.endpoint, exists=False)
    with _explained(new, "looking at"):
        try:
            found = api.model_info(repo)
        except RepositoryNotFoundError as error:
            if _status(error) == 401:  # the hub's answer to a token that it does not know
                raise
            return new
    kind, wanted = ("private" if found.private else "public"), ("public" if public else "private")
    if kind != wanted:
        remedy = "Leave --public out" if public else "Say --public if all the world may have it"
        raise UsageError(f"{new.url} exists and is {kind}, and {wanted} was asked for. {remedy}, or name another one.")
    if there := sorted({own.rfilename for own in found.siblings or ()} - _OWN_FILES):
        raise UsageError(
            f"{new.url} has {len(there)} files already ({', '.join(there[:3])} ...), and an upload overwrites nothing: "
            "what lies there would no longer be one export that was checked. Name another repository."
        )
    return Target(repo, public, api.endpoint, exists=True, commit=found.sha)


def listing(target: Target, found: CheckedFolder) -> list[str]:
    """What an upload will do, line by line: every file with its size, and who can see it.

    UsageError where a text has a token in it.
    """
    for name in found.files:
        if name.endswith(_TEXTS) and has_token((found.folder / name).read_text(encoding="utf-8", errors="replace")):
            raise UsageError(f"{found.folder / name} has a token in it, and is not uploaded: take it out.")
    kind = "PUBLIC: everybody can read it" if target.public else "private"
    lines = [f"to {target.url} ({'empty so far' if target.exists else 'new'}, {kind}):"]
    lines += [f"  {size_of(size):>9}  {name}" for name, size in found.files.items()]
    lines.append(f"  {size_of(found.size):>9}  in {len(found.files)} files, all of {found.folder}; nothing else")
    if Path(found.base_model).expanduser().exists():
        lines.append(
            f"note: they name the base model as {found.base_model}, a folder here, which nobody else can load; export "
            "with --model and its name on the hub where it has one"
        )
    return lines


def push_to_hub(folder: str | Path, repo: str, *, public: bool = False) -> str:
    """Uploads a folder that `export_adapter` wrote to the Hugging Face hub; returns the commit's URL.

    `repo` is OWNER/NAME: made where there is none, private unless `public`, refused where it has files. Uploaded are
    the files of the export, unchanged since they were checked (the card may have been edited), and nothing else. The
    token is that of `hf auth login` or of $HF_TOKEN, and never an argument. Raises UsageError and HubError with the
    remedy; the folder stays as it is.
    """
    found, target = checked_folder(Path(folder)), open_target(repo, public)
    listing(target, found)  # for what it refuses
    return push(target, found)


def push(target: Target, found: CheckedFolder, say: Callable[[str], None] = lambda _: None) -> str:
    """Makes the repository where there is none, and uploads the files in one commit; returns the commit's URL.

    Nothing in the folder is changed, whatever happens. HubError with what the hub refused; a repository that was made
    by then stays, empty, and the same upload can be tried again.
    """
    from huggingface_hub import CommitOperationAdd

    api = _api()
    if not target.exists:
        say(f"making {target.url}")
        with _explained(target, "making"):
            api.create_repo(target.repo, private=not target.public, repo_type="model", exist_ok=False)
    say(f"uploading {len(found.files)} files, {size_of(found.size)}")
    operations = [CommitOperationAdd(name, str(found.folder / name)) for name in found.files]
    with _explained(target, "uploading to"), _bars_on_terminals():
        done = api.create_commit(
            target.repo, operations, commit_message="Upload an export of adaptive-lora", parent_commit=target.commit
        )
    return str(done.commit_url)


def size_of(size: int) -> str:
    """Bytes for people.

    >>> size_of(532), size_of(98_362_432)
    ('532 B', '98.4 MB')
    """
    value, units = float(size), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 999.95 or unit == units[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _api() -> HfApi:
    """The hub's client with the user's token; UsageError offline, and where nobody is logged in."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing is uploaded: unset it, or leave --push out."
        )
    token = huggingface_hub.get_token()
    if token is None:
        raise UsageError(f"Nobody is logged in to the hub: {_LOGIN}. A token is never an argument.")
    return huggingface_hub.HfApi(endpoint=constants.ENDPOINT, token=token)


@contextlib.contextmanager
def _explained(target: Target, doing: str) -> Iterator[None]:
    """Errors of the hub's client as HubError, with what they mean, and without what was sent."""
    try:
        with warnings.catch_warnings():  # the client's, of libraries of its own
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except Exception as error:  # of a dozen unrelated classes, by version; none of ours runs in here
        status = _status(error)
        meaning = _MEANINGS.get(status or 0, "").format(
            owner=target.repo.partition("/")[0], endpoint=target.endpoint, repo=target.repo
        )
        told = meaning or (f"the hub failed with {status}: try again later." if status else _unreached(error))
        raise HubError(redacted(f"{doing} {target.url}: {told}")) from None


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """The client's progress bars only where somebody watches them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error, or of one that it came from."""
    while error is not None:
        found = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(found, int):
            return found
        error = error.__cause__ or error.__context__
    return None


def _unreached(error: BaseException) -> str:
    while error.__cause__ is not None:  # the client's own words come last: "Error while uploading"
        error = error.__cause__
    first = (str(error).strip().splitlines() or [""])[0]
    return f"it did not go through ({type(error).__name__}: {first}). Check the network, and try again."
