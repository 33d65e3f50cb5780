"""`python -m comet.evaluate`: what fine-tuned models are worth on a split, against a floor and a teacher."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_type_hints

from comet.configuration import CommandParser, items_of, run_command
from comet.evaluation import evaluate_system, score_table
from comet.finetune import finetune
from comet.finetune_recipe import TFIDF, FinetuneRecipe, TunedModelRecipe
from comet.inputs import changed_inputs, data_input, saved_inputs
from comet.processes import on_main, say
from comet.runs import read_record
from comet.tasks import TaskRecipe, open_task
from comet.tuned_runs import TunedSystem, is_done, recipe_of, system_of_models, system_of_run

PROGRAM = "comet.evaluate"


def evaluate(
    run: Path | None = None,
    *,
    models: Sequence[Path] = (),
    task: TaskRecipe | None = None,
    split: str = "test",
    unseen: Sequence[str] = (),
    teacher: Path | None = None,
    floor: str | Path | None = None,
    output: Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Measure a fine-tuning run, or models given one by one.

    Args:
        run: folder of a run, all of whose seeds are measured.
        models: in place of a run, folders of models that differ in their seed.
        task: the data; None for that of the run.
        split: "dev" or "test".
        unseen: codes of languages that were not trained on, measured too.
        teacher: a fine-tuning run that retention is measured against.
        floor: another run, or "tfidf": that baseline, fitted on the same train split and kept in `output/tfidf`.
        output: where predictions and scores go; None for the run's folder.
        name: what it is called in tables; None for its folder's.

    Returns:
        What scores-SPLIT.json holds.

    Raises:
        ValueError: something the user can mend, in one line.
    """
    if (run is None) == (not models):
        raise ValueError("--run: give either --run with a folder, or --model with one or more")
    if run is not None:
        system, data = system_of_run(run, name=name), task or recipe_of(run).task
    else:
        system = system_of_models(list(models), name=name)
        if task is None or task.data is None:
            raise ValueError(
                "--data: got nothing, expected the folder of the task's data, as --model knows of none"
            )
        data = task
    folder = output or run
    if folder is None:
        raise ValueError(
            "--output: got nothing, expected a folder for predictions and scores, as there is no --run"
        )
    if floor == TFIDF:
        floor = _fitted_floor(system, data, folder / TFIDF)
    return evaluate_system(
        system,
        data,
        folder,
        split=split,
        unseen=unseen,
        teacher=teacher,
        floor=None if floor is None else Path(floor),
    )


def _fitted_floor(system: TunedSystem, data: TaskRecipe, folder: Path) -> Path:
    """The baseline on the train split of the same data, fitted where it is not yet.

    Raises:
        ValueError: the folder holds that of other data, or the task tags words.
    """
    recipe = FinetuneRecipe(
        model=TunedModelRecipe(model=TFIDF),
        task=replace(data, languages=data.languages or system.languages),
    )
    if on_main(lambda: is_done(folder)):
        there = recipe_of(folder, flag="--floor").task
        if there != recipe.task or not on_main(lambda: _is_fitted_on(folder, recipe.task)):
            raise ValueError(
                f"--floor: {folder} was fitted on other data; remove it, or give --floor a run"
            )
        return folder
    say("fitting the floor, TF-IDF of character n-grams, on the train split")
    finetune(recipe, folder, resume=on_main(lambda: (folder / "recipe.yaml").exists()))
    return folder


def _is_fitted_on(folder: Path, task: TaskRecipe) -> bool:
    """Whether the train split is still what a run was fitted on."""
    known = saved_inputs(read_record(folder).get("inputs"))
    train = open_task(task, "train").fingerprint
    return not changed_inputs(known, data_input("train", task.data, train))


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = _parser().parse_args(argv)
    task = _task(given)
    scores = evaluate(
        given.run,
        models=given.model,
        task=task,
        split=given.split,
        unseen=list(chain.from_iterable(given.unseen)),
        teacher=given.teacher,
        floor=given.floor,
        output=given.output,
        name=given.name,
    )
    say(f"\n{score_table(scores)}")
    if given.confusion:
        say(confusion_table(scores))
    say(f"\nscores   {(given.output or given.run) / f'scores-{given.split}.json'}")


def _task(given: argparse.Namespace) -> TaskRecipe | None:
    """The data that the flags name, over that of the run; None where none does."""
    flags: dict[str, Any] = {
        name: value
        for name, value in (
            ("task", given.task),
            ("data", given.data),
            ("languages", list(chain.from_iterable(given.languages)) or None),
        )
        if value is not None
    }
    if given.run is not None:
        return replace(recipe_of(given.run).task, **flags) if flags else None
    return TaskRecipe(**flags)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"python -m {PROGRAM}",
        description="Measure fine-tuned models on a split. What was asked of the same weights before is kept.",
    )
    tasks = get_args(get_type_hints(TaskRecipe)["task"])
    parser.add_argument("--run", type=Path, help="folder of a fine-tuning run: all of its seeds")
    parser.add_argument(
        "--model", type=Path, nargs="+", default=[], help="or folders of models, one for each seed"
    )
    parser.add_argument("--task", choices=tasks, help="the run's own if not given, or afrisenti")
    parser.add_argument(
        "--data", help="folder, file or hub:OWNER/NAME[:CONFIG]; the run's own if not given"
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        type=items_of(str),
        default=[],
        help="codes; those that were trained on if not given",
    )
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="default: test")
    parser.add_argument(
        "--unseen",
        nargs="+",
        type=items_of(str),
        default=[],
        help="codes of languages that were not trained on",
    )
    parser.add_argument("--teacher", type=Path, help="fine-tuning run to measure retention against")
    parser.add_argument(
        "--floor",
        help="tfidf, fitted on the same train split, or a run: the least to do better than",
    )
    parser.add_argument(
        "--output", type=Path, help="for predictions and scores; the run's folder if not given"
    )
    parser.add_argument("--name", help="in tables; the folder's if not given")
    parser.add_argument("--confusion", action="store_true", help="print confusion matrices too")
    return parser


def confusion_table(scores: Mapping[str, Any]) -> str:
    """Confusion matrices as lines, gold by predicted, summed over seeds; empty for tags of words."""
    labels = scores["task"]["labels"]
    width = max(map(len, labels)) + 2
    lines = []
    for language, found in scores["languages"].items():
        if "confusion" not in found:
            continue
        lines.append(f"\n{language}: gold by predicted")
        lines.append(" " * width + "".join(f"{label:>{width}}" for label in labels))
        for label, row in zip(labels, found["confusion"], strict=True):
            lines.append(f"{label:<{width}}" + "".join(f"{count:>{width},}" for count in row))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
