"""Files and folders that are there whole or not at all, and stay when the machine goes down; and their checksums."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

_BLOCK = 1 << 24


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def replace_file(partial: Path, final: Path) -> None:
    """Put a file that was written aside into its place."""
    synchronise(partial)
    os.replace(partial, final)
    synchronise(final.parent)


def replace_folder(partial: Path, final: Path) -> None:
    """Put a folder that was written aside into its place."""
    for path in (*partial.rglob("*"), partial):
        synchronise(path)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        final.rename(old)
    partial.rename(final)
    synchronise(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def synchronise(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
