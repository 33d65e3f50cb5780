"""What a folder holds, told by its files, for commands that were given another folder than they take.

Knows names of files alone, so that every other module may ask.
"""

import json
from pathlib import Path
from typing import Any, Literal

import yaml

Kind = Literal[
    "distillation run",
    "adaptation run",
    "fine-tuning run",
    "experiment",
    "teacher cache",
    "checkpoint",
    "TF-IDF model",
    "fine-tuned model",
    "model",
    "tokenizer",
    "text",
    "labelled data",
]
Wanted = Literal[
    "model",
    "tokenizer",
    "fine-tuned model",
    "fine-tuning run",
    "teacher cache",
    "run",
    "stopped run",
    "checkpoint",
    "experiment",
    "text",
    "labelled data",
]

_RECIPE = "recipe.yaml"
_TEXT = ("*.jsonl", "*.jsonl.gz", "*.txt", "*.txt.gz")
_SPLITS = ("train", "dev", "validation", "valid", "test")
PROGRAMS: dict[Kind, str] = {
    "distillation run": "comet.distill",
    "adaptation run": "comet.adapt",
    "fine-tuning run": "comet.finetune",
}
_PHRASES: dict[Kind, str] = {
    "model": "a model that was not fine-tuned",
    "tokenizer": "a tokenizer without a model",
    "checkpoint": "a run's checkpoint",
    "text": "text",
    "labelled data": "labelled data",
}
_FINE_TUNE = "fine-tune it first: python -m comet.finetune --model {model} --data DATA"
_TUNE_AND_GIVE = (
    "fine-tune it, python -m comet.finetune --model {model} --data DATA, and give that run"
)
_ENCODER = "give {model}"

# What to do instead, by what is wanted and what is there; {folder} is there, {model} a model in it, {run} its run.
_ADVICE: dict[Wanted, dict[Kind, str]] = {
    "model": {
        "distillation run": _ENCODER,
        "adaptation run": _ENCODER,
        "fine-tuning run": "give the model that was fine-tuned in it",
        "experiment": "give one of its students, {folder}/cells/CELL/distill/student",
        "teacher cache": "give it to comet.distill with --teacher-cache",
        "checkpoint": "give the model of its run, {model}",
        "TF-IDF model": "give an encoder",
        "tokenizer": "give the folder of a model, with config.json and model.safetensors",
    },
    "fine-tuned model": {
        "distillation run": _FINE_TUNE,
        "adaptation run": _FINE_TUNE,
        "model": _FINE_TUNE,
        "fine-tuning run": "give one of its models, such as {model}",
        "experiment": "give a run in it, {folder}/cells/CELL/finetune, or its model",
        "checkpoint": "give the run, {run}, or its model",
    },
    "fine-tuning run": {
        "distillation run": _TUNE_AND_GIVE,
        "adaptation run": _TUNE_AND_GIVE,
        "model": _TUNE_AND_GIVE,
        "fine-tuned model": "give the run that it is in, {run}, or the model with --model",
        "TF-IDF model": "give the run that it is in, {run}, or the model with --model",
        "experiment": "give a run in it, {folder}/cells/CELL/finetune",
        "checkpoint": "give the run that it is in, {run}",
    },
    "teacher cache": {
        **dict.fromkeys(PROGRAMS, "make one: python -m comet.cache_teacher"),
        "model": "give it with --teacher, or make a cache: python -m comet.cache_teacher --teacher {folder}",
    },
    "run": {
        "model": "give the run that it is in",
        "fine-tuned model": "give the run that it is in, {run}",
        "TF-IDF model": "give the run that it is in, {run}",
        "checkpoint": "give the run that it is in, {run}",
        "teacher cache": "give a run that was trained from it",
    },
    "stopped run": {
        "experiment": "start the command that makes it again, without --resume",
        "teacher cache": "start the command that makes it again, without --resume",
        "model": "give the run that it is in",
        "fine-tuned model": "give the run that it is in, {run}",
        "checkpoint": "give the run that it is in, {run}",
    },
    "checkpoint": {
        "distillation run": "give one of its checkpoints, {folder}/checkpoints/step-N",
        "adaptation run": "give one of a distillation run's checkpoints, RUN/checkpoints/step-N",
    },
    "text": {"labelled data": "give it to comet.finetune with --data"},
    "labelled data": {"text": "give it to comet.distill or comet.adapt with --corpus"},
}
_ADVICE["tokenizer"] = _ADVICE["model"]


def kind_of(folder: Path) -> Kind | None:
    """What a folder holds; None where that cannot be told."""
    if not folder.is_dir():
        return None
    if (folder / _RECIPE).is_file():
        return _kind_of_run(folder / _RECIPE)
    if (folder / "experiment.json").is_file():
        return "experiment"
    if (folder / "tfidf.json").is_file():
        return "TF-IDF model"
    config = _object(folder / "config.json")
    if "model_type" in config or "architectures" in config:
        return "fine-tuned model" if (folder / "comet.json").is_file() else "model"
    if "made_from" in _object(folder / "index.json"):
        return "teacher cache"
    if all((folder / name).is_file() for name in ("tensors.safetensors", "state.json")):
        return "checkpoint"
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return "tokenizer"
    return _kind_of_data(folder)


def instead(folder: Path, wanted: Wanted) -> str:
    """`; it holds a distillation run: give runs/a/student`, to end a message with; empty where nothing is known."""
    kind = kind_of(folder)
    if kind is None or kind == wanted:
        return ""
    article = "an" if kind[0] in "aeiou" else "a"
    found = f"; it holds {_PHRASES.get(kind, f'{article} {kind}')}"
    advice = _ADVICE.get(wanted, {}).get(kind)
    if advice is None:
        return found
    run = _run_of(folder)
    model = folder if kind == "model" else _model_in(run)
    return f"{found}: {advice.format(folder=folder, run=run, model=model)}"


def refuse_other_run(folder: Path, program: str) -> None:
    """Refuse to resume a run of another command.

    Raises:
        ValueError: it is one.
    """
    kind = kind_of(folder)
    if kind in PROGRAMS and PROGRAMS[kind] != program:
        raise ValueError(
            f"--resume: {folder} holds {'an' if kind[0] in 'aeiou' else 'a'} {kind}; resume it with python -m "
            f"{PROGRAMS[kind]} --resume --output {folder}"
        )


def _kind_of_run(recipe: Path) -> Kind | None:
    try:
        parts = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if not isinstance(parts, dict):
        return None
    if "task" in parts:
        return "fine-tuning run"
    if "student" in parts:
        return "distillation run"
    return "adaptation run" if "warm_start" in parts else None


def _kind_of_data(folder: Path) -> Kind | None:
    """Files of a folder, or of the folders in it."""
    for place in ("", "*/"):
        if any(any(folder.glob(f"{place}{split}.*")) for split in _SPLITS):
            return "labelled data"
        if any(any(folder.glob(f"{place}{name}")) for name in _TEXT):
            return "text"
    return None


def _run_of(folder: Path) -> Path:
    """The run that a folder is in, of nested ones the outermost; itself where it is in none."""
    return next((one for one in reversed(folder.parents) if (one / _RECIPE).is_file()), folder)


def _model_in(run: Path) -> Path:
    """The first model of a run, or where it would be."""
    found = [run / "student", run / "model", *sorted(run.glob("seed-*/**/model"))]
    return next((one for one in found if one.is_dir()), found[0])


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
