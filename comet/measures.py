"""F1, precision, recall and accuracy from counts, so that thousands of resamples are one matrix product.

Every example is a row of counts X. A resample that draws example i w_i times has the counts Σ_i w_i X_i, and every
measure is a function of such a sum:

- sequence: the confusion matrix, gold by predicted, L² counts;
- token: entities of each type that are right, predicted, and there: 3 T counts. An entity is right where both ends and
  the type are (strict, as in CoNLL-2003), decided by `nervaluate`.

F1 of a class is 2 · right / (predicted + there), 0 where a class is neither.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from comet.predictions import PredictedExample
from comet.tasks.entities import spans, types
from comet.tasks.task import Task

Array = NDArray[np.float64]
Floats = NDArray[np.floating]


def main_measure(task: Task) -> str:
    """What systems are compared by: "weighted_f1" (the shared task's), or "f1" of entities."""
    return "f1" if task.kind == "token" else "weighted_f1"


def classes(task: Task) -> tuple[str, ...]:
    """Labels, or types of entities."""
    return types(task.labels) if task.kind == "token" else task.labels


def count_examples(task: Task, predictions: Sequence[PredictedExample]) -> Array:
    """The counts of each example.

    Returns:
        `[N, L · L]`, one 1 in each row, or `[N, T · 3]`.

    Raises:
        ValueError: a prediction is not one of the task, or `nervaluate` is not installed for a tagging task.
    """
    if task.kind == "token":
        return _count_entities(task, predictions)
    size = len(task.labels)
    cells = np.zeros((len(predictions), size * size))
    for place, one in enumerate(predictions):
        if not (_is_label(one.gold, size) and _is_label(one.predicted, size)):
            raise _foreign(one, task)
        cells[place, one.gold * size + one.predicted] = 1  # type: ignore[operator]
    return cells


def measures(task: Task, counts: Floats) -> dict[str, Array]:
    """Every measure of the task, as a fraction.

    Args:
        task: whose counts they are.
        counts: `[..., K]` as of `count_examples`, summed over examples.

    Returns:
        name → `[...]`.
    """
    right, predicted, there = _by_class(task, counts)
    if task.kind == "token":
        sums = [one.sum(-1) for one in (right, predicted, there)]
        return {
            "f1": _ratio(2 * sums[0], sums[1] + sums[2]),
            "precision": _ratio(sums[0], sums[1]),
            "recall": _ratio(sums[0], sums[2]),
        }
    f1 = _ratio(2 * right, predicted + there)
    occurring = (predicted + there > 0).sum(-1)
    return {
        "weighted_f1": _ratio((f1 * there).sum(-1), there.sum(-1)),
        "macro_f1": _ratio(f1.sum(-1), occurring),
        "accuracy": _ratio(right.sum(-1), there.sum(-1)),
    }


def measures_by_class(task: Task, counts: Floats) -> dict[str, dict[str, float]]:
    """F1, precision, recall and number of examples (entities) of each class, averaged over seeds.

    Args:
        task: whose counts they are.
        counts: `[seeds, K]`, summed over examples.
    """
    right, predicted, there = _by_class(task, counts)
    table = {
        "f1": _ratio(2 * right, predicted + there).mean(0),
        "precision": _ratio(right, predicted).mean(0),
        "recall": _ratio(right, there).mean(0),
        "support": there.mean(0),
    }
    return {
        name: {measure: float(values[place]) for measure, values in table.items()}
        for place, name in enumerate(classes(task))
    }


def _by_class(task: Task, counts: Floats) -> tuple[Array, Array, Array]:
    """Right, predicted and there, each `[..., classes]`."""
    values = counts.astype(np.float64)
    if task.kind == "token":
        triples = values.reshape(*values.shape[:-1], len(classes(task)), 3)
        return triples[..., 0], triples[..., 1], triples[..., 2]
    size = len(task.labels)
    confusion = values.reshape(*values.shape[:-1], size, size)
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-2), confusion.sum(-1)


def _ratio(top: Array, bottom: Array) -> Array:
    """The quotient, 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom > 0)


def _count_entities(task: Task, predictions: Sequence[PredictedExample]) -> Array:
    try:
        from nervaluate.entities import Entity
        from nervaluate.strategies import StrictEvaluation
    except ImportError as error:
        raise ValueError(
            "task: entities are scored by nervaluate, which needs Python 3.11 or later: "
            "pip install 'comet-distill[ner]'"
        ) from error
    kinds = list(classes(task))
    judge = StrictEvaluation()
    counts = np.zeros((len(predictions), len(kinds), 3))
    for place, one in enumerate(predictions):
        gold, predicted = _tags(one.gold, one, task), _tags(one.predicted, one, task)
        if len(gold) != len(predicted):
            raise _foreign(one, task)
        there, said = (
            [Entity(label=span.type, start=span.start, end=span.end - 1) for span in spans(tags)]
            for tags in (gold, predicted)
        )
        _, judged = judge.evaluate(there, said, kinds)
        for column, found in enumerate(
            ([said[number] for _, number in judged.correct_indices], said, there)
        ):
            for entity in found:
                counts[place, kinds.index(entity.label), column] += 1
    return counts.reshape(len(predictions), -1)


def _tags(numbers: int | tuple[int, ...], one: PredictedExample, task: Task) -> list[str]:
    if isinstance(numbers, int) or not all(
        _is_label(number, len(task.labels)) for number in numbers
    ):
        raise _foreign(one, task)
    return [task.labels[number] for number in numbers]


def _is_label(value: object, size: int) -> bool:
    return isinstance(value, int) and 0 <= value < size


def _foreign(one: PredictedExample, task: Task) -> ValueError:
    return ValueError(
        f"predictions: {one.language} row {one.row} has gold {one.gold} and predicted {one.predicted}, expected "
        f"{'two equally long lists of numbers' if task.kind == 'token' else 'numbers'} below {len(task.labels)}"
    )
