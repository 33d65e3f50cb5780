"""Run folders as training, evaluation and experiments leave them, with numbers drawn instead of trained."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from comet.predictions import PredictedExample
from comet.recipe import AdaptRecipe, CorpusRecipe, DistillRecipe, TeacherRecipe
from comet.scores import System, difference, summary
from comet.tasks.task import Task

LANGUAGES = ("hau", "ibo", "kin", "swa", "yor")
UNSEEN = ("pcm", "tso")
TASK = Task("afrisenti", "sequence", ("negative", "neutral", "positive"))
ACCURACY = {
    "teacher": 0.76, "full": 0.74, "kl-only": 0.73, "mlm": 0.70, "random": 0.67, "tfidf": 0.69,
}  # fmt: skip
_HARD = {
    "hau": 0.04,
    "ibo": 0.05,
    "kin": -0.06,
    "swa": -0.1,
    "yor": 0.01,
    "pcm": -0.2,
    "tso": -0.25,
}
_RECORD = {
    "state": "done",
    "start": "2026-11-22T20:44:51+00:00",
    "end": "2026-11-22T21:52:23+00:00",
    "versions": {"python": "3.11.7", "comet": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "commit": "d00afd67a7a0",
    "hardware": {"machine": "x86_64", "processors": 2, "threads": 2},
    "command": ["comet/distill.py", "--fused"],
    "corpus": "38ed6261b5088d4902ec9887fd1cc3bb56de0bd4ee008c74f665f645facbcd47",
}


def write_json(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def distilled(folder: Path, lines=60, languages=LANGUAGES, teacher="runs/teacher/model") -> Path:
    """A distillation that ended well, its student left out."""
    recipe = DistillRecipe(TeacherRecipe(model=teacher), corpus=CorpusRecipe(paths=["text"]))
    _recorded(folder, recipe, {**_RECORD, "teacher": teacher})
    draw = np.random.default_rng(len(folder.name))
    metrics = []
    for step in range(10, 10 * lines + 1, 10):
        fall = {
            name: 2.4 * math.exp(-step / (90 + 25 * at)) + 0.4 + 0.05 * at
            for at, name in enumerate(languages)
        }
        by_language = {
            f"kd/{name}": value * (1 + 0.06 * draw.normal()) for name, value in fall.items()
        }
        kd = sum(by_language.values()) / len(languages)
        metrics.append(
            {
                "step": step,
                "loss": kd / 2,
                "kd": kd,
                "attention": 1e-3,
                "grad_norm": 0.4,
                **by_language,
            }
        )
    evaluations = [
        {"step": step, **_agreement(languages, 3 * math.exp(-step / 150) + 0.3)}
        for step in range(0, 10 * lines + 1, 100)
    ]
    _write_lines(folder / "metrics.jsonl", metrics)
    _write_lines(folder / "evaluation.jsonl", evaluations)
    before, after = ({k: v for k, v in evaluations[at].items() if k != "step"} for at in (0, -1))
    write_json(folder / "agreement.json", {"before": before, "after": after})
    return folder


def adapted(folder: Path, lines=40) -> Path:
    """A teacher's training that ended well."""
    _recorded(folder, AdaptRecipe(corpus=CorpusRecipe(paths=["text"])), _RECORD)
    metrics = [
        {
            "step": 25 * at,
            "loss": 3 + 4 * math.exp(-at / 9),
            **{
                f"loss/{name}": 3 + 4 * math.exp(-at / (8 + place))
                for place, name in enumerate(LANGUAGES)
            },
        }
        for at in range(1, lines + 1)
    ]
    _write_lines(folder / "metrics.jsonl", metrics)
    loss = {name: 3.0 + 0.1 * place for place, name in enumerate(LANGUAGES)}
    content = {"loss": {**loss, "all": 3.2}, "entropy": 7.2, "entropy_given_language": 6.4}
    write_json(folder / "held_out.json", content)
    return folder


@cache
def predictions(accuracy: float, seeds=3, count=90, languages=(*LANGUAGES, *UNSEEN), luck=0):
    """Seed → what a system that is right so often says."""
    runs = {}
    for seed in range(seeds):
        runs[seed] = []
        for language in languages:
            gold = np.random.default_rng(count).integers(3, size=count)
            draw = np.random.default_rng([seed, luck, sum(language.encode())])
            right = draw.random(count) < accuracy + _HARD.get(language, 0.0)
            predicted = np.where(right, gold, (gold + 1 + draw.integers(2, size=count)) % 3)
            runs[seed] += [
                PredictedExample(language, row, int(one), int(other))
                for row, (one, other) in enumerate(zip(gold, predicted, strict=True), 2)
            ]
    return runs


@cache
def scores(name: str, accuracy: float, *, split="test", against=True, luck=0, size=True, seeds=3):
    """What comet.evaluate writes of it."""
    floor = System("tfidf", predictions(ACCURACY["tfidf"], 1))
    teacher = System("teacher", predictions(ACCURACY["teacher"], luck=7))
    share = accuracy**4
    counts = {"parameters": int(2.6e7 * share), "encoder_parameters": int(2e7 * share**2)}
    return summary(
        TASK,
        predictions(accuracy, seeds, luck=luck),
        system=name,
        split=split,
        data="afrisenti",
        fingerprint="5f" * 32,
        trained_on=LANGUAGES,
        size={**counts, "bytes": 4 * counts["parameters"]} if size else None,
        floor=floor if against else None,
        teacher=teacher if against and name != "teacher" else None,
    )


def tuned(folder: Path, name: str, accuracy: float, **options) -> Path:
    """A fine-tuning with its scores."""
    folder.mkdir(parents=True)
    recipe = {
        "model": {"model": f"runs/{name}/student"},
        "task": {"task": "afrisenti", "data": "data/afrisenti"},
        "optimisation": {"epochs": 5, "batch_size": 32},
        "run": {"seeds": [0, 1, 2]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    write_json(folder / "run.json", _RECORD)
    seed = folder / "seed-0"
    seed.mkdir()
    lines = [{"step": 20 * at, "loss": 1.1 * math.exp(-at / 30) + 0.2} for at in range(1, 60)]
    _write_lines(seed / "metrics.jsonl", lines)
    _write_lines(
        seed / "evaluation.jsonl",
        [
            {
                "step": 240 * at,
                **{one: {"weighted_f1": accuracy - 0.3 / at + _HARD[one]} for one in LANGUAGES},
            }
            for at in range(1, 6)
        ],
    )
    content = scores(name, accuracy, **options)
    write_json(folder / f"scores-{content['split']}.json", content)
    return folder


def experiment(folder: Path, cells: dict[str, str], title="Ablation") -> Path:
    """An experiment of cells, name → kind of model, all of them done but the last of more than six."""
    found = []
    first = None
    for place, (name, model) in enumerate(cells.items()):
        accuracy = ACCURACY.get(name, 0.74)
        luck = place % 4
        content = {**scores(model, accuracy, luck=luck), "system": name}
        first = first or (accuracy, luck)
        stage = folder / "cells" / name
        if model == "distilled":
            distilled(stage / "distill", lines=12)
        write_json(stage / "finetune" / "scores-test.json", content)
        failed = place > 5 and place == len(cells) - 1
        found.append(
            {
                "name": name,
                "folder": f"cells/{name}",
                "model": model,
                "like": "full" if model in ("mlm", "random") else None,
                "settings": {"distill": {"objective": {"alpha": round(0.1 * place, 1)}}},
                "state": "failed" if failed else "done",
                "why": "out of memory: lower optimisation.batch_size" if failed else None,
                "stages": {"finetune": {"state": "done", "seconds": 310.4 + place, "attempts": 1}},
                "budget": None,
                "scores_file": None if failed else f"cells/{name}/finetune/scores-test.json",
                "scores": None if failed else content,
                "difference": None if failed or not place else _difference((accuracy, luck), first),
            }
        )
        if failed:
            (stage / "finetune" / "scores-test.json").unlink()
    write_json(
        folder / "experiment.json",
        {
            "schema": 1,
            "name": folder.name,
            "title": title,
            "split": "test",
            "seeds": [0, 1, 2],
            "measure": "weighted_f1",
            "compared_with": next(iter(cells)),
            "teacher": None,
            "remarks": ["One cache serves all cells."],
            "shared": {},
            "cells": found,
            "published": None,
        },
    )
    return folder


@cache
def _difference(one, other):
    runs, others = (predictions(accuracy, luck=luck) for accuracy, luck in (one, other))
    return difference(runs, others, TASK, LANGUAGES)


def _recorded(folder: Path, recipe, record) -> None:
    from comet.configuration import to_yaml

    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    write_json(folder / "run.json", record)


def _agreement(languages, kl: float):
    by_language = {
        name: {
            "kl": kl * (1 + 0.08 * at),
            "top1": 0.5 / (1 + kl),
            "attention_mse": 2e-4 * kl,
            "pseudo_perplexity": 90.0,
        }
        for at, name in enumerate(languages)
    }
    return {**by_language, "all": by_language[languages[len(languages) // 2]]}


def _write_lines(file: Path, lines) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
