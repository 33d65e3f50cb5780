"""The floor: character n-grams weighted by TF-IDF, and logistic regression on them.

A user can have this within a minute on any machine, so a student that does not beat it is not worth its training.
N-grams of 2 to 5 characters within words that occur in 2 texts or more, of text in Unicode normal form C;
1 + log(count) times 1 + log((1 + N)/(1 + df)) (Salton and Buckley, 1988), rows of length 1; C = 4. Saved as JSON and
safetensors: loading runs no code.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from comet.corpus.documents import composed
from comet.durable import folder_aside
from comet.formats import NewerFormatError, require_known_format, stamp
from comet.pretrained import require_finite

if TYPE_CHECKING:  # imported where it is used, as it takes seconds that other models need not wait
    from sklearn.feature_extraction.text import TfidfVectorizer

SETTINGS, VOCABULARY, WEIGHTS = "tfidf.json", "vocabulary.json", "tfidf.safetensors"
FORMAT = 2  # 1: texts as they were typed
_C = 4
_ITERATIONS = 1000
_NGRAMS = {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True}
_LEAST_TEXTS = 2  # that an n-gram occurs in


class TfidfModel:
    """A classifier of texts.

    Args:
        labels: their names, in the task's order.
        languages: three-letter codes of what it is fitted on, for those who load it.
    """

    def __init__(self, labels: Sequence[str], languages: Sequence[str] = ()) -> None:
        self.labels = tuple(labels)
        self.languages = tuple(languages)
        self._vectorizer: TfidfVectorizer | None = None
        self._weights_LV = np.empty((0, 0))
        self._bias_L = np.empty(0)

    @property
    def parameters(self) -> int:
        """Weights and biases of the regression, and one weight for each n-gram."""
        if self._vectorizer is None:
            return 0
        return self._weights_LV.size + self._bias_L.size + self._weights_LV.shape[1]

    def fit(self, texts: Sequence[str], labels: Sequence[int]) -> "TfidfModel":
        """Fit to labelled texts; the same texts give the same model.

        Args:
            texts: one or more of at least two labels.
            labels: the number of each text's label.

        Raises:
            ValueError: there is only one label, or no n-gram occurs twice.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        vectorizer = TfidfVectorizer(**_NGRAMS, min_df=_LEAST_TEXTS)
        present = sorted(set(labels))
        if len(texts) != len(labels):
            raise ValueError(f"tfidf: got {len(texts)} texts and {len(labels)} labels")
        if len(present) < 2:
            spoken = f" of {', '.join(self.languages)}" if self.languages else ""
            only = "".join(f", all labelled {self.labels[label]}" for label in present)
            raise ValueError(
                f"tfidf: got {len(texts)} texts{spoken}{only}; expected two different labels or more"
            )
        try:
            features = vectorizer.fit_transform(map(composed, texts))
        except ValueError as error:  # nothing is left of the texts
            raise ValueError(
                f"tfidf: no sequence of characters occurs in {_LEAST_TEXTS} of the {len(texts)} texts; give more"
            ) from error
        regression = LogisticRegression(C=_C, max_iter=_ITERATIONS).fit(features, labels)
        weights, bias = regression.coef_, regression.intercept_
        if len(present) == 2:  # one row then, the log-odds of the second label
            weights, bias = np.vstack([0 * weights, weights]), np.append(0, bias)
        self._weights_LV = np.zeros((len(self.labels), weights.shape[1]))
        self._bias_L = np.full(len(self.labels), -np.inf)  # a label without a text is never given
        self._weights_LV[present], self._bias_L[present] = weights, bias
        self._vectorizer = vectorizer
        return self

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of each label.

        Args:
            texts: any number.

        Returns:
            `[N, L]` float64; rows sum to 1.

        Raises:
            ValueError: the model was not fitted.
        """
        if self._vectorizer is None:
            raise ValueError("tfidf: the model is not fitted; call fit or load first")
        if not texts:
            return np.empty((0, len(self.labels)))
        logits_NL = (
            self._vectorizer.transform(map(composed, texts)) @ self._weights_LV.T + self._bias_L
        )
        odds_NL = np.exp(logits_NL - logits_NL.max(1, keepdims=True))
        return odds_NL / odds_NL.sum(1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write the model, whole or not at all.

        Raises:
            ValueError: the model was not fitted.
            OSError: it cannot be written.
        """
        if self._vectorizer is None:
            raise ValueError("tfidf: the model is not fitted; there is nothing to save")
        ngrams = self._vectorizer.get_feature_names_out().tolist()
        settings = stamp(FORMAT) | {"labels": self.labels, "languages": self.languages}
        tensors = {
            "weights": self._weights_LV,
            "bias": self._bias_L,
            "idf": self._vectorizer.idf_,
        }
        with folder_aside(folder) as partial:
            for name, content in ((SETTINGS, settings), (VOCABULARY, ngrams)):
                text = json.dumps(content, ensure_ascii=False)
                (partial / name).write_text(text, encoding="utf-8")
            save_file(tensors, partial / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> "TfidfModel":
        """Read what `save` wrote.

        Raises:
            ValueError: the folder holds no such model, or its files are damaged.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        require_current(folder)
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            require_known_format(f"--model: {folder}", settings, FORMAT)
            ngrams = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
            for name, values in tensors.items():
                known = values[~np.isneginf(values)]  # the bias of a label without a text
                require_finite(name, torch.from_numpy(known if name == "bias" else values))
            model = cls(settings["labels"], settings["languages"])
            model._weights_LV, model._bias_L = tensors["weights"], tensors["bias"]
            vectorizer = TfidfVectorizer(**_NGRAMS, vocabulary=ngrams)
            vectorizer.idf_ = tensors["idf"]
            if model._weights_LV.shape != (len(model.labels), len(ngrams)):
                raise ValueError(f"weights of shape {model._weights_LV.shape}")
        except NewerFormatError:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"--model: {folder} holds no TF-IDF model ({error})") from error
        model._vectorizer = vectorizer
        return model


def is_tfidf(folder: Path) -> bool:
    """Whether a folder holds such a model."""
    return (folder / SETTINGS).is_file()


def require_current(folder: Path) -> None:
    """Refuse a model that another version fitted, as texts are read otherwise now.

    Raises:
        ValueError: it has another format, or the folder holds none.
    """
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--model: {folder} holds no TF-IDF model ({error})") from error
    if found != FORMAT:
        raise ValueError(
            f"--model: {folder} holds a TF-IDF model of format {found}, expected {FORMAT}: another version of Comet "
            "fitted it; remove it, and fit it again with python -m comet.finetune --model tfidf"
        )


def cross_fitted(
    texts: Sequence[str], labels: Sequence[int], names: Sequence[str], folds: int = 4
) -> tuple[NDArray[np.float64], list[TfidfModel]]:
    """What models say of texts they were not fitted on: each fold is labelled by a model of the others.

    Args:
        texts: of one language.
        labels: the number of each text's label.
        names: the labels.
        folds: how many; each holds every label in proportion.

    Returns:
        `[N, L]`, the probability of each label; and the models, one a fold.

    Raises:
        ValueError: fewer texts than folds, or too few for a model.
    """
    from sklearn.model_selection import StratifiedKFold

    if len(texts) < folds:
        raise ValueError(f"tfidf: got {len(texts)} texts, expected {folds} or more to cross-fit")
    found = np.zeros((len(texts), len(names)))
    cut = StratifiedKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label with fewer texts than folds
        places = list(cut.split(texts, labels))
    models = []
    for others, own in places:
        model = TfidfModel(names).fit([texts[n] for n in others], [labels[n] for n in others])
        found[own] = model.predict_proba([texts[n] for n in own])
        models.append(model)
    return found, models
