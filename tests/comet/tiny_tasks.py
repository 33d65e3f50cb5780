"""Labelled data whose label can be read off a word, models with a head, and recipes: small enough for a test."""

from pathlib import Path

import numpy as np
import torch
from tiny import CONFIGURATIONS
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from comet.batch import Batch
from comet.finetune_recipe import (
    FinetuneRecipe,
    SeedsRecipe,
    TaskObjectiveRecipe,
    TunedModelRecipe,
    TunedTeacherRecipe,
    TuningRecipe,
)
from comet.task_batches import Row, collate
from comet.tasks import TaskRecipe
from comet.toy import toy_sentences

LABELS = ("negative", "neutral", "positive")
AUTO = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}


def write_sentiment(folder: Path, languages=("hau", "swa"), splits=None, misled=False) -> Path:
    """AfriSenti's layout: how a sentence begins tells its label, five times out of six; if misled, not on dev."""
    random = np.random.default_rng(0)
    for language in languages:
        sentences = iter(toy_sentences(language, 400))
        for split, count in (splits or {"train": 120, "dev": 50, "test": 60}).items():
            rows = []
            for label, spoilt in zip(
                random.integers(3, size=count), random.random(count), strict=True
            ):
                sign = ("na na na", "ki ki ki", "su su su")[label]
                said = LABELS[(label + (spoilt < 1 / 6) + (misled and split == "dev")) % 3]
                rows.append(f"{sign} {next(sentences)}\t{said}")
            path = folder / language / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(["tweet\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


def write_entities(folder: Path, language: str = "hau") -> Path:
    """MasakhaNER's layout: every third word is a place, and after each comes the rest of its name."""
    for split, count in {"train": 60, "dev": 20, "test": 20}.items():
        lines = []
        for sentence in toy_sentences(language, count + len(split))[:count]:
            tags = ("O", "B-LOC", "I-LOC")
            lines += [f"{word} {tags[place % 3]}" for place, word in enumerate(sentence.split())]
            lines.append("")
        path = folder / language / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe_for(
    model, data, *, task="afrisenti", languages=("hau", "swa"), **given
) -> FinetuneRecipe:
    """A recipe of two short epochs; more of it by name: `alpha`, `epochs`, `seeds`, `teacher`, ..."""
    kinds = {
        "model": TunedModelRecipe, "objective": TaskObjectiveRecipe,
        "optimisation": TuningRecipe, "run": SeedsRecipe,
    }  # fmt: skip
    usual = {"max_length": 32, "epochs": 2, "batch_size": 16, "evaluate_every": 5, "log_every": 5}
    if model == "tfidf":
        usual = {}
    parts = {
        name: kind(
            **{
                key: value
                for key, value in {**usual, **given}.items()
                if key in kind.__dataclass_fields__
            },
            **({"model": str(model)} if name == "model" else {}),
        )
        for name, kind in kinds.items()
    }
    teacher = given.get("teacher")
    return FinetuneRecipe(
        **parts,
        task=TaskRecipe(task=task, data=str(data), languages=list(languages)),
        teacher=TunedTeacherRecipe(model=None if teacher is None else str(teacher)),
    )


def task_model(architecture: str, kind: str, seed: int = 0, **sizes: int):
    """A model with a head and no dropout."""
    torch.manual_seed(seed)
    configuration, special = CONFIGURATIONS[architecture]
    shape = {
        "vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 66, "initializer_range": 0.2,
        "num_labels": 3, **sizes,
    }  # fmt: skip
    return AUTO[kind].from_config(configuration(**shape, **special)).eval()


def rows_for(kind: str, count: int = 7, seed: int = 3) -> list[Row]:
    """Rows of several lengths in two languages."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(random.integers(4, 13))
        ids = [0, *random.integers(5, 120, length - 2).tolist(), 2]
        places = (
            [0]
            if kind == "sequence"
            else sorted(random.choice(range(1, length - 1), 2, replace=False).tolist())
        )
        labels = random.integers(0, 3, len(places)).tolist()
        rows.append(Row(ids, places, labels, number, range(len(places)), number % 2))
    return rows


def batch_for(kind: str, count: int = 7) -> Batch:
    """Those rows, padded."""
    return collate(rows_for(kind, count), padding=1)
