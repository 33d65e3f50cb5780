"""Differences between cells, with their intervals, from the predictions that lie in the runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comet.predictions import PredictedExample, read_predictions
from comet.scores import difference
from comet.tasks.task import Task


class Differences:
    """Differences of the means of two runs, each computed once.

    Args:
        split: on which runs have predictions.
    """

    def __init__(self, split: str) -> None:
        self._split = split
        self._known: dict[tuple[Path, Path], dict[str, Any]] = {}

    def between(
        self, run: Path, scores: Mapping[str, Any], other: Path, other_scores: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The mean of one run less that of another over the languages that both were trained on, with its interval.

        Args:
            run: folder of a fine-tuning run.
            scores: its scores-SPLIT.json.
            other: folder of another.
            other_scores: likewise.
        """
        if (run, other) not in self._known:
            task = Task(*(scores["task"][key] for key in ("name", "kind", "labels")))
            trained = [name for name in _trained(scores) if name in _trained(other_scores)]
            runs = (self._predictions(run, scores), self._predictions(other, other_scores))
            self._known[run, other] = difference(*runs, task, trained)
        return self._known[run, other]

    def _predictions(
        self, run: Path, scores: Mapping[str, Any]
    ) -> dict[int, list[PredictedExample]]:
        folder = run / "predictions" / self._split
        return {seed: read_predictions(folder / f"seed-{seed}.jsonl") for seed in scores["seeds"]}


def _trained(scores: Mapping[str, Any]) -> list[str]:
    return [name for name, found in scores["languages"].items() if found["trained"]]
