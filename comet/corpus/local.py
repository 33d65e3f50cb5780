"""Text from local files: `.jsonl` and `.txt`, plain or gzipped, alone or in folders by language."""

import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from comet.corpus.documents import UNDETERMINED, is_language, language_code

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")
_SHOWN = 3

_logger = logging.getLogger(__name__)


def find_files(path: Path) -> dict[Path, str]:
    """Find the readable files at a path, each with its language.

    A folder's files take the folder's name as their language, and so do those one level below it.
    A file given by itself, or a folder given by itself, does so only where the name is a known code.

    Raises:
        ValueError: the path is missing, has an unknown suffix, or holds nothing readable.
    """
    if not path.exists():
        raise ValueError(f"corpus: {path} does not exist; give a file, a folder, toy or madlad400")
    parent = (path if path.is_dir() else path.resolve().parent).resolve().name
    own = language_code(parent) if is_language(parent) else UNDETERMINED
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(
                f"corpus: {path} has an unknown suffix, expected {', '.join(SUFFIXES)}"
            )
        return {_absolute(path): own}
    found = {}
    ignored = []
    for file in sorted((*path.glob("*"), *path.glob("*/*"))):
        if not file.is_file() or file.name.startswith("."):
            continue
        if file.name.endswith(SUFFIXES):
            found[_absolute(file)] = own if file.parent == path else language_code(file.parent.name)
        else:
            ignored.append(file)
    if not found:
        raise ValueError(
            f"corpus: no {', '.join(SUFFIXES)} in {path} or its folders; expected LANG/*.jsonl.gz"
        )
    if ignored:
        _logger.warning(
            "corpus: left out %d files of other kinds in %s, such as %s",
            len(ignored), path, ", ".join(str(file.relative_to(path)) for file in ignored[:_SHOWN]),
        )  # fmt: skip
    return found


def _absolute(file: Path) -> Path:
    """The same file however it was named, but under its own name: a link may lead to one without a suffix."""
    return Path(os.path.abspath(file))


def read_files(files: Iterable[Path]) -> list[str]:
    """Read every document of the files; lines that cannot be read are skipped and reported once.

    Raises:
        ValueError: a file is damaged, or has no readable line.
    """
    texts: list[str] = []
    skipped: list[str] = []
    for file in files:
        before = len(texts)
        problems = []
        for number, line in enumerate(_lines(file), start=1):
            try:
                texts.append(_text(line, is_json=file.name.endswith((".jsonl", ".jsonl.gz"))))
            except (ValueError, RecursionError) as error:
                problems.append(f"{file}:{number}: {error}")
        if len(texts) == before:
            first = problems[0] if problems else "it is empty"
            raise ValueError(f"corpus: nothing to read in {file} ({first}); remove or repair it")
        skipped += problems
    if skipped:
        _logger.warning(
            "corpus: skipped %d of %d lines, such as %s",
            len(skipped), len(skipped) + len(texts), "; ".join(skipped[:_SHOWN]),
        )  # fmt: skip
    return texts


def _lines(file: Path) -> Iterator[bytes]:
    """Raw lines, so that one badly encoded line does not hide those around it."""
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            yield from stream
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"corpus: cannot read {file} ({error}); fetch or write it again"
        ) from error


def _text(line: bytes, is_json: bool) -> str:
    """The document of a line, or a ValueError that says why it has none."""
    try:
        decoded = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    if not is_json:
        return clean(decoded)
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(record, dict) or "text" not in record:
        raise ValueError('no "text"')
    return clean(record["text"])


def clean(text: object) -> str:
    """Check and strip a text.

    Raises:
        ValueError: it is no string, is empty, or holds half of a surrogate pair.
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
    return text
