"""Where the local files of a split lie: LANG/split.tsv, split.tsv, or a file that is named itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from comet.corpus.documents import UNDETERMINED, find_language, is_language, language_code
from comet.holdings import instead
from comet.tasks.recipe import TaskRecipe
from comet.tasks.rows import CONLL, TABLES

_USUAL = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}


class File(NamedTuple):
    """A file of one split, and the language of its rows where no column says it."""

    path: Path
    language: str


def split_names(recipe: TaskRecipe, split: str) -> tuple[str, ...]:
    """What a split may be called."""
    given = getattr(recipe, split)
    return _USUAL[split] if given is None else (given,)


def find_files(recipe: TaskRecipe, split: str, wanted: Sequence[str] | None) -> list[File]:
    """Find the files of a split.

    Args:
        recipe: which data.
        split: "train", "dev" or "test".
        wanted: three-letter codes, None for all there are.

    Raises:
        ValueError: there are none, or one of a wanted language is missing.
    """
    given = getattr(recipe, split)
    if given is not None and Path(given).is_file():
        return [_alone(Path(given), recipe, wanted, f"task.{split}")]
    if recipe.data is None:
        raise ValueError(
            f"task.data: got nothing, expected --data with a folder, or --task.{split} with a file"
        )
    data = Path(recipe.data)
    if data.is_file() and split == "test" and given is None:
        return [_alone(data, recipe, wanted, "task.data")]
    if data.is_file():
        raise ValueError(
            f"task.data: {data} is one file, which is read as the test split; name a file for {split} with "
            f"--task.{split}"
        )
    if not data.is_dir():
        raise ValueError(
            f"task.data: {data} does not exist; give a folder, a file or hub:OWNER/NAME"
        )
    return _in_folder(data, recipe, split, wanted)


def _in_folder(
    data: Path, recipe: TaskRecipe, split: str, wanted: Sequence[str] | None
) -> list[File]:
    names = split_names(recipe, split)
    together = _file(data, names, recipe)
    if together is not None:
        return [_alone(together, recipe, wanted, "task.data")]
    found: dict[str, list[Path]] = {}
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        file = _file(folder, names, recipe)
        if file is not None:
            found.setdefault(language_code(folder.name), []).append(file)
    chosen = {code: find_language(code, found) for code in wanted or found}
    missing = [code for code, there in chosen.items() if there is None]
    if missing or not found:
        kinds = ", ".join(_suffixes(recipe))
        there = ", ".join(sorted(path.name for path in data.iterdir())[:20])
        raise ValueError(
            f"task.data: {data} has no {' or '.join(names)} file ({kinds}) for {', '.join(missing) or 'any language'}"
            + (instead(data, "labelled data") or f"; it holds {there or 'nothing'}")
        )
    files = {code: found[there] for code, there in chosen.items() if there is not None}
    for code, several in files.items():
        if len(several) > 1:
            raise ValueError(f"task.data: {code} is there twice: {several[0]} and {several[1]}")
    return [File(several[0], code) for code, several in files.items()]


def _file(folder: Path, names: Sequence[str], recipe: TaskRecipe) -> Path | None:
    """The one file of a folder that has one of these names, with or without its suffix."""
    candidates = [folder / name for name in names]
    candidates += [folder / f"{name}{suffix}" for name in names for suffix in _suffixes(recipe)]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        raise ValueError(
            f"task.data: {found[0]} and {found[1].name} are both there; keep one, or name it with --task.train, "
            "--task.dev or --task.test"
        )
    return found[0] if found else None


def _suffixes(recipe: TaskRecipe) -> tuple[str, ...]:
    return (*CONLL, ".jsonl") if recipe.is_token else TABLES


def _alone(path: Path, recipe: TaskRecipe, wanted: Sequence[str] | None, key: str) -> File:
    """A file that holds all languages, or the only one."""
    if recipe.language_column is not None:
        return File(path, UNDETERMINED)
    if wanted is not None and len(wanted) > 1:
        raise ValueError(
            f"{key}: {path} is one file for {', '.join(wanted)}; say with --task.language_column which row is which"
        )
    if wanted:
        return File(path, wanted[0])
    folder = path.resolve().parent.name
    return File(path, language_code(folder) if is_language(folder) else UNDETERMINED)
