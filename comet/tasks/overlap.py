"""Texts of a split that stand in another too: a model has seen their labels, so that its score on them says little.

Texts are the same where they agree in Unicode normal form C, with one space for any whitespace. A run keeps hashes of
the texts it has read (`RUN/texts.json`), so that it can be evaluated where its train split is not.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from comet.corpus.documents import text_hash
from comet.durable import write_json
from comet.tasks.task import Example, TaskData

TEXTS = "texts.json"
FORMAT = 1
_DIGITS = (
    16  # of a hash; among a million texts two have the same by chance once in 40 million times
)

Texts = Mapping[str, Mapping[str, Collection[str]]]
"""Split → language → hashes."""


def hashed(example: Example) -> str:
    """The hash of an example's text, or of its words."""
    words = example.text.split() if isinstance(example.text, str) else example.text
    return text_hash(" ".join(words))[:_DIGITS]


def hashes(splits: Mapping[str, TaskData]) -> Texts:
    """Those of some splits, each once."""
    return {
        split: {
            language: sorted(set(map(hashed, examples)))
            for language, examples in data.splits.items()
        }
        for split, data in splits.items()
    }


def rows_of(examples: Iterable[Example], texts: Collection[str]) -> list[int]:
    """The rows of examples whose texts are among others."""
    known = frozenset(texts)
    return [one.row for one in examples if hashed(one) in known]


def counted(overlap: Mapping[str, int], data: TaskData, other: str) -> str:
    """How many texts of each language of a split stand in another, as a line; empty where none does."""
    parts = [
        f"{language} {count:,} of {len(data.splits[language]):,}"
        for language, count in overlap.items()
        if count
    ]
    return f"{', '.join(parts)} texts stand in {other} too" if parts else ""


def keep(texts: Texts, folder: Path) -> None:
    """Write them into a run's folder, whole or not at all."""
    content = {
        split: {language: " ".join(its) for language, its in languages.items()}
        for split, languages in texts.items()
    }
    write_json(folder / TEXTS, {"format": FORMAT, **content})


def kept(folder: Path) -> Texts | None:
    """What `keep` wrote into a folder; None where there is nothing, or of another version."""
    try:
        found = json.loads((folder / TEXTS).read_text("utf-8"))
        if found.pop("format") != FORMAT:
            return None
        return {
            split: {language: its.split() for language, its in languages.items()}
            for split, languages in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
