"""Documents of files, line by line, with the place of each: `.jsonl` and `.txt`, plain or gzipped, local or remote.

A place is how many lines of which file were read, so a reader can go on exactly where another stood. What cannot be
read is a problem with a file and a line; the lines around it are read, and so are the files after a damaged one.
"""

import contextlib
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple, cast

from comet.corpus.connection import is_remote, open_remote
from comet.corpus.encodings import HEAD, encoding_error
from comet.corpus.problems import FILE, Problem, Problems
from comet.durable import sampled_checksum

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")
LONGEST_LINE = 1 << 26  # bytes; a shard that lost its newlines must not fill the memory
SAMPLE = 1 << 23  # bytes that the number of documents is estimated from
SAMPLED_FILES = 8
_MADLAD = re.compile(r"(?:^|/)\w+_(?:clean|noisy)_\d+\.jsonl(?:\.gz)?$")  # LANG_clean_0000.jsonl.gz
HASHED = 1 << 26  # bytes of a language's files that are read to tell them from others


@dataclass(frozen=True)
class Shard:
    """A file of documents.

    Attributes:
        address: a path, or an address that fsspec knows, such as hf://datasets/....
        size: bytes as it lies there.
        version: what changes when its content does: a hash of it, or what the hub says.
        time: when a file was written, in nanoseconds, whose version is a hash of some blocks alone; else 0.
    """

    address: str
    size: int
    version: str = ""
    time: int = 0

    @property
    def is_json(self) -> bool:
        """Whether each line is a JSON object with a "text"."""
        return self.address.endswith((".jsonl", ".jsonl.gz"))

    @property
    def is_madlad(self) -> bool:
        """Whether it is named as MADLAD-400's shards are, which write a newline as a backslash and an n."""
        return _MADLAD.search(self.address) is not None

    @property
    def is_gzipped(self) -> bool:
        """Whether it is compressed."""
        return self.address.endswith(".gz")

    def open(self) -> IO[bytes]:
        """Its bytes as they lie there."""
        if is_remote(self.address):
            return open_remote(self.address, self.size)
        return open(self.address, "rb")

    def head(self) -> bytes:
        """The beginning of its content, as much as can be read of it."""
        with contextlib.suppress(EOFError, OSError, zlib.error), self.open() as raw:
            return self.inflated(raw).read(HEAD)
        return b""

    def inflated(self, raw: IO[bytes]) -> IO[bytes]:
        """Its content, of its bytes as they lie there."""
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if self.is_gzipped else raw


class Line(NamedTuple):
    """A document and its line, counted from 1."""

    number: int
    text: str


def documents(
    shard: Shard, problems: Problems, start: int = 0, part: int = 0, parts: int = 1
) -> Iterator[Line]:
    """Read the documents of a file.

    Args:
        shard: the file.
        problems: where what cannot be read is counted.
        start: lines to pass over.
        part: which lines to read: those that leave this remainder.
        parts: when their number is divided by this one.

    Raises:
        ValueError: a remote file cannot be reached, or a problem is found and `problems` is strict.
    """
    number = 0
    try:
        for number, line in enumerate(_raw_lines(shard), start=1):
            if number <= start or number % parts != part:
                continue
            try:
                text = _text(line, shard)
            except ValueError as error:
                problems.add(Problem(shard.address, number, str(error)))
            else:
                yield Line(number, text)
    except (EOFError, OSError, zlib.error) as error:
        if number >= start and part == 0:  # one reader reports it
            reason = f"{FILE} cannot be read from here on ({error})"
            if shard.is_gzipped:
                reason += "; it is damaged or cut off, fetch it again"
            problems.add(Problem(shard.address, number + 1, reason))
    else:
        if number == 0 and part == 0:
            problems.add(Problem(shard.address, 1, f"{FILE} is empty"))


def _raw_lines(shard: Shard) -> Iterator[bytes | None]:
    """The lines as bytes, so that one badly encoded line does not hide those around it; None for one too long."""
    with shard.open() as raw:
        stream = shard.inflated(raw)
        while line := stream.readline(LONGEST_LINE):
            too_long = len(line) == LONGEST_LINE and not line.endswith(b"\n")
            yield None if too_long else line
            while too_long and not line.endswith(b"\n") and line:
                line = stream.readline(LONGEST_LINE)


def _text(line: bytes | None, shard: Shard) -> str:
    """The document of a line, or a ValueError that says why it has none."""
    if line is None:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB")
    try:
        decoded = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    if not shard.is_json:
        return clean(decoded)
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(record, dict) or "text" not in record:
        raise ValueError('no "text"')
    text = record["text"]
    if shard.is_madlad and isinstance(text, str):
        text = text.replace("\\n", "\n")
    return clean(text)


def clean(text: object) -> str:
    """Check and strip a text.

    Raises:
        ValueError: it is no string, is empty, or holds half of a surrogate pair or NUL characters.
    """
    if not isinstance(text, str):
        raise ValueError(f'"text" is {type(text).__name__}, not a string')
    text = text.strip()
    if not text:
        raise ValueError("empty text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    if "\0" in text:
        raise ValueError("holds NUL characters")
    return text


def estimated_documents(shards: Sequence[Shard]) -> float:
    """How many lines the files hold, by their bytes and the lines at the start of several of them.

    The same for the same files on every machine, as mixtures of languages follow from it.

    Raises:
        ValueError: one of them is remote and cannot be reached.
    """
    sampled = shards[:: -(-len(shards) // SAMPLED_FILES)]
    size = lines = 0
    for shard in sampled:
        try:
            with shard.open() as raw:
                sample = raw.read(SAMPLE // len(sampled))
        except OSError:  # reading the file will say so
            continue
        size += len(sample)
        lines += (_inflated(sample) if shard.is_gzipped else sample).count(b"\n")
    return sum(shard.size for shard in shards) * max(lines, 1) / max(size, 1)


def _inflated(sample: bytes) -> bytes:
    """As much as the start of a gzipped file gives; it may have several members."""
    parts = []
    while sample:
        inflater = zlib.decompressobj(wbits=31)
        try:
            parts.append(inflater.decompress(sample))
        except zlib.error:
            break
        sample = inflater.unused_data
    return b"".join(parts)


def local_shard(path: str) -> Shard:
    """A local file as it lies there.

    Raises:
        ValueError: it is text in another encoding than UTF-8.
    """
    shard = Shard(path, os.path.getsize(path))
    reason = encoding_error(shard.head(), path)
    if reason is not None:
        raise ValueError(f"corpus: {path} {reason}")
    return shard


def hashed(shards: Sequence[Shard]) -> list[Shard]:
    """Local files with versions, for those that are too large to be read before they are needed.

    Files of up to `HASHED` bytes together are hashed whole, of larger ones as much, in blocks; see `sampled_checksum`.
    """
    found = []
    for shard in shards:
        try:
            version, whole = sampled_checksum(Path(shard.address), HASHED // len(shards))
            time = 0 if whole else os.stat(shard.address).st_mtime_ns
        except OSError:  # reading the file will say so
            version, time = "", 0
        found.append(replace(shard, version=version, time=time))
    return found
