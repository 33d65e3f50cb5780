"""Remote files that outlive a broken connection: what fails is opened again where it stood, after growing waits."""

import io
import logging
import time
from typing import IO, Any

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

WAITS: tuple[float, ...] = (
    2,
    10,
    30,
    60,
)  # seconds; the hub's client has tried five times before each
BLOCK_BYTES = 1 << 22  # of a request
BUFFER_BYTES = 1 << 18
REMEDY = (
    "without the hub, give local .jsonl.gz or .txt files or a folder LANG/*.jsonl.gz to --corpus, "
    "or use --corpus toy"
)

_logger = logging.getLogger(__name__)


def is_remote(address: str) -> bool:
    """Whether an address is one of the network's rather than a path."""
    return "://" in address


class UnreachableError(ValueError):
    """A remote file cannot be had; the message says what to do."""

    def __init__(self, address: str, error: Exception) -> None:
        super().__init__(f"corpus: cannot read {address} ({reason(error)}); {REMEDY}")


def open_remote(address: str, size: int) -> IO[bytes]:
    """A `RemoteFile` behind a buffer."""
    return io.BufferedReader(RemoteFile(address, size), BUFFER_BYTES)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RemoteFile(io.RawIOBase):
    """The bytes of a remote file, in order.

    Args:
        address: as fsspec knows it.
        size: how many there are.

    Raises:
        UnreachableError: from reading, once a connection failed `len(WAITS) + 1` times at the same byte.
    """

    def __init__(self, address: str, size: int) -> None:
        super().__init__()
        self._address = address
        self._size = size
        self._position = 0
        self._file: Any = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 at the end."""
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        # the libraries below raise errors of their own HTTP client, which changes between versions
        for wait in (*WAITS, None):
            try:
                data = self._read(length)
                break
            except Exception as error:
                self._forget()
                if wait is None:
                    raise UnreachableError(self._address, error) from error
                _logger.warning(
                    "corpus: %s broke off at byte %d (%s); going on from there in %g s",
                    self._address, self._position, reason(error), wait,
                )  # fmt: skip
                time.sleep(wait)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        self._forget()
        super().close()

    def _read(self, length: int) -> bytes:
        if self._file is None:
            files, path = url_to_fs(self._address)
            self._file = files.open(path, "rb", block_size=BLOCK_BYTES)
            self._file.seek(self._position)
        data: bytes = self._file.read(length)
        if not data:
            raise ConnectionError(f"ended at byte {self._position} of {self._size}")
        return data

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
