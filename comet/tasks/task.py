"""What a task is: its labels, its examples by language, and what of the data could not be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from comet.corpus.problems import Problem

Kind = Literal["sequence", "token"]
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Task:
    """What is predicted.

    Attributes:
        name: how the data set is called.
        kind: a label for each text ("sequence"), or a BIO tag for each word ("token").
        labels: their names; a label's number is its place here.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes:
        text: the text; of a token task its words.
        label: a number from 0, the place in `Task.labels`; of a token task one for each word.
        language: three-letter code.
        row: its line in its file, counted from 1, the first one where it takes several; on the hub its place from 1.
    """

    text: str | tuple[str, ...]
    label: int | tuple[int, ...]
    language: str
    row: int


@dataclass(frozen=True)
class TaskData:
    """One split of a task's data.

    Attributes:
        task: its labels.
        splits: language → examples, in the order of their files.
        problems: every row that could not be used, with its file, line and reason.
        fingerprint: SHA-256 of the examples, so that scores on the same data can be told.
    """

    task: Task
    splits: Mapping[str, list[Example]]
    problems: tuple[Problem, ...]
    fingerprint: str

    @property
    def languages(self) -> tuple[str, ...]:
        """Three-letter codes, in the order they were asked for."""
        return tuple(self.splits)

    @property
    def examples(self) -> list[Example]:
        """Those of all languages, one language after the other."""
        return [example for examples in self.splits.values() for example in examples]


def problem_table(problems: Sequence[Problem], shown: int = 20) -> list[str]:
    """A line for each file that has problems: how many rows are left out, at which lines and why.

    Args:
        problems: of one or more splits.
        shown: lines that are named of each file and reason.
    """
    lines_of: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        lines_of.setdefault((problem.file, problem.reason), []).append(problem.line)
    return [
        f"{file}: {len(lines):,} left out, {reason}: line{'s' if len(lines) > 1 else ''} "
        + ", ".join(map(str, lines[:shown]))
        + (" …" if len(lines) > shown else "")
        for (file, reason), lines in lines_of.items()
    ]
