"""A GGUF file as a base model: dequantised once into a folder of safetensors, through transformers."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from adaptive_lora.errors import ModelError
from adaptive_lora.files import write_atomically
from adaptive_lora.models.cache import Provenance, build_in_cache, cache_folder, file_sha256, provenance_of
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.models.older_keys import add_older_keys


def gguf_folder(file: Path) -> Path:
    """The folder with the weights of a GGUF file, converted now if it never was; ModelError with the remedy.

    Converted once for each content of the file, wherever it lies. Weights are kept in float32, in which every
    quantised value is exact.
    """
    if file.is_dir():
        raise ModelError(f"{file} is a folder and not a GGUF file; name the file in it.")
    if not file.is_file():
        raise ModelError(f"The model file {file} does not exist. Give a .gguf file, a folder, a hub name, or `demo`.")
    sha256 = _known_sha256(file)
    folder = cache_folder() / f"gguf-{sha256[:16]}"
    found = provenance_of(folder)
    if found is not None and found.sha256 == sha256:
        return folder
    return build_in_cache(folder, lambda to: dequantise(file, to, Provenance(file.name, sha256, "", None, "")))


def dequantise(file: Path, to: Path, origin: Provenance) -> Provenance:
    """Writes configuration, tokenizer and float32 weights of `file` into the folder `to`.

    Returns `origin` with the file's quantisation and the libraries' versions. ModelError where transformers
    cannot read the file.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ModelError(
            f"{file.name} is a GGUF file, which needs the package gguf to be read: pip install 'gguf>=0.10', or name a "
            "folder with safetensors."
        ) from None
    import transformers

    _check_magic(file)
    try:
        model, tokenizer = _read(file)
    except Exception as error:
        # A dozen unrelated classes; all mean that transformers does not know this architecture or quantisation.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{file}: transformers {transformers.__version__} cannot read this GGUF file: {reason.rstrip('.')}. "
            "Is it whole? If so, name a folder or hub name with the model's safetensors instead."
        ) from error
    with quiet_libraries():
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
    add_older_keys(to)
    for path in to.glob("*.safetensors"):
        path.chmod(0o644)  # written for its owner alone; a cache may be shared
    by = f"transformers {transformers.__version__}, gguf {_version(gguf)}"
    return Provenance(origin.source, origin.sha256, quantisation_of(file), origin.licence, by)


def quantisation_of(file: Path) -> str:
    """How most weights of a GGUF file are stored, such as `Q4_1`, by its own header."""
    import gguf

    field = gguf.GGUFReader(file).fields.get("general.file_type")
    if field is None:
        return "an unnamed quantisation"
    try:
        return str(gguf.LlamaFileType(int(field.contents())).name).removeprefix("MOSTLY_")
    except ValueError:  # newer than the library, or nobody's
        return "an unnamed quantisation"


def read_gguf_model(file: Path) -> Any:
    """The model in a GGUF file, in float32 and without its tokenizer; ModelError where transformers cannot read it."""
    import transformers

    _check_magic(file)
    try:
        return _read_model(file)
    except Exception as error:  # as in `dequantise`
        raise ModelError(
            f"{file}: transformers {transformers.__version__} cannot read this GGUF file: {error}"
        ) from error


def _read(file: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **_place(file))
    return _read_model(file), tokenizer


def _read_model(file: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    # Without `dequantize` the model keeps a quantisation that cannot be saved (transformers 5.23).
    plain = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(file.parent, **_place(file), **plain)


def _place(file: Path) -> dict[str, Any]:
    return {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}


def _check_magic(file: Path) -> None:
    with file.open("rb") as content:
        found = content.read(4)
    if found != b"GGUF":
        raise ModelError(
            f"{file} does not begin as a GGUF file does (found {found!r}); it may be another file or cut short."
        )


def _known_sha256(file: Path) -> str:
    """The file's hash, remembered by name, size and times, as large files take seconds."""
    facts = file.stat()
    # The time of change cannot be set: files of equal size out of archives may have equal times of modification.
    identity = f"{file.resolve()}\0{facts.st_ino}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
    stamp = cache_folder() / "stamps" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if stamp.is_file():
        return stamp.read_text().strip()
    found = file_sha256(file)
    with contextlib.suppress(OSError):  # only a convenience
        write_atomically(stamp, found + "\n")
    return found


def _version(module: Any) -> str:
    from importlib.metadata import version

    return version(module.__name__)
