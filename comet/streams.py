"""What is printed, wherever it goes: no terminal's encoding and no reader that left can end a run."""

import errno
import io
import os
import sys
from typing import Any

READER_LEFT = 141  # the exit code of what SIGPIPE ends: 128 + 13


class _Lasting(io.FileIO):
    """A file descriptor, and nothing once nobody reads it any more."""

    has_reader = True

    def write(self, data: object) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: of a terminal that was closed
                raise
            self.has_reader = False
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes  # type: ignore[arg-type]


def prepare_output() -> None:
    """Let standard output and error take every character, in escapes where the encoding has none, and lose readers."""
    if sys.stdout is sys.__stdout__:  # else somebody replaced it, as a test does
        sys.stdout = outlasting(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = outlasting(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def has_reader() -> bool:
    """Whether standard output still goes somewhere, as far as what was printed so far tells."""
    buffer = getattr(sys.stdout, "buffer", None)
    return bool(getattr(getattr(buffer, "raw", buffer), "has_reader", True))


def outlasting(stream: Any) -> Any:
    """The same stream, but once its reader leaves it takes everything without an error."""
    if not isinstance(stream, io.TextIOWrapper):  # there is none, as where it was closed
        return stream
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    unbuffered = isinstance(stream.buffer, io.RawIOBase)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
