"""Local files, alone or in folders by language."""

import logging
import os
from pathlib import Path

from comet.corpus.documents import UNDETERMINED, is_language, language_code
from comet.corpus.lines import SUFFIXES
from comet.holdings import instead, kind_of

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
    if kind_of(path) not in (None, "text", "labelled data", "tokenizer", "experiment"):
        raise ValueError(f"corpus: {path} holds no text{instead(path, 'text')}")
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
            f"{instead(path, 'text')}"
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
