"""`python -m comet.finetune`: train a model on a task with several seeds, and choose on dev alone.

recipe.yaml, run.json         the resolved recipe; versions, data, outcome
seed-0[/hau]/                 a run folder of its own: metrics, scores on dev, checkpoints, and
seed-0[/hau]/model/           the model that did best on dev, with its tokenizer and comet.json
predictions/dev/seed-0.jsonl  what it says to the dev split
scores-dev.json               how good that is
texts.json                    hashes of the texts of train and dev, by which evaluation knows those of test again
floor.safetensors             what TF-IDF says of the train split, where objective.floor_weight asks for it

The test split is not read: `python -m comet.evaluate` does that, once.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from comet.card import describing
from comet.configuration import parse_command, run_command
from comet.durable import UnwritableError
from comet.environment import cache_folder, kept_in_cache
from comet.evaluation import evaluate_run, only, score_table
from comet.fine_tuned import find_model
from comet.finetune_recipe import TFIDF, FinetuneRecipe
from comet.floor import FLOOR, Lessons, fit_floor, floor_name, load_floor, save_floor
from comet.inputs import Input, data_input, file_input, model_inputs
from comet.interruption import Interrupted
from comet.processes import copy_of, make_accelerator, on_main, say
from comet.runs import RunFolder, is_finished, resolve
from comet.students import load_tokenizer
from comet.task_model import ModelCard, Tuned, load_tuned
from comet.task_predict import measured, tfidf_answers
from comet.task_run import PROGRAM, TunedData, tune
from comet.tasks import TaskData, open_task
from comet.tasks.overlap import counted, hashes, keep, rows_of
from comet.tasks.task import problem_table
from comet.tfidf import TfidfModel
from comet.tuned_runs import MODEL, member_folder

SHORTCUTS = {
    "--model": "model.model",
    "--initial": "model.initial",
    "--task": "task.task",
    "--data": "task.data",
    "--languages": "task.languages",
    "--teacher": "teacher.model",
    "--class-weights": "objective.class_weights",
    "--fused": "objective.fused",
    "--epochs": "optimisation.epochs",
    "--batch-size": "optimisation.batch_size",
    "--learning-rate": "optimisation.learning_rate",
    "--seeds": "run.seeds",
    "--per-language": "run.per_language",
    "--output": "run.output",
}


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = parse_command(
        FinetuneRecipe,
        argv,
        program=PROGRAM,
        description="Fine-tune a model on a task, with several seeds; choose on dev alone.",
        shortcuts=SHORTCUTS,
        default_recipe=lambda flags: None,
    )
    if given.resume_from is not None:
        raise ValueError(
            "--resume-from: several seeds go on from their newest checkpoints; use --resume"
        )
    folder, recipe = resolve(FinetuneRecipe, given, PROGRAM)
    scores = finetune(recipe, folder, resume=given.resume)
    say(f"\n{score_table(scores)}\n\nscores   {folder / 'scores-dev.json'}")
    say(f"next     python -m comet.evaluate --run {folder} --split test")


def finetune(recipe: FinetuneRecipe, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune a model with every seed of the recipe; the test split is not read.

    Args:
        recipe: the run.
        folder: the run folder; made.
        resume: go on where a run stopped; seeds that are done stay.

    Returns:
        Scores on dev, as in scores-dev.json.

    Raises:
        ValueError: something the user can mend, in one line.
        Interrupted: asked to stop; a checkpoint was saved.
    """
    run = RunFolder(folder, recipe, resume=resume)
    if run.is_done:
        is_trained = recipe.model.model != TFIDF
        say(run.how_to_extend(PROGRAM) if is_trained else f"done     {folder}")
        scores: dict[str, Any] = run.read_json("scores-dev.json")
        return scores
    train = on_main(lambda: open_task(recipe.task, "train"))
    _require_labels(train)
    labels = train.task.labels
    dev = on_main(lambda: open_task(recipe.task, "dev", train.languages, labels=labels))
    texts = hashes({"train": train, "dev": dev})
    repeated = {
        language: len(rows_of(examples, _read_with(texts["train"], language, recipe)))
        for language, examples in dev.splits.items()
    }
    facts = {
        "task": {
            "fingerprint": {"train": train.fingerprint, "dev": dev.fingerprint},
            "examples": {name: len(found) for name, found in train.splits.items()},
            "problems": [problem._asdict() for problem in (*train.problems, *dev.problems)],
            "overlap": {"dev": {"train": repeated}},
        }
    }
    inputs = {
        **data_input("train", recipe.task.data, train.fingerprint),
        **data_input("dev", recipe.task.data, dev.fingerprint),
    }
    name, tokenizer = str(recipe.model.model), None
    if name != TFIDF:
        source = copy_of(name)
        recipe = replace(recipe, model=replace(recipe.model, model=source))
        tokenizer = load_tokenizer(source, flag="--model")
        is_read = recipe.model.initial != "random"
        inputs |= on_main(lambda: model_inputs("model", name, weights=is_read))
    run.reads(inputs)
    with run.recorded(**facts):
        say(_announcement(recipe, train, dev, folder))
        repetition = counted(repeated, dev, "train")
        if repetition:
            say(f"overlap  {repetition}; scores come with and without them (dev)")
        on_main(lambda: keep(texts, folder))
        if tokenizer is None:
            on_main(lambda: _fit_tfidf(recipe, folder, train, dev))
        else:
            _tune_all(recipe, run, train, dev, tokenizer)
        return on_main(lambda: evaluate_run(folder, split="dev"))


def _read_with(
    texts: Mapping[str, Collection[str]], language: str, recipe: FinetuneRecipe
) -> set[str]:
    """Hashes of what the model of a language reads."""
    alone = recipe.run.per_language or recipe.model.model == TFIDF
    return {one for name, its in texts.items() if not alone or name == language for one in its}


def _require_labels(train: TaskData) -> None:
    """Refuse a language from which nothing can be learnt but its only label."""
    for language, examples in train.splits.items():
        found = {
            number
            for one in examples
            for number in (one.label if isinstance(one.label, tuple) else (one.label,))
        }
        if len(found) > 1:
            continue
        (only_label,) = found
        what = f"sentences of {language}" if train.task.kind == "token" else f"texts of {language}"
        raise ValueError(
            f"task.data: the train split has {len(examples):,} {what}, all labelled "
            f"{train.task.labels[only_label]}; expected two different labels or more: check the label column, or leave "
            "the language out with --languages"
        )


def _tune_all(
    recipe: FinetuneRecipe,
    run: RunFolder,
    train: TaskData,
    dev: TaskData,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Every seed and, if each language has its own model, every language; what is done is left alone."""
    accelerator = make_accelerator(recipe.optimisation.precision)
    folder, floor = run.path, None
    if recipe.objective.floor_weight:
        floor = on_main(lambda: _floor(recipe, folder, train))
        run.reads(on_main(lambda: file_input("baseline", folder / FLOOR)))
    groups = (
        [[name] for name in train.languages] if recipe.run.per_language else [list(train.languages)]
    )
    teachers: dict[str, Tuned] = {}
    teacher_inputs = cache(partial(_teacher_inputs, recipe))
    for seed in recipe.run.seeds:
        for languages in groups:
            its = member_folder(folder, seed, languages[0] if recipe.run.per_language else None)
            member = recipe.member(seed, languages)
            if on_main(partial(is_finished, its, member)):
                say(f"\n{its}: done before")
                continue
            data = TunedData(only(train, languages), only(dev, languages), tokenizer, floor)
            teacher = _teacher(recipe, data, teachers)
            if teacher is not None:
                run.reads(on_main(partial(teacher_inputs, languages[0])))
            try:
                tune(member, its, data, run.inputs, accelerator, teacher)
            except Interrupted as stopped:
                raise Interrupted(
                    f"stopped and saved; go on with: python -m {PROGRAM} --resume --output {folder}",
                    stopped.code,
                ) from stopped


def _teacher(recipe: FinetuneRecipe, data: TunedData, known: dict[str, Tuned]) -> Tuned | None:
    """The teacher of these languages, loaded once.

    Raises:
        ValueError: it is of another task or has another tokenizer, or there is none.
    """
    if recipe.teacher.model is None:
        return None
    given, language = recipe.teacher.model, data.train.languages[0]
    found, choice = on_main(lambda: find_model(given, language, flag="--teacher"))
    folder = str(found)
    if folder in known:
        return known[folder]
    teacher = load_tuned(Path(copy_of(folder)), flag="--teacher")
    card, task = teacher.card, data.train.task
    if (card.kind, tuple(card.labels)) != (task.kind, task.labels):
        raise ValueError(
            f"--teacher: {folder} tells {', '.join(card.labels)} apart, the task has "
            f"{', '.join(task.labels)}: logits are compared label by label"
        )
    missing = [name for name in data.train.languages if name not in card.languages]
    if missing:
        raise ValueError(
            f"--teacher: {folder} was fine-tuned on {', '.join(card.languages)}, not on {', '.join(missing)}"
        )
    if teacher.tokenizer.get_vocab() != data.tokenizer.get_vocab():
        raise ValueError(
            f"--teacher: the tokenizer of {folder} is not that of {recipe.model.model}, but both have to read the "
            "same tokens"
        )
    say(f"teacher  {choice or folder}: {card.dev:.4f} on dev")
    known[folder] = teacher
    return teacher


def _teacher_inputs(recipe: FinetuneRecipe, language: str) -> dict[str, Input]:
    assert recipe.teacher.model is not None
    found = find_model(recipe.teacher.model, language, flag="--teacher")
    role = f"{language} teacher" if recipe.run.per_language else "teacher"
    return model_inputs(role, str(found.folder), flag="--teacher")


def _floor(recipe: FinetuneRecipe, folder: Path, train: TaskData) -> dict[str, Lessons]:
    """What the floor teaches; kept in the run folder, so that resuming is exact, and in the cache for other runs."""
    path = folder / FLOOR
    if path.is_file():
        return load_floor(train, path)
    found = _cached_floor(recipe, train)
    save_floor(found, path)
    return found


def _cached_floor(recipe: FinetuneRecipe, train: TaskData) -> dict[str, Lessons]:
    """What the cache holds of it, where it is fitted if it is not there."""
    kept = cache_folder() / f"{floor_name(train, recipe.objective.floor_mixtures)}.safetensors"
    if not os.path.isfile(kept):
        found = None
        try:
            with kept_in_cache(kept):
                if not kept.is_file():  # another process may have made it meanwhile
                    found = _fitted(recipe, train)
                    save_floor(found, kept)
        except UnwritableError as error:
            say(f"warning: other runs will have to fit the baseline again: {error}")
            found = found or _fitted(recipe, train)
        if found is not None:
            return found
    say(f"floor    TF-IDF's labels from {kept}")
    return load_floor(train, kept)


def _fitted(recipe: FinetuneRecipe, train: TaskData) -> dict[str, Lessons]:
    say(f"floor    fitting TF-IDF to {', '.join(train.languages)}")
    return fit_floor(train, recipe.objective.floor_mixtures)


def _fit_tfidf(recipe: FinetuneRecipe, folder: Path, train: TaskData, dev: TaskData) -> None:
    """A TF-IDF model for each language; nothing in it is random, so that one seed says it all."""
    seed = recipe.run.seeds[0]
    for language in train.languages:
        its = member_folder(folder, seed, language) / MODEL
        examples = train.splits[language]
        model = TfidfModel(train.task.labels, [language])
        labels = [one.label for one in examples if isinstance(one.label, int)]
        model.fit([str(one.text) for one in examples], labels)
        found = measured(train.task, tfidf_answers(model, dev.splits[language]))
        model.save(its)
        ModelCard(
            task=train.task.name,
            kind=train.task.kind,
            labels=list(train.task.labels),
            languages=[language],
            max_length=0,
            seed=seed,
            dev=found["weighted_f1"],
            step=0,
            size=None,
        ).write(its)
        describing(its)(its)
        say(f"{language}: weighted_f1 on dev {found['weighted_f1']:.4f}")


def _announcement(recipe: FinetuneRecipe, train: TaskData, dev: TaskData, folder: Path) -> str:
    counts = ", ".join(f"{name} {len(found):,}" for name, found in train.splits.items())
    lines = [
        f"model    {recipe.model.model}{', random weights' if recipe.model.initial == 'random' else ''}",
        f"task     {train.task.name}: {', '.join(train.task.labels)}",
        f"train    {counts}",
        f"dev      {sum(map(len, dev.splits.values())):,} examples, by which models are chosen",
        *problem_table([*train.problems, *dev.problems]),
        f"output   {folder}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, PROGRAM)
