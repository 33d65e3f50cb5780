"""Open a split of a task: find its files or its place on the hub, read it, and number its labels."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from comet.corpus.documents import composed, language_code, language_named
from comet.names import path_component
from comet.tasks.entities import OUTSIDE, as_bio, is_bio, scheme_of
from comet.tasks.files import find_files
from comet.tasks.hub import HUB, hub_rows, is_on_hub
from comet.tasks.recipe import TaskRecipe
from comet.tasks.rows import LeftOut, Row, read_rows
from comet.tasks.task import SPLITS, Example, Kind, Task, TaskData

_LABELS = {
    "afrisenti": ("negative", "neutral", "positive"),
    "masakhaner": (
        "O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-DATE", "I-DATE",
    ),
}  # fmt: skip
_MOST_LABELS = 200
_MANY = 1000  # texts or words, among which a label that one row alone has is an error

_logger = logging.getLogger(__name__)


def open_task(
    recipe: TaskRecipe,
    split: str,
    languages: Sequence[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> TaskData:
    """Read one split of a task's data.

    Args:
        recipe: which task and where its data is.
        split: "train", "dev" or "test".
        languages: two- or three-letter codes; None for those of the recipe, or all there are.
        labels: names of the labels, such as a model knows them; None for the recipe's, the task's, or those that the
            train split has, in alphabetical order (a tagging task's with O first).

    Raises:
        ValueError: the data is not there, holds no example of a language, or a row is bad and the recipe strict; one
            line that names the option.
        OSError: a file cannot be read.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected {', '.join(SPLITS)}")
    wanted = _codes(recipe.languages if languages is None else languages)
    names = labels or recipe.labels or _LABELS.get(recipe.task)
    if names is None:
        # whatever languages are read now, a label keeps its number
        every = _codes(recipe.languages) or (wanted if is_on_hub(recipe) else None)
        known = list(_rows(recipe, "train", every, LeftOut(strict=False)))
        names = _labels_of(_in_bio(known)[0] if recipe.is_token else known, recipe)
    kind: Kind = "token" if recipe.is_token else "sequence"
    task = Task(_name(recipe), kind, tuple(map(composed, names)))
    left_out = LeftOut(recipe.strict)
    rows = list(_rows(recipe, split, wanted, left_out))
    if recipe.is_token:
        rows, schemes = _in_bio(rows)
        for scheme, files in schemes.items():
            more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            _logger.warning("task: the tags of %s%s are %s, read as BIO", files[0], more, scheme)
    splits = _examples(rows, task, wanted, left_out)
    missing = [
        language for language in wanted or splits or ["any language"] if not splits.get(language)
    ]
    if missing:
        why = f"; {left_out.problems[0]}" if left_out.problems else ""
        raise ValueError(
            f"task.data: {recipe.data} has no {split} examples of {', '.join(missing)}{why}"
        )
    if left_out.problems:
        _logger.warning(
            "task: %d rows of the %s split are left out, such as %s",
            len(left_out.problems), split, left_out.problems[0],
        )  # fmt: skip
    return TaskData(task, splits, tuple(left_out.problems), _fingerprint(task, splits))


def _codes(languages: Sequence[str] | None) -> list[str] | None:
    """Three-letter codes, each once, in the given order."""
    if languages is None:
        return None
    names = (path_component(name, "task.languages") for name in languages)
    return list(dict.fromkeys(language_code(name) for name in names))


def _name(recipe: TaskRecipe) -> str:
    """A preset's name, or that of the data."""
    if recipe.task in _LABELS:
        return recipe.task
    return Path(str(recipe.data or recipe.train or recipe.test).removeprefix(HUB)).stem


def _rows(
    recipe: TaskRecipe, split: str, wanted: Sequence[str] | None, left_out: LeftOut
) -> Iterator[tuple[str, str, Row]]:
    """Rows with their language and the file they come from."""
    if is_on_hub(recipe):
        yield from hub_rows(recipe, split, wanted, left_out)
        return
    for file in find_files(recipe, split, wanted):
        for row in read_rows(file.path, recipe, left_out):
            own = row.language
            language = file.language if own is None else language_named(own, wanted)
            if wanted is None or language in wanted:
                yield language, str(file.path), row


def _in_bio(
    rows: Sequence[tuple[str, str, Row]],
) -> tuple[list[tuple[str, str, Row]], dict[str, list[str]]]:
    """Rows with their tags in BIO, and which files have another scheme: scheme → files."""
    tags: dict[str, list[Sequence[str]]] = {}
    for _, file, row in rows:
        tags.setdefault(file, []).append(row.label)
    scheme = {file: scheme_of(its) for file, its in tags.items()}
    others: dict[str, list[str]] = {}
    for file, name in scheme.items():
        if name != "BIO":
            others.setdefault(name, []).append(file)
    found = [
        (language, file, row._replace(label=as_bio(row.label, scheme[file])))
        for language, file, row in rows
    ]
    return found, others


def _examples(
    rows: Iterable[tuple[str, str, Row]],
    task: Task,
    wanted: Sequence[str] | None,
    left_out: LeftOut,
) -> dict[str, list[Example]]:
    """Examples by language; rows with a label that the task does not have are left out."""
    number_of = {name: number for number, name in enumerate(task.labels)}
    splits: dict[str, list[Example]] = {language: [] for language in wanted or ()}
    for language, file, row in rows:
        names = (row.label,) if isinstance(row.label, str) else row.label
        unknown = next((name for name in names if name not in number_of), None)
        if unknown is not None:
            left_out.add(file, row.line, f"unknown label {unknown[:40]!r}")
            continue
        numbers = tuple(number_of[name] for name in names)
        label = numbers[0] if isinstance(row.label, str) else numbers
        splits.setdefault(language, []).append(Example(row.text, label, language, row.line))
    return splits


def _labels_of(rows: Iterable[tuple[str, str, Row]], recipe: TaskRecipe) -> list[str]:
    """The labels that rows have, numbers by value and others by name; of tags those of the BIO scheme, O first."""
    found: set[str] = set()
    having: Counter[str] = Counter()  # rows that have a label, or an entity of a type
    total = 0
    for _, file, row in rows:
        names = {row.label} if isinstance(row.label, str) else set(filter(is_bio, row.label))
        found |= names
        having.update({_type(name, recipe) for name in names})
        total += 1 if isinstance(row.label, str) else len(row.label)
        if len(found) > _MOST_LABELS:
            raise ValueError(
                f"task.label_column: {file} has more than {_MOST_LABELS} different labels; name another column, "
                "or the labels with --task.labels"
            )
    odd = [name for name in sorted(found) if total >= _MANY and having[_type(name, recipe)] == 1]
    if odd:
        _logger.warning(
            "task: %s in one row of the train split alone and %s; name all labels with --task.labels if it is meant",
            f"the label {odd[0]!r} is" if len(odd) == 1 else f"the labels {', '.join(map(repr, odd))} are each",
            "is left out" if len(odd) == 1 else "are left out",
        )  # fmt: skip
        found -= set(odd)
    if len(found) < 2:
        kind = "BIO tags (O, B-PER, I-PER)" if recipe.is_token else "labels"
        raise ValueError(
            f"task.labels: the train split has {len(found)} {kind}, expected 2 or more; name them with --task.labels"
        )

    def order(name: str) -> tuple[bool, float, str]:
        whole = name.lstrip("-").isdecimal()
        return (
            not (recipe.is_token and name == OUTSIDE),
            int(name) if whole else float("inf"),
            name,
        )

    return sorted(found, key=order)


def _type(label: str, recipe: TaskRecipe) -> str:
    """The type of entity that a tag names; else the label."""
    return label[2:] if recipe.is_token and label != OUTSIDE else label


def _fingerprint(task: Task, splits: Mapping[str, Sequence[Example]]) -> str:
    digest = hashlib.sha256(json.dumps(task.labels).encode())
    for language in sorted(splits):
        for one in splits[language]:
            digest.update(json.dumps([language, one.row, one.label, one.text]).encode())
    return digest.hexdigest()
