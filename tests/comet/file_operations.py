"""A process's operations on files, told one by one, and ended or refused at one of them.

Seen are Python's own, by its audit events, and files that safetensors writes.
"""

import errno
import os
import signal
import sys
from pathlib import Path

import safetensors.numpy
import safetensors.torch

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(root: str, log: str, *, dies_at: int | None = None, full_from: int | None = None) -> None:
    """Count what this process does below a folder from now on.

    Args:
        root: the folder.
        log: file that each operation gets a line in.
        dies_at: number of the one in place of which the process ends, as by `kill -9`.
        full_from: of the first write that finds the disk full; so do all after it.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    root = os.path.realpath(root) + os.sep
    count = 0

    def done(what: str, path: object, *, writes: bool = True) -> None:
        nonlocal count
        if isinstance(path, (str, bytes, Path)):
            named = os.fsdecode(path)
            if os.path.isabs(named) and not (os.path.realpath(named) + os.sep).startswith(root):
                return
        else:  # a file that is open already
            return
        count += 1
        os.write(file, f"{count} {what} {path}\n".encode())
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if full_from is not None and count >= full_from and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def heard(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if (isinstance(flags, int) and flags & _WRITING) or set(mode or "") & set("wax+"):
                done("open", path)
        elif event in ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate"):
            done(event, arguments[1] if event == "os.rename" else arguments[0])
        elif event in ("os.remove", "os.rmdir") and not _is_absent(arguments[0]):
            done(event, arguments[0], writes=False)

    sys.addaudithook(heard)
    for module in (safetensors.torch, safetensors.numpy):
        _wrap(module, done)


def _is_absent(path) -> bool:
    return os.path.isabs(path) and not os.path.lexists(path)


def _wrap(module, done) -> None:
    serialize_file = module.serialize_file

    def written(tensors, path, *rest, **named):
        try:
            done("safetensors", str(path))
        except OSError as error:
            raise safetensors.SafetensorError(
                f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
            ) from None
        return serialize_file(tensors, path, *rest, **named)

    module.serialize_file = written
