"""A folder of another kind than a command takes is named by its kind, with what to do."""

import pytest

from comet.configuration import Given
from comet.corpus.local import find_files
from comet.experiment import Order, experiment
from comet.factorize import main as factorize
from comet.fine_tuned import find_model
from comet.holdings import instead, kind_of
from comet.pretrained import model_folder
from comet.recipe import AdaptRecipe
from comet.report.reading import read
from comet.runs import resolve
from comet.task_model import read_card
from comet.tasks import TaskRecipe, open_task
from comet.teacher_cache import read_index
from comet.tuned_runs import recipe_of

MODEL = {"config.json": '{"model_type": "bert"}', "tokenizer_config.json": "{}"}
TUNED = {**MODEL, "comet.json": "{}"}
FOLDERS = {
    "distillation run": {"recipe.yaml": "teacher: {}\nstudent: {}", "metrics.jsonl": ""}
    | {f"student/{name}": text for name, text in MODEL.items()},
    "adaptation run": {"recipe.yaml": "model: {}\nwarm_start: {}"}
    | {f"model/{name}": text for name, text in MODEL.items()},
    "fine-tuning run": {"recipe.yaml": "model: {}\ntask: {}"}
    | {f"seed-0/model/{name}": text for name, text in TUNED.items()},
    "experiment": {"experiment.json": "{}"},
    "teacher cache": {"index.json": '{"made_from": {}}'},
    "checkpoint": {"tensors.safetensors": "", "state.json": "{}"},
    "TF-IDF model": {"tfidf.json": "{}"},
    "fine-tuned model": TUNED,
    "model": MODEL,
    "tokenizer": {"tokenizer.json": "{}"},
    "text": {"hau/a.txt": "text"},
    "labelled data": {"hau/train.tsv": "text\tlabel"},
}


def written(folder, kind):
    for name, text in FOLDERS[kind].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_kind_is_told_by_its_files(tmp_path, kind):
    assert kind_of(written(tmp_path / "folder", kind)) == kind


def test_nothing_is_said_of_what_is_not_known_or_wanted(tmp_path):
    assert kind_of(tmp_path) is None
    assert kind_of(tmp_path / "nowhere") is None
    (tmp_path / "recipe.yaml").write_text("- [")
    assert instead(tmp_path, "run") == ""
    assert instead(written(tmp_path / "model", "model"), "model") == ""


def test_models_are_found_in_runs_and_runs_around_models(tmp_path):
    run = written(tmp_path / "run", "fine-tuning run")
    (run / "seed-0" / "recipe.yaml").write_text("task: {}")
    assert f"give one of its models, such as {run}/seed-0/model" in instead(run, "fine-tuned model")
    assert f"give the run that it is in, {run}" in instead(run / "seed-0/model", "fine-tuning run")
    run = written(tmp_path / "student", "distillation run")
    checkpoint = written(run / "checkpoints/step-2", "checkpoint")
    assert f"give the model of its run, {run}/student" in instead(checkpoint, "model")


COMMANDS = {
    "evaluate --run": (lambda folder: recipe_of(folder), "holds no fine-tuning run"),
    "evaluate --model": (lambda folder: read_card(folder), "holds no fine-tuned model"),
    "predict --model": (lambda folder: find_model(folder), "holds no fine-tuned model"),
    "distill --teacher": (lambda folder: model_folder(str(folder)), "holds no model"),
    "distill --teacher-cache": (lambda folder: read_index(folder), "holds no teacher cache"),
    "distill --corpus": (lambda folder: find_files(folder), r"holds no text|no \.jsonl"),
    "finetune --data": (
        lambda folder: open_task(TaskRecipe(data=str(folder)), "train"),
        "no train",
    ),
    "adapt --resume": (
        lambda folder: resolve(
            AdaptRecipe, Given({"run": {"output": str(folder)}}, None, True), "comet.adapt"
        ),
        "--resume",
    ),
    "report": (lambda folder: read([folder]), "holds no run"),
    "factorize": (lambda folder: factorize([str(folder), "--output", "out"]), "no such file"),
    "experiment --output": (
        lambda folder: experiment(Order(None, folder, ())),
        "holds no experiment",
    ),
}


@pytest.mark.parametrize(
    ("command", "kind", "advice"),
    [
        ("evaluate --run", "distillation run", "python -m comet.finetune --model FOLDER/student"),
        ("evaluate --run", "adaptation run", "python -m comet.finetune --model FOLDER/model"),
        ("evaluate --run", "fine-tuned model", "or the model with --model"),
        ("evaluate --run", "experiment", "FOLDER/cells/CELL/finetune"),
        ("evaluate --model", "fine-tuning run", "give one of its models, such as FOLDER/seed-0/model"),
        ("evaluate --model", "model", "python -m comet.finetune --model FOLDER --data"),
        ("predict --model", "distillation run", "python -m comet.finetune --model FOLDER/student"),
        ("predict --model", "teacher cache", "it holds a teacher cache"),
        ("distill --teacher", "adaptation run", "give FOLDER/model"),
        ("distill --teacher", "distillation run", "give FOLDER/student"),
        ("distill --teacher", "teacher cache", "--teacher-cache"),
        ("distill --teacher-cache", "model", "give it with --teacher"),
        ("distill --corpus", "distillation run", "it holds a distillation run"),
        ("distill --corpus", "labelled data", "comet.finetune with --data"),
        ("finetune --data", "text", "with --corpus"),
        ("finetune --data", "fine-tuning run", "it holds a fine-tuning run"),
        ("adapt --resume", "distillation run", "python -m comet.distill --resume --output FOLDER"),
        ("adapt --resume", "teacher cache", "start the command that makes it again"),
        ("report", "fine-tuned model", "give the run that it is in"),
        ("factorize", "distillation run", "FOLDER/checkpoints/step-N"),
        ("experiment --output", "fine-tuning run", "it holds a fine-tuning run"),
    ],
)  # fmt: skip
def test_each_command_names_what_it_was_given_instead(tmp_path, command, kind, advice):
    call, said = COMMANDS[command]
    folder = written(tmp_path / "folder", kind)
    with pytest.raises(ValueError, match=said) as caught:
        call(folder)
    assert advice.replace("FOLDER", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)
