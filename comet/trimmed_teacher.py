"""The teacher of a recipe, without the vocabulary that its text does not need where `teacher.trim` asks for that.

A trimmed teacher is made once for the same weights, text and size, and kept in the cache folder: distillation, a cache
of what the teacher says, and all students of one experiment then have the same small vocabulary.
"""

import hashlib
import json
import os
from pathlib import Path

import comet
from comet.batches import open_text
from comet.cache_files import fingerprint_of_tokenizer, fingerprint_of_weights
from comet.corpus import Corpus
from comet.durable import require_checksums
from comet.environment import cache_folder, kept_in_cache
from comet.pretrained import model_folder
from comet.recipe import DistillRecipe
from comet.students import load_tokenizer
from comet.trim import description, read_report, trim


def teacher_of(
    recipe: DistillRecipe, name: str, corpus: Corpus | None = None
) -> tuple[str, str | None]:
    """Folder or hub id, and revision, of the teacher that a run reads with.

    Args:
        recipe: of the run.
        name: folder or hub id of its teacher as it was given.
        corpus: the recipe's text, opened; it is opened here where it is needed and not given.

    Raises:
        ValueError: it cannot be had, or cannot be trimmed so.
    """
    asked, revision = recipe.teacher.trim, recipe.teacher.revision
    if asked is None:
        return name, revision
    corpus = corpus or open_text(recipe.corpus, recipe.run.seed)
    source = model_folder(name, revision=revision)
    identity = [
        comet.__version__,
        fingerprint_of_weights(str(source), None),
        fingerprint_of_tokenizer(load_tokenizer(str(source))),
        corpus.fingerprint(),
        recipe.corpus.held_out,
        recipe.run.seed,
        asked,
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    folder = cache_folder() / f"trimmed-{key}"
    if not os.path.isdir(folder):
        with kept_in_cache(folder):
            if not folder.is_dir():  # another process may have made it meanwhile
                _trim_into(folder, str(source), corpus, asked)
    try:
        require_checksums(folder, read_report(folder)["files"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"teacher.trim: {folder} is damaged ({error}); remove it, and it is made again"
        ) from error
    return str(folder), None


def _trim_into(folder: Path, source: str, corpus: Corpus, asked: float) -> None:
    share = asked <= 1
    try:
        trim(
            source,
            corpus,
            folder,
            size=None if share else int(asked),
            coverage=asked if share else None,
        )
    except ValueError as error:  # it names an option of comet.trim
        raise ValueError(f"teacher.trim: {str(error).partition(': ')[2]}") from error


def describe_trimmed(folder: str) -> str:
    """What was left out of a teacher's vocabulary, and where it lies now, as lines."""
    return f"{description(read_report(Path(folder)))}\ntrimmed     {folder}\n"
