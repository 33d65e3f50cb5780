"""What a model said to each example of a split, one line each: every score is computed from these files.

    predictions/test/seed-0.jsonl    {"language": "hau", "row": 2, "gold": 0, "predicted": 2, "probabilities": [...]}

Labels are numbers, places in the task's list; a tagging task has a list of them for each example, and no probabilities.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from comet.durable import write_text, writing

_DIGITS = 6  # of a probability


@dataclass(frozen=True)
class PredictedExample:
    """A model's answer to one example.

    Attributes:
        language: three-letter code.
        row: the example's line in its file.
        gold: the label it has, or one for each word.
        predicted: the label the model gave, likewise.
        probabilities: of each label of the task; None for a tagging task.
    """

    language: str
    row: int
    gold: int | tuple[int, ...]
    predicted: int | tuple[int, ...]
    probabilities: tuple[float, ...] | None = None


def write_predictions(path: Path, predictions: Iterable[PredictedExample]) -> None:
    """Write a file of predictions, whole or not at all; its folder is made.

    Raises:
        ValueError: a probability is not finite.
        OSError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(_line(one) for one in predictions))


def fingerprint(predictions: Iterable[PredictedExample]) -> str:
    """SHA-256 of predictions as they are written."""
    return hashlib.sha256("".join(_line(one) for one in predictions).encode()).hexdigest()


def _line(one: PredictedExample) -> str:
    probabilities = one.probabilities
    if probabilities is not None and not all(map(math.isfinite, probabilities)):
        raise ValueError(
            f"the model's answer to row {one.row} of {one.language} is not finite: its training diverged, or its "
            "weights are damaged; fine-tune it again with a lower learning rate, or in float32"
        )
    record = {
        "language": one.language,
        "row": one.row,
        "gold": one.gold,
        "predicted": one.predicted,
        "probabilities": None
        if probabilities is None
        else [round(float(value), _DIGITS) for value in probabilities],
    }
    return json.dumps(record, allow_nan=False) + "\n"


def read_predictions(path: Path) -> list[PredictedExample]:
    """Read a file of predictions.

    Raises:
        ValueError: a line of it is not what `write_predictions` writes.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        return [_read(line, f"{path}:{number}") for number, line in enumerate(file, start=1)]


def _read(line: str, place: str) -> PredictedExample:
    try:
        record = json.loads(line)
        gold, predicted = record["gold"], record["predicted"]
        probabilities = record["probabilities"]
        return PredictedExample(
            record["language"],
            record["row"],
            tuple(gold) if isinstance(gold, list) else gold,
            tuple(predicted) if isinstance(predicted, list) else predicted,
            None if probabilities is None else tuple(probabilities),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"predictions: {place} is no prediction ({type(error).__name__}: {error})"
        ) from error
