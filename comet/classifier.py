"""Predict with a fine-tuned model.

    from comet import Classifier

    classifier = Classifier("runs/sentiment")
    classifier.predict(["Ina son wannan fim"])  # [Prediction(label="positive", probabilities={...})]

A model that tags words finds entities instead:

    Classifier("runs/names").entities(["Amina ta tafi Kano"])  # [[Entity("PER", "Amina", 0, 5), ...]]

A folder that `comet.export` wrote is used likewise.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comet.corpus.lines import clean
from comet.fine_tuned import find_model
from comet.onnx_encoder import OnnxEncoder, load_encoder
from comet.processes import named_device
from comet.task_batches import encode, prediction_batches
from comet.tasks.entities import OUTSIDE, spans
from comet.tasks.task import Example
from comet.tfidf import TfidfModel, is_tfidf

_MARKS = "".join(
    letter for letter in map(chr, range(0x300, 0x10000)) if unicodedata.category(letter)[0] == "M"
)
# letters with the marks that follow them, joined by hyphens and apostrophes; or one other sign
_WORD = re.compile(rf"[\w{_MARKS}]+(?:[-'’ʼ][\w{_MARKS}]+)*|[^\w\s]")


@dataclass(frozen=True)
class Prediction:
    """What a text was classified as.

    Attributes:
        label: the most probable one.
        probabilities: of each label; they sum to 1.
    """

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Entity:
    """A named entity in a text.

    Attributes:
        type: such as "PER".
        text: as written.
        start: its first character, counted from 0.
        end: the character after its last.
    """

    type: str
    text: str
    start: int
    end: int


class Classifier:
    """A fine-tuned encoder or TF-IDF model, ready to predict.

    Args:
        model: a model's folder, one that `comet.export` wrote, or that of a run of `comet.finetune`, of whose seeds
            the best on dev is taken.
        language: code of the language, where a run has a model for each.
        device: such as "cuda:0"; None for the accelerator, or the CPU where there is none or the model is in ONNX.
        batch_size: texts that are read at once.

    Attributes:
        kind: "sequence" or "token".
        labels: what it tells apart.
        choice: which seed was taken and why, None where there was no choice.

    Raises:
        ValueError: there is no such model, or it cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        language: str | None = None,
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more")
        folder, self.choice = find_model(model, language)
        self._encoder: _Encoder | None = None
        if is_tfidf(folder):
            self._tfidf = TfidfModel.load(folder)
            self.kind, self.labels = "sequence", self._tfidf.labels
        else:
            self._encoder = _Encoder(folder, device, batch_size)
            self.kind, self.labels = self._encoder.kind, self._encoder.labels

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts; of a longer one than the model was fine-tuned on, the beginning.

        Args:
            texts: any number, none of them empty.

        Raises:
            ValueError: a text is empty or no string, or the model tags words.
        """
        if self.kind == "token":
            raise ValueError("predict: this model tags words; call entities(texts) instead")
        cleaned = _cleaned(texts)
        if self._encoder is None:
            probabilities_NL = self._tfidf.predict_proba(cleaned)
        else:
            examples = [Example(text, 0, "", row) for row, text in enumerate(cleaned)]
            found = self._encoder(examples)
            probabilities_NL = np.array([found[row, 0] for row in range(len(cleaned))])
        return [
            Prediction(
                self.labels[int(row_L.argmax())],
                dict(zip(self.labels, row_L.tolist(), strict=True)),
            )
            for row_L in probabilities_NL
        ]

    def entities(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Find the entities of each text; long texts are read in pieces.

        Args:
            texts: any number, none of them empty.

        Raises:
            ValueError: a text is empty or no string, or the model classifies whole texts.
        """
        if self._encoder is None or self.kind == "sequence":
            raise ValueError("entities: this model classifies texts; call predict(texts) instead")
        _cleaned(texts)
        words = [list(_WORD.finditer(text)) for text in texts]
        examples = [
            Example(tuple(word[0] for word in found), (0,) * len(found), "", row)
            for row, found in enumerate(words)
        ]
        probabilities = self._encoder(examples)
        results = []
        for row, (text, found) in enumerate(zip(texts, words, strict=True)):
            tags = [
                self.labels[int(probabilities[row, word].argmax())]
                if (row, word) in probabilities  # a word without pieces has none
                else OUTSIDE
                for word in range(len(found))
            ]
            places = [
                (one.type, found[one.start].start(), found[one.end - 1].end())
                for one in spans(tags)
            ]
            results.append(
                [Entity(kind, text[start:end], start, end) for kind, start, end in places]
            )
        return results


class _Encoder:
    """A fine-tuned encoder on its device."""

    def __init__(self, folder: Path, device: str | None, batch_size: int) -> None:
        model, self._tokenizer, card = load_encoder(folder)
        self.kind, self.labels = card.kind, tuple(card.labels)
        self._max_length = card.max_length
        self._batch_size = batch_size
        in_onnx = isinstance(model, OnnxEncoder)
        self._device = named_device("cpu" if in_onnx and device is None else device)
        if in_onnx and self._device.type != "cpu":
            raise ValueError(
                f"--device: got {device!r}, but {folder} was exported for the CPU; leave it out"
            )
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> dict[tuple[int, int], NDArray[np.float32]]:
        """Example and item (0 of a text, or the number of a word) → probabilities `[L]`."""
        found: dict[tuple[int, int], NDArray[np.float32]] = {}
        rows = encode(examples, self._tokenizer, self._max_length)
        padding = self._tokenizer.pad_token_id
        for chosen, batch in prediction_batches(rows, padding, self._batch_size):
            logits_NL: Tensor = self._model(batch.to(self._device))[0]
            places = [(row.example, item) for row in chosen for item in row.items]
            probabilities_NL = logits_NL.float().softmax(-1).cpu().numpy()
            found.update(zip(places, probabilities_NL, strict=True))
        return found


def _cleaned(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise ValueError("texts: got one text, expected a list of texts: predict([text])")
    cleaned = []
    for place, text in enumerate(texts):
        try:
            cleaned.append(clean(text))
        except ValueError as error:
            raise ValueError(f"texts[{place}]: {error}") from error
    return cleaned
