"""Files and folders that are there whole or not at all, and stay when the machine goes down; and their checksums."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Set
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

_BLOCK = 1 << 24
_RECORD = "recipe.yaml"  # in the folder of every run
_RECORD_ABOVE = 3  # levels, from RUN/seed-0/hau/model
_SAVED = frozenset(  # what versions of Comet and transformers write next to weights
    {
        "README.md", "added_tokens.json", "chat_template.jinja", "comet.json", "config.json", "generation_config.json",
        "merges.txt", "model.safetensors", "model.safetensors.index.json", "sentencepiece.bpe.model",
        "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "vocab.json", "vocab.txt",
    }
)  # fmt: skip


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all; several processes may do so at once.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        replace_file(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file likewise, for people to read too."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_file(partial: Path, final: Path) -> None:
    """Put a file that was written aside into its place."""
    synchronise(partial)
    os.replace(partial, final)
    synchronise(final.parent)


def replace_folder(partial: Path, final: Path) -> None:
    """Put a folder that was written aside into its place; what an earlier attempt of the same run left there goes.

    Raises:
        ValueError: something is there that no run wrote; it stays.
        OSError: the disk is full, or the folder cannot be written.
    """
    _require_own(final, {path.relative_to(partial).as_posix() for path in partial.rglob("*")})
    for path in (*partial.rglob("*"), partial):
        synchronise(path)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        final.rename(old)
    partial.rename(final)
    synchronise(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove a folder that holds nothing but locks and what was being written when a process was killed."""
    if folder.is_symlink() or not folder.is_dir():
        return
    if all(path.name == ".lock" or fnmatch(path.name, ".*.partial") for path in folder.iterdir()):
        shutil.rmtree(folder)


def _require_own(folder: Path, names: Set[str]) -> None:
    """Refuse to replace a folder, unless a run wrote all that is in it.

    Args:
        folder: to be replaced.
        names: files and folders that are about to be written there, relative to it.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    advice = "move it elsewhere, or give another --output"
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"cannot replace {folder}: it is no folder that Comet wrote; {advice}")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    foreign = [
        name for name in sorted(there - names - _SAVED) if not fnmatch(name, "model-*.safetensors")
    ]
    if foreign:
        raise ValueError(
            f"cannot replace {folder}: it holds {foreign[0]}, which Comet did not write; {advice}"
        )
    above = folder.absolute().parents[:_RECORD_ABOVE]
    if there and not any((one / _RECORD).is_file() for one in above):
        raise ValueError(
            f"cannot replace {folder}: no run of Comet's is around it (no {_RECORD} above it); {advice}"
        )


def synchronise(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
