"""`python -m comet.distill`: parse, build, train, close."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

import comet_kernels
import comet_kernels.reference
from comet import quickstart
from comet.agreement import Agreement, measure_distiller, table
from comet.card import describing
from comet.configuration import parse_command, run_command
from comet.initialisation import make_started
from comet.inputs import Input, file_input, model_inputs
from comet.memory_advice import advice, explained, sizes_of
from comet.objective import Distiller
from comet.processes import copy_of, make_accelerator, on_main, say
from comet.projections import make_projection
from comet.recipe import DistillRecipe
from comet.runs import RunFolder, resolve
from comet.sources import Sources, cached_sources, online_sources
from comet.students import (
    Start,
    count_parameters,
    keep_inputs_only,
    load_tokenizer,
    require_same_vocabulary,
    save_model,
)
from comet.tap import TappedEncoder
from comet.teacher_cache import complete, open_cache
from comet.trackers import Trackers
from comet.training import Training, Watching
from comet.watch import Watch

PROGRAM = "comet.distill"
AGREEMENT = "agreement.json"
SHORTCUTS = {
    "--fused": "objective.fused",
    "--teacher": "teacher.model",
    "--teacher-cache": "teacher.cache",
    "--trim": "teacher.trim",
    "--student": "student.model",
    "--corpus": "corpus.paths",
    "--languages": "corpus.languages",
    "--output": "run.output",
    "--steps": "optimisation.steps",
    "--batch-size": "optimisation.batch_size",
    "--seed": "run.seed",
    "--compile": "optimisation.compile",
}


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = parse_command(
        DistillRecipe,
        argv,
        program=PROGRAM,
        description="Distil a masked language model into a small one.",
        shortcuts=SHORTCUTS,
        default_recipe=_default_recipe,
    )
    given = replace(given, content=on_main(lambda: complete(given.content)))
    folder, recipe = resolve(DistillRecipe, given, PROGRAM)
    distill(recipe, folder, resume=given.resume, resume_from=given.resume_from)


def distill(
    recipe: DistillRecipe, folder: Path, *, resume: bool = False, resume_from: int | None = None
) -> dict[str, Agreement]:
    """Train a student of a teacher's.

    Args:
        recipe: the run.
        folder: the run folder; made.
        resume: go on from its newest checkpoint.
        resume_from: go on from the checkpoint of this step.

    Returns:
        How closely the student follows the teacher on held-out text, by language.

    Raises:
        ValueError: something the user can mend, in one line.
        Interrupted: asked to stop; a checkpoint was saved.
    """
    accelerator = make_accelerator(recipe.optimisation.precision)
    run = RunFolder(folder, recipe, resume=resume)
    if run.is_done:
        say(run.how_to_extend(PROGRAM))
        return agreements(run.read_json(AGREEMENT)["after"])
    trackers = Trackers(recipe.run.trackers, folder)
    ops: ModuleType = comet_kernels if recipe.objective.fused else comet_kernels.reference
    sources = open_sources(recipe, ops, accelerator)
    run.reads(on_main(lambda: _inputs(recipe, sources)))
    distiller, start = build_distiller(recipe, sources, ops)
    recipe = replace(recipe, student=start.recipe)
    run.recipe = replace(run.recipe, student=start.recipe)  # which does not ask again when resumed
    student = distiller.student.model
    sizes = sizes_of(student, sources.model, accelerator.num_processes)
    with (
        run.recorded(**sources.facts),
        explained(lambda: advice(recipe, sizes)),
        closing(sources.batches),
    ):
        distiller.teacher.to(accelerator.device)
        distiller.to(accelerator.device)

        def evaluate() -> dict[str, dict[str, float]]:
            found = measure_distiller(distiller, sources.held_out, accelerator)
            return {language: asdict(one) for language, one in found.items()}

        watching = Watching(
            program=PROGRAM,
            languages=sources.languages,
            watch=Watch(sources.coverage, recipe.objective),
            trackers=trackers,
            tokenizer=sources.tokenizer,
            evaluate=evaluate,
        )
        training = Training(
            distiller,
            sources.batches,
            recipe.optimisation,
            recipe.run,
            run,
            accelerator,
            watching,
            before_step=distiller.set_progress,
        )
        say(_announcement(distiller, sources, start, ops, folder, accelerator))
        before = evaluate()
        if resume:
            training.resume(resume_from)
            say(f"resuming at step {training.step}")
        trackers.start(accelerator, run.recipe, training.step)
        with closing(trackers):
            if training.step == 0:
                training.tell_evaluation(before, say)
            training.train()
            after = evaluate()
            training.tell_evaluation(after, say)
        run.write_json(AGREEMENT, {"before": before, "after": after})
        home = folder / "student"
        on_main(lambda: save_model(student, sources.tokenizer, home, describing(home)))
    columns = {"before": agreements(before), "after": agreements(after)}
    say(
        f"\nHeld-out agreement with the teacher\n{table(columns)}\n\n"
        f"student  {folder / 'student'}\nrun      {folder}"
    )
    if sources.conclusion is not None and training.tokens_per_second is not None:
        say(sources.conclusion(training.tokens_per_second))
    if recipe.teacher.model is None and recipe.teacher.cache is None:
        quickstart.compare(
            recipe, distiller, columns["after"], sources.held_out, accelerator, folder
        )
    return columns["after"]


def _inputs(recipe: DistillRecipe, sources: Sources) -> dict[str, Input]:
    """What a run reads: teacher and text or a cache, and what student and projection start from."""
    found = sources.inputs()
    if recipe.student.model is not None:
        found |= model_inputs("student", recipe.student.model, flag="--student")
    if recipe.objective.projection_start is not None:
        found |= file_input("projection start", Path(recipe.objective.projection_start))
    return found


def agreements(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Agreement]:
    """What an evaluation found, by language."""
    return {language: Agreement(**values) for language, values in found.items()}


def open_sources(recipe: DistillRecipe, ops: ModuleType, accelerator: Accelerator) -> Sources:
    """What a recipe reads: a cache where it names one, else a teacher and text.

    Raises:
        ValueError: it cannot be had.
    """
    if recipe.teacher.cache is not None:
        return cached_sources(recipe, open_cache(recipe.teacher.cache, recipe), accelerator)
    teacher_name = recipe.teacher.model or quickstart.toy_teacher()
    return online_sources(recipe, teacher_name, ops, accelerator)


def build_distiller(
    recipe: DistillRecipe, sources: Sources, ops: ModuleType
) -> tuple[Distiller, Start]:
    """Student, projection and objective of a recipe, beside the teacher; and what the student starts from.

    Raises:
        ValueError: different vocabularies, a student that is no smaller, sequences longer than the positions, an
            option that does not fit.
    """
    if recipe.student.model is not None:
        source = copy_of(recipe.student.model)
        recipe = replace(recipe, student=replace(recipe.student, model=source))
        theirs = load_tokenizer(source, flag="--student")
        require_same_vocabulary(sources.tokenizer, theirs)
    set_seed(recipe.run.seed)
    student, start = make_started(
        sources.config,
        recipe.student,
        sources.load_teacher,
        sources.first_batches,
        recipe.corpus.max_length,
    )
    if recipe.optimisation.gradient_checkpointing:
        keep_inputs_only(student)
    encoder = TappedEncoder(student, recipe.student.attention_layer)
    if recipe.optimisation.compile:
        encoder.compile(dynamic=True)
    projection = make_projection(recipe.objective, recipe.corpus.max_length)
    distiller = Distiller(
        sources.teacher, encoder, projection, recipe.objective, ops, sources.languages
    )
    return distiller, start


def _announcement(
    distiller: Distiller,
    sources: Sources,
    start: Start,
    ops: ModuleType,
    folder: Path,
    accelerator: Accelerator,
) -> str:
    kind = "fused kernels" if ops is comet_kernels else "plain torch"
    several = accelerator.num_processes
    where = f"{accelerator.device}" if several == 1 else f"{several} processes"
    shape = distiller.student.model.config
    return (
        f"{sources.description}\n"
        f"student  {count_parameters(distiller.student):,} parameters, {shape.num_hidden_layers} layers × "
        f"{shape.hidden_size}\n"
        f"start    {start.describe(sources.config)}\n"
        f"compute  {kind} on {where}\n"
        f"output   {folder}"
    )


def _default_recipe(flags: Mapping[str, Any]) -> str | None:
    given = {"teacher.model", "teacher.cache", "corpus.paths"} & flags.keys()
    return None if given else "quickstart"


if __name__ == "__main__":
    run_command(main, PROGRAM)
