"""What a model with a task's head says to examples, and how well it does."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from comet.measures import count_examples, main_measure, measures
from comet.predictions import PredictedExample
from comet.task_batches import encode, prediction_batches
from comet.tasks import Example, Task, TaskData
from comet.tfidf import TfidfModel

BATCH_SIZE = 64
Place = tuple[int, int]


class SplitPredictor:
    """Predicts the examples of a split, which are tokenised once.

    Args:
        data: the split.
        tokenizer: of the model.
        max_length: tokens per sequence.
        device: where the model is.
        autocast: the context of its forward pass, such as one of lower precision.
    """

    def __init__(
        self,
        data: TaskData,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.task = data.task
        self.languages = data.languages
        self._examples = data.examples
        self._rows = encode(self._examples, tokenizer, max_length, data.languages)
        self._padding = tokenizer.pad_token_id
        self._device = device
        self._autocast = autocast

    def __call__(self, encoder: nn.Module) -> list[PredictedExample]:
        """The answers, in the order of the examples. Every process computes all of them."""
        return self.answers(self.logits(encoder))

    def answers(self, logits: Mapping[Place, Tensor]) -> list[PredictedExample]:
        """What logits say, in the order of the examples."""
        found: dict[Place, Tensor] = {}
        if logits:  # there are none where no word has a piece
            probabilities_NL = torch.stack(list(logits.values())).softmax(-1)
            found = dict(zip(logits, probabilities_NL, strict=True))
        outside = _outside(self.task)
        return [
            _answer(example, number, found, outside)
            for number, example in enumerate(self._examples)
        ]

    def measure(self, encoder: nn.Module) -> dict[str, dict[str, float]]:
        """Measures and, for texts, the loss (mean cross-entropy) by language; `all` is the mean over languages."""
        return self.measured(self(encoder))

    def measured(self, answers: Sequence[PredictedExample]) -> dict[str, dict[str, float]]:
        """The same of answers that were given before."""
        by_language = {
            language: measured(self.task, [one for one in answers if one.language == language])
            for language in self.languages
        }
        names = by_language[self.languages[0]]
        everything = list(by_language.values())
        by_language["all"] = {
            name: sum(one[name] for one in everything) / len(everything) for name in names
        }
        return by_language

    @torch.no_grad()
    def logits(self, encoder: nn.Module) -> dict[Place, Tensor]:
        """Example and item → `[L]` float32; item 0 of a text, or the number of a word.

        Args:
            encoder: a `TaskEncoder`, or one that was exported.
        """
        encoder.eval()
        found: dict[Place, Tensor] = {}
        for chosen, batch in prediction_batches(self._rows, self._padding, BATCH_SIZE):
            with self._autocast():
                logits_NL = encoder(batch.to(self._device))[0]
            places = [(row.example, item) for row in chosen for item in row.items]
            found.update(zip(places, logits_NL.float().cpu(), strict=True))
        return found

    @property
    def main(self) -> str:
        """The measure that decides."""
        return main_measure(self.task)


def measured(task: Task, answers: Sequence[PredictedExample]) -> dict[str, float]:
    """Every measure over some answers and, for texts, the loss."""
    counts = count_examples(task, answers).sum(0)
    values = {name: float(value) for name, value in measures(task, counts).items()}
    if task.kind == "sequence":
        values["loss"] = float(np.mean([_surprise(one) for one in answers]))
    return values


def _surprise(one: PredictedExample) -> float:
    assert one.probabilities is not None
    assert isinstance(one.gold, int)
    return -float(np.log(max(one.probabilities[one.gold], 1e-30)))


def _outside(task: Task) -> int:
    """The label of a word that no row holds, as it has no pieces."""
    return task.labels.index("O") if "O" in task.labels else 0


def _answer(
    example: Example, number: int, found: Mapping[Place, Tensor], outside: int
) -> PredictedExample:
    if isinstance(example.label, int):
        values = found[number, 0]
        return PredictedExample(
            example.language,
            example.row,
            example.label,
            int(values.argmax()),
            tuple(values.tolist()),
        )
    tags = tuple(
        int(found[number, word].argmax()) if (number, word) in found else outside
        for word in range(len(example.label))
    )
    return PredictedExample(example.language, example.row, example.label, tags)


def tfidf_answers(model: TfidfModel, examples: Sequence[Example]) -> list[PredictedExample]:
    """What the baseline says to examples."""
    rows = model.predict_proba([str(example.text) for example in examples])
    return [
        PredictedExample(
            example.language, example.row, example.label, int(row.argmax()), tuple(row.tolist())
        )
        for example, row in zip(examples, rows, strict=True)
    ]
