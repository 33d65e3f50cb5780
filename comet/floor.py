"""What the TF-IDF floor teaches: soft labels of texts that its models were not fitted on.

A model that has seen a text knows its label and tells nothing else of it. So the train split is cut into folds, and
each fold is labelled by a model of the others (cross-fitting). Texts that are put together of two halves, the first of
one text and the second of another of its language, are labelled by all of these models, averaged: more to imitate
where labelled text is scarce (Jiao et al., 2020, "TinyBERT", augment what a teacher labels in the same spirit).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from comet.durable import SEAL, file_aside
from comet.tasks import TaskData
from comet.tfidf import FORMAT, cross_fitted

FLOOR = "floor.safetensors"
VERSION = 2  # of how texts are mixed and cut into folds


@dataclass(frozen=True)
class Lessons:
    """What the floor says of one language.

    Attributes:
        soft: `[N, L]` float32, the probability of each label, of the train split's texts.
        mixtures: texts of two halves.
        soft_mixtures: `[M, L]` float32, likewise of those.
    """

    soft: NDArray[np.float32]
    mixtures: list[str]
    soft_mixtures: NDArray[np.float32]


def mixed(texts: Sequence[str], count: int) -> list[str]:
    """Texts of the first half of one text's words and the second half of another's; the same each time."""
    pairs = np.random.default_rng(0).integers(len(texts), size=(count, 2)).tolist()
    halves = ((texts[first].split(), texts[second].split()) for first, second in pairs)
    return [" ".join([*one[: (len(one) + 1) // 2], *two[len(two) // 2 :]]) for one, two in halves]


def mixture_count(train: TaskData, mixtures: float) -> int:
    """How many mixtures a language gets: as many in all as `mixtures` times the texts, as many of each language."""
    return round(mixtures * len(train.examples) / len(train.languages))


def fit_floor(train: TaskData, mixtures: float) -> dict[str, Lessons]:
    """Fit the models of every language, and let them label.

    Args:
        train: texts with a label each.
        mixtures: made-up texts per text.

    Raises:
        ValueError: too few texts of a language, or all with one label.
    """
    count = mixture_count(train, mixtures)
    found = {}
    for language, examples in train.splits.items():
        texts = [str(one.text) for one in examples]
        labels = [one.label for one in examples if isinstance(one.label, int)]
        soft, models = cross_fitted(texts, labels, train.task.labels)
        made = mixed(texts, count)
        theirs = np.zeros((0, soft.shape[1]))
        if made:
            theirs = np.mean([model.predict_proba(made) for model in models], axis=0)
        found[language] = Lessons(soft.astype(np.float32), made, theirs.astype(np.float32))
    return found


def floor_name(train: TaskData, mixtures: float) -> str:
    """What tells the labels of these texts from all others."""
    identity = f"{VERSION} {FORMAT} {train.fingerprint} {mixtures!r}"
    return f"floor-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def save_floor(lessons: Mapping[str, Lessons], path: Path) -> None:
    """Keep the labels, whole or not at all; the mixtures follow from the texts."""
    tensors = {name: one.soft for name, one in lessons.items()}
    tensors |= {f"{name}/mixtures": one.soft_mixtures for name, one in lessons.items()}
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with file_aside(path) as partial:
        save_file(tensors, partial, metadata={SEAL: _digest(tensors)})


def load_floor(train: TaskData, path: Path) -> dict[str, Lessons]:
    """The labels that were kept, with their mixtures.

    Raises:
        ValueError: the file is not what was written.
    """
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = (file.metadata() or {}).get(SEAL)
        if known != _digest(tensors):
            raise ValueError("its checksum differs from what was written")
        found = {}
        for language, examples in train.splits.items():
            theirs = tensors[f"{language}/mixtures"]
            made = mixed([str(one.text) for one in examples], len(theirs))
            found[language] = Lessons(tensors[language], made, theirs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and TF-IDF is fitted again"
        ) from error
    return found


def _digest(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
