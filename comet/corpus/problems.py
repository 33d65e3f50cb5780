"""What of a corpus could not be read: each line and each damaged file is counted once, and reported with its place."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

SHOWN = 3
FILE = "the file"  # how reasons begin that are not of one line

_logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """A line that could not be read, or the line at which a damaged file ended.

    Attributes:
        file: its path or address.
        line: counted from 1.
        reason: what is wrong with it.
    """

    file: str
    line: int
    reason: str

    @property
    def of_file(self) -> bool:
        """Whether it is not of this line alone."""
        return self.reason.startswith(FILE)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class Problems:
    """Problems met so far, each once however often its line is read.

    Args:
        strict: end at the first one.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.first: list[Problem] = []
        self._lines: dict[str, set[int]] = {}
        self._examples: dict[str, Problem] = {}
        self._latest: list[Problem] = []
        self._warned = 0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def by_file(self) -> dict[str, int]:
        """How many each file has."""
        return {file: len(lines) for file, lines in self._lines.items()}

    def add(self, problem: Problem) -> None:
        """Count a problem.

        Raises:
            ValueError: it is the first, and strictness was asked for.
        """
        if self.strict:
            raise ValueError(
                f"corpus: {problem}; corpus.strict ends the run at such a line, without it the line is "
                "counted and skipped"
            )
        lines = self._lines.setdefault(problem.file, set())
        if problem.line in lines:
            return
        lines.add(problem.line)
        if problem.of_file or problem.file not in self._examples:
            self._examples[problem.file] = problem
        if len(self.first) < SHOWN:
            self.first.append(problem)
        self._latest.append(problem)

    def example(self, files: Iterable[str]) -> Problem | None:
        """A problem of the first of some files that has one: what ails all of it, or else its first line's."""
        return next((self._examples[file] for file in files if file in self._examples), None)

    def latest(self) -> list[Problem]:
        """The problems since this was last asked, each once."""
        latest, self._latest = self._latest, []
        return latest

    def report(self, found: Iterable[Problem] = ()) -> None:
        """Add what another process found, and warn in one line once the number has doubled since the last warning.

        A damaged file is told at once.
        """
        found = list(found)
        for problem in found:
            self.add(problem)
        new = self.latest() or found
        damage = [problem for problem in new if problem.of_file]
        if not damage and len(self) < max(1, 2 * self._warned):
            return
        examples = sorted(new or self.first, key=lambda problem: not problem.of_file)
        self._warned = len(self)
        _logger.warning(
            "corpus: %s cannot be read and %s skipped, such as %s",
            "1 line" if len(self) == 1 else f"{len(self):,} lines",
            "is" if len(self) == 1 else "are",
            "; ".join(map(str, examples[:SHOWN])),
        )

    def table(self) -> list[str]:
        """A line for each file that has problems, most of them first."""
        ordered = sorted(self.by_file.items(), key=lambda item: (-item[1], item[0]))
        return [f"{file}: {count:,}" for file, count in ordered]
