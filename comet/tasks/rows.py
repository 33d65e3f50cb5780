"""Rows of one labelled file, label names as written, with the line of each: .tsv, .csv, .jsonl and CoNLL.

Files are read as they were published. In .tsv a quote is text, as in AfriSenti; in .csv it encloses a field. Lines end
with a newline alone, as tweets hold every other character that Unicode takes for one.
"""

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from comet.corpus.documents import composed
from comet.corpus.encodings import HEAD, encoding_error
from comet.corpus.lines import clean
from comet.corpus.problems import Problem
from comet.names import path_component
from comet.tasks.recipe import TaskRecipe

TABLES = (".tsv", ".csv", ".jsonl")
CONLL = (".txt", ".conll", ".tsv")
_LONGEST_FIELD = 1000  # lines that one quoted field of a .csv may take
_TEXTS = ("tweet", "text")
_WORDS = ("tokens", "words")
_LABELS = ("label",)
_BLANK = re.compile(r"[ \t]+")  # a word may hold any other space of Unicode
_TAG = re.compile(r"O|[A-Z]-\S+")  # of any scheme
_TAGS = ("ner_tags", "tags", "labels")


class Row(NamedTuple):
    """A row that can be used as far as its file alone tells.

    Attributes:
        line: counted from 1.
        text: a text, or words.
        label: the name of its label, or of each word's.
        language: as written, None where the file has no such column.
    """

    line: int
    text: str | tuple[str, ...]
    label: str | tuple[str, ...]
    language: str | None = None


@dataclass
class LeftOut:
    """Rows that cannot be used, so far.

    Attributes:
        strict: end at the first one.
        problems: all of them.
    """

    strict: bool
    problems: list[Problem] = field(default_factory=list)

    def add(self, file: str, line: int, reason: str) -> None:
        """Count a row.

        Raises:
            ValueError: it is the first, and strictness was asked for.
        """
        problem = Problem(file, line, reason)
        if self.strict:
            raise ValueError(
                f"task: {problem}; task.strict ends the run at such a row, without it the row is counted and left out"
            )
        self.problems.append(problem)


class Columns(NamedTuple):
    """Which columns hold what."""

    text: str
    label: str
    language: str | None

    @classmethod
    def of(cls, header: Sequence[str], recipe: TaskRecipe, file: str) -> "Columns":
        """Choose among the columns that a file or data set has.

        Raises:
            ValueError: one that is needed is not there, or there twice.
        """
        texts, labels = (_WORDS, _TAGS) if recipe.is_token else (_TEXTS, _LABELS)
        return cls(
            _column(header, recipe.text_column, texts, "text_column", file),
            _column(header, recipe.label_column, labels, "label_column", file),
            None
            if recipe.language_column is None
            else _column(header, recipe.language_column, (), "language_column", file),
        )


def read_rows(path: Path, recipe: TaskRecipe, left_out: LeftOut) -> Iterator[Row]:
    """Read the rows of a file; those that cannot be used are added to `left_out`.

    Raises:
        ValueError: its kind is unknown, its columns are other ones, or strictness was asked for.
        OSError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if recipe.is_token and suffix in CONLL:
        return _conll(path, left_out)
    if suffix == ".jsonl":
        return _json_lines(path, recipe, left_out)
    if suffix in TABLES and not recipe.is_token:
        return _table(path, recipe, left_out)
    expected = (*CONLL, ".jsonl") if recipe.is_token else TABLES
    raise ValueError(
        f"task.data: {path} is a {suffix or 'nameless'} file, expected {', '.join(expected)}"
    )


def row_of(line: int, record: Mapping[str, Any], columns: Columns, *, is_token: bool) -> Row:
    """A row from named values.

    Args:
        line: where it was.
        record: column → value.
        columns: which are read.
        is_token: words and tags, not a text and a label.

    Raises:
        ValueError: what is wrong with it.
    """
    text, label = record.get(columns.text), record.get(columns.label)
    language = None
    if columns.language is not None:
        language = record.get(columns.language)
        if not isinstance(language, str) or not language.strip():
            raise ValueError(f"no language in {columns.language}")
        language = path_component(language.strip(), f"language in {columns.language}")
    if not is_token:
        return Row(line, clean(text), _label(label, columns.label), language)
    if not isinstance(text, list) or not isinstance(label, list):
        raise ValueError(f"{columns.text} and {columns.label} are not two lists")
    if len(text) != len(label):
        raise ValueError(f"{len(text)} words, but {len(label)} tags")
    if not text:
        raise ValueError("no words")
    tags = tuple(_label(one, columns.label) for one in label)
    return Row(line, tuple(map(clean, text)), tags, language)


def _label(value: Any, column: str) -> str:
    """The name of a label; a number or truth value as it is written in JSON."""
    if value is not None and not isinstance(value, (str, list, dict)):
        return json.dumps(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no label in {column}")
    return composed(value.strip())


def _column(
    header: Sequence[str], given: str | None, usual: Sequence[str], key: str, file: str
) -> str:
    wanted = usual if given is None else (given,)
    known = {composed(one): one for one in header}
    name = next((known[one] for one in map(composed, wanted) if one in known), None)
    if name is None:
        raise ValueError(
            f"task.{key}: {file} has the columns {', '.join(map(repr, header))}, expected {' or '.join(wanted)}"
        )
    if header.count(name) > 1:
        raise ValueError(f"task.{key}: {file} has {header.count(name)} columns named {name!r}")
    return name


def _lines(path: Path, left_out: LeftOut) -> Iterator[tuple[int, str | None]]:
    """The lines, numbered from 1, without their ends and byte order marks; None for one that is no text in UTF-8.

    Raises:
        ValueError: the file is in another encoding.
    """
    with path.open("rb") as file:
        reason = encoding_error(file.read(HEAD), str(path))
        if reason is not None:
            raise ValueError(f"task.data: {path} {reason}")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            text = None
            try:
                text = line.decode("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError:
                left_out.add(str(path), number, "not valid UTF-8")
            if text is not None and "\0" in text:
                left_out.add(str(path), number, "holds NUL characters")
                text = None
            yield number, text


def _table(path: Path, recipe: TaskRecipe, left_out: LeftOut) -> Iterator[Row]:
    """Rows of a .tsv or .csv file, whose first line names the columns."""
    lines = [(line, text) for line, text in _lines(path, left_out) if text is not None]
    split = _comma_separated if path.suffix.lower() == ".csv" else _tab_separated
    records = split(lines)
    first = next(records, None)
    if first is None:
        return
    header = [name.strip() for name in first[1]]
    columns = Columns.of(header, recipe, str(path))
    for line, fields in records:
        if [value.strip() for value in fields] == header:
            left_out.add(str(path), line, "the header once more")
        elif not any(value.strip() for value in fields):
            left_out.add(str(path), line, "empty line")
        elif len(fields) != len(header):
            reason = f"{len(fields)} columns, expected {len(header)}"
            left_out.add(str(path), line, reason)
        else:
            record = dict(zip(header, fields, strict=True))
            yield from _usable(path, line, record, columns, recipe, left_out)


def _tab_separated(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        yield number, line.split("\t")


def _comma_separated(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each starts at; a quote that nothing closes spoils its own line alone."""
    width = None
    place = 0
    while place < len(lines):
        number, text = lines[place]
        end = place + 1
        while text.count('"') % 2 and end < min(len(lines), place + _LONGEST_FIELD):
            text += "\n" + lines[end][1]
            end += 1
        fields = _fields(text)
        width = width or len(fields)
        if end > place + 1 and len(fields) != width:
            fields, end = [lines[place][1]], place + 1
        yield number, fields
        place = end


def _fields(record: str) -> list[str]:
    """The fields of one record; the record itself where its quotes are not those of a .csv."""
    try:
        return next(csv.reader([record], strict=True), [""])
    except csv.Error:
        return [record]


def _json_lines(path: Path, recipe: TaskRecipe, left_out: LeftOut) -> Iterator[Row]:
    """Objects, one per line; the first that has the columns decides on their names."""
    columns = unsuitable = None
    for number, line in _lines(path, left_out):
        if line is None:
            continue
        record = _object(line)
        if isinstance(record, str):
            left_out.add(str(path), number, record)
            continue
        try:
            columns = columns or Columns.of(list(record), recipe, str(path))
        except ValueError as error:
            unsuitable = unsuitable or error
            left_out.add(str(path), number, f"has only the columns {', '.join(record) or 'none'}")
        else:
            yield from _usable(path, number, record, columns, recipe, left_out)
    if unsuitable and columns is None:
        raise unsuitable


def _object(line: str) -> dict[str, Any] | str:
    """The JSON object of a line, or why it has none."""
    if not line.strip():
        return "empty line"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "not valid JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _usable(
    path: Path,
    line: int,
    record: Mapping[str, Any],
    columns: Columns,
    recipe: TaskRecipe,
    left_out: LeftOut,
) -> Iterator[Row]:
    """The row, unless something is wrong with it."""
    try:
        yield row_of(line, record, columns, is_token=recipe.is_token)
    except ValueError as error:
        left_out.add(str(path), line, str(error))


def _conll(path: Path, left_out: LeftOut) -> Iterator[Row]:
    """Sentences between blank lines; a line holds a word, its tag, and maybe other columns before and between.

    Lines of comment (`# id 7`) and `-DOCSTART-` are no words. A first column that numbers the words is passed over.
    """
    lines = [
        (number, None if line is None else _blank_separated(line))
        for number, line in _lines(path, left_out)
    ]
    widths = Counter(len(fields) for _, fields in lines if fields and fields[0] != "#")
    width = widths.most_common(1)[0][0] if widths else 0
    sentences: list[tuple[int, list[list[str]]]] = []
    start = 0
    words: list[list[str]] = []
    is_whole = True
    for number, fields in itertools.chain(lines, [(0, [])]):
        if fields is None:
            is_whole = False
        elif not fields or fields[0] == "-DOCSTART-":
            if words and is_whole:
                sentences.append((start, words))
            start, words, is_whole = 0, [], True
        elif _is_comment(fields, width, is_first=not words):
            continue
        elif len(fields) == 1:
            left_out.add(str(path), number, "a word without a tag; its sentence is left out")
            is_whole = False
        else:
            start = start or number
            words.append(fields)
    first = int(width > 2 and all(_is_numbered(its) for _, its in sentences))
    for start, its in sentences:
        yield Row(
            start,
            tuple(fields[first] for fields in its),
            tuple(composed(fields[-1]) for fields in its),
        )


def _blank_separated(line: str) -> list[str]:
    """The columns of a line, separated by tabs, or by spaces where there are none."""
    fields = [field for field in (one.strip(" ") for one in line.split("\t")) if field]
    if len(fields) > 1 and " " not in fields[-1]:
        return fields
    return [field for field in _BLANK.split(line) if field]


def _is_comment(fields: Sequence[str], width: int, *, is_first: bool) -> bool:
    """Whether a line is a comment and not a word that begins with the same sign, as `# O` and `#Kano B-LOC`.

    Args:
        fields: its columns.
        width: how many the lines of words have.
        is_first: no word of the sentence came before.
    """
    if not fields[0].startswith("#"):
        return False
    if len(fields) == width and _TAG.fullmatch(fields[-1]):
        return False
    if fields[0] == "#" and len(fields) > width:
        return True
    return is_first and (fields[0] == "#" or len(fields) > width or "=" in "".join(fields))


def _is_numbered(words: Sequence[Sequence[str]]) -> bool:
    """Whether the first column counts the words of a sentence."""
    return all(len(fields) > 2 and fields[0] == str(place) for place, fields in enumerate(words, 1))
