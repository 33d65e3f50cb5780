"""How far an exported model is from its source: logits, labels and F1 on the same examples, and at odd shapes."""

import codecs
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from comet.corpus.encodings import HEAD, encoding_error
from comet.corpus.lines import clean
from comet.onnx_encoder import Encoder
from comet.tap import usable_positions
from comet.task_batches import Row, collate
from comet.task_model import TaskEncoder
from comet.task_predict import Place, SplitPredictor
from comet.tasks import Example, Task, TaskData, TaskRecipe, open_task
from comet.toy import LANGUAGES, toy_sentences

SAME = 0.995  # share of labels that an exported model has to share with its source
_SENTENCES = 60  # of each language, where no text is given
_CPU = torch.device("cpu")
_MEASURES = ("weighted_f1", "macro_f1", "f1")


@dataclass(frozen=True)
class Examples:
    """What both models are asked.

    Attributes:
        name: where they are from, for people.
        data: with labels that mean nothing where `labelled` is false.
        labelled: whether F1 can be told.
    """

    name: str
    data: TaskData
    labelled: bool


def labelled(task: Task, data: str, split: str, languages: Sequence[str] | None) -> Examples:
    """Examples of a file, which is read as the test split, or of a split of a folder or of a data set on the hub.

    Raises:
        ValueError: there are none.
    """
    recipe = TaskRecipe(task=task.kind, data=data, languages=list(languages) if languages else None)
    opened = open_task(recipe, split, labels=task.labels)
    name = data if Path(data).is_file() else f"{data}, {split}"
    return Examples(name, opened, True)


def unlabelled(task: Task, file: Path | None) -> Examples:
    """Examples of a file of text, one in each line that is not empty, or sentences made up in five languages.

    Raises:
        ValueError: the file holds no text, or cannot be read.
    """
    if file is None:
        name = "made-up sentences"
        texts = [text for one in LANGUAGES for text in toy_sentences(one, _SENTENCES)]
    else:
        name = str(file)
        texts = _texts(file)
    if not texts:
        raise ValueError(f"--text: {file} holds no text")
    words = [tuple(text.split()) for text in texts]
    examples = [
        Example(its, (0,) * len(its), "und", row)
        if task.kind == "token"
        else Example(text, 0, "und", row)
        for row, (text, its) in enumerate(zip(texts, words, strict=True), start=1)
    ]
    return Examples(name, TaskData(task, {"und": examples}, (), ""), False)


def _texts(file: Path) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"--text: cannot read {file}: {error.strerror}") from error
    reason = encoding_error(content[:HEAD], str(file))
    if reason is not None:
        raise ValueError(f"--text: {file} {reason}")
    texts = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            try:
                texts.append(clean(line.decode("utf-8")))
            except ValueError as error:
                raise ValueError(f"--text: {file} line {number}: {error}") from error
    return texts


class Parity:
    """Asks a model once, and then those that were made of it.

    Args:
        source: the model.
        examples: what is asked.
    """

    def __init__(self, source: Encoder, examples: Examples) -> None:
        self._source = source
        self._examples = examples
        self._predictor = SplitPredictor(
            examples.data,
            source.tokenizer,
            source.card.max_length,
            _CPU,
            contextlib.nullcontext,
        )
        self._theirs = self._predictor.logits(source.model)

    def of(self, exported: nn.Module) -> dict[str, Any]:
        """What an exported model says otherwise.

        Returns:
            examples, labels, other (labels that differ), agreement (share that does not), same (whether it is enough),
            largest_error and mean_error of the logits, measures before and after (null without labels).
        """
        ours = self._predictor.logits(exported)
        first_NL, second_NL = _matrix(self._theirs), _matrix(ours)
        errors = np.abs(first_NL - second_NL)
        other = int((first_NL.argmax(1) != second_NL.argmax(1)).sum())
        agreement = 1 - other / max(len(first_NL), 1)
        return {
            "on": self._examples.name,
            "examples": len(self._examples.data.examples),
            "labels": len(first_NL),
            "other": other,
            "agreement": agreement,
            "same": agreement >= SAME,
            "largest_error": float(errors.max(initial=0)),
            "mean_error": float(errors.mean()) if errors.size else 0.0,
            "measures": self._measures(ours) if self._examples.labelled else None,
        }

    def _measures(self, ours: Mapping[Place, Tensor]) -> dict[str, dict[str, float]]:
        """F1 of both, mean over languages."""
        found = {}
        for name, logits in (("before", self._theirs), ("after", ours)):
            values = self._predictor.measured(self._predictor.answers(logits))["all"]
            found[name] = {one: values[one] for one in _MEASURES if one in values}
        return found


def shapes(source: Encoder, exported: nn.Module) -> list[dict[str, Any]]:
    """Compare both at shapes other than what was traced: one token, the longest sequence, a padded batch.

    Args:
        source: the model.
        exported: what was made of it.

    Returns:
        For each: batch, length, padded, the largest error of the logits, and the largest logit.
    """
    assert isinstance(source.model, TaskEncoder)
    longest = min(source.card.max_length or 512, usable_positions(source.model.model))
    cases = [
        [1],
        [2],
        [longest],
        [max(longest // 2, 1)] * 3,
        [longest, *(max(longest // part, 1) for part in (2, 3, 5, 9))],
    ]
    random = np.random.default_rng(0)
    found = []
    for lengths in cases:
        rows = [
            Row(
                random.choice(_usual(source), length).tolist(),
                range(length) if source.card.kind == "token" else (0,),
                (0,) * (length if source.card.kind == "token" else 1),
                number,
                (0,),
                0,
            )
            for number, length in enumerate(lengths)
        ]
        batch = collate(rows, source.tokenizer.pad_token_id)
        with torch.no_grad():
            theirs = source.model(batch)[0]
            error = (theirs - exported(batch)[0]).abs().max().item()
        found.append(
            {
                "batch": len(lengths),
                "length": max(lengths),
                "padded": len(set(lengths)) > 1,
                "error": error,
                "largest": theirs.abs().max().item(),
            }
        )
    return found


def _usual(source: Encoder) -> np.ndarray:
    """Pieces that are no special tokens."""
    special = set(source.tokenizer.all_special_ids)
    return np.array([one for one in range(len(source.tokenizer)) if one not in special])


def _matrix(logits: Mapping[Place, Tensor]) -> np.ndarray:
    """Logits `[N, L]`, in the order in which they were asked for, which is the same for every model."""
    return torch.stack(list(logits.values())).numpy() if logits else np.zeros((0, 1))
