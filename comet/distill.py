"""`python -m comet.distill`: parse, build, train, close."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerFast

import comet_kernels
import comet_kernels.reference
from comet import quickstart
from comet.agreement import Agreement, measure_distiller, table
from comet.batch import Batch
from comet.batches import BatchStream, Masking, evaluation_batches, open_text
from comet.configuration import parse_command, run_command
from comet.corpus import Corpus
from comet.objective import Distiller
from comet.projections import make_projection
from comet.recipe import DistillRecipe
from comet.runs import RunFolder, resolve
from comet.students import (
    count_parameters,
    load_masked_lm,
    load_tokenizer,
    make_student,
    require_embedded,
    require_same_vocabulary,
    save_model,
)
from comet.tap import TappedEncoder, usable_positions
from comet.training import Training, make_accelerator

PROGRAM = "comet.distill"
SHORTCUTS = {
    "--fused": "objective.fused",
    "--teacher": "teacher.model",
    "--student": "student.model",
    "--corpus": "corpus.paths",
    "--languages": "corpus.languages",
    "--output": "run.output",
    "--steps": "optimisation.steps",
    "--batch-size": "optimisation.batch_size",
    "--seed": "run.seed",
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
    folder, recipe = resolve(DistillRecipe, given, PROGRAM)
    distill(recipe, folder, resume=given.resume)


def distill(recipe: DistillRecipe, folder: Path, *, resume: bool = False) -> dict[str, Agreement]:
    """Train a student of a teacher's.

    Args:
        recipe: the run.
        folder: the run folder; made.
        resume: go on from its newest checkpoint.

    Returns:
        How closely the student follows the teacher on held-out text, by language.

    Raises:
        ValueError: something the user can mend, in one line.
    """
    run = RunFolder(folder, recipe, resume=resume)
    ops: ModuleType = comet_kernels if recipe.objective.fused else comet_kernels.reference
    accelerator = make_accelerator(recipe.optimisation)
    corpus = open_text(recipe.corpus, recipe.run.seed)
    teacher_name = recipe.teacher.model or quickstart.toy_teacher()
    distiller, tokenizer = build_distiller(recipe, teacher_name, ops)
    with run.recorded(teacher=teacher_name, corpus=corpus.fingerprint()):
        masking = Masking(
            tokenizer, recipe.corpus.mask_probability, recipe.objective.kd_tokens, recipe.run.seed
        )
        batches = BatchStream(
            corpus.training_stream(),
            masking,
            recipe.optimisation.batch_size,
            recipe.corpus.max_length,
        )
        held_out = held_out_batches(corpus, masking, recipe)
        training = Training(distiller, batches, recipe.optimisation, recipe.run, run, accelerator)
        distiller.teacher.to(accelerator.device)
        _announce(distiller, corpus, ops, folder, accelerator)
        before = measure_distiller(distiller, held_out, accelerator)
        if resume:
            training.resume()
            print(f"resuming at step {training.step}", flush=True)
        training.train()
        after = measure_distiller(distiller, held_out, accelerator)
        run.write_json(
            "agreement.json",
            {
                when: {language: asdict(one) for language, one in found.items()}
                for when, found in (("before", before), ("after", after))
            },
        )
        save_model(distiller.student.model, tokenizer, folder / "student")
    print(f"\nHeld-out agreement with the teacher\n{table({'before': before, 'after': after})}")
    print(f"\nstudent  {folder / 'student'}\nrun      {folder}")
    if recipe.teacher.model is None:
        quickstart.compare(recipe, distiller, after, held_out, accelerator, folder)
    return after


def build_distiller(
    recipe: DistillRecipe, teacher_name: str, ops: ModuleType
) -> tuple[Distiller, PreTrainedTokenizerFast]:
    """Teacher, student, projection and objective of a recipe, and the tokenizer both read with.

    Raises:
        ValueError: no MLM head, different vocabularies, sequences longer than the positions.
    """
    teacher = load_masked_lm(teacher_name, revision=recipe.teacher.revision)
    tokenizer = load_tokenizer(teacher_name, revision=recipe.teacher.revision)
    require_embedded(tokenizer, teacher, flag="--teacher")
    if recipe.student.model is not None:
        require_same_vocabulary(tokenizer, load_tokenizer(recipe.student.model, flag="--student"))
    torch.manual_seed(recipe.run.seed)
    student = make_student(teacher.config, recipe.student)
    for role, model in (("teacher", teacher), ("student", student)):
        positions = usable_positions(model)
        if recipe.corpus.max_length > positions:
            raise ValueError(
                f"corpus.max_length: got {recipe.corpus.max_length}, but the {role} has positions for "
                f"{positions} tokens; lower it to {positions} or less"
            )
    distiller = Distiller(
        TappedEncoder(teacher, recipe.teacher.attention_layer),
        TappedEncoder(student, recipe.student.attention_layer),
        make_projection(recipe.objective, recipe.corpus.max_length),
        recipe.objective,
        ops,
    )
    return distiller, tokenizer


def held_out_batches(
    corpus: Corpus, masking: Masking, recipe: DistillRecipe
) -> dict[str, list[Batch]]:
    """Evaluation batches by language, masked as in training, matched on the masked tokens."""
    evaluation = Masking(
        masking.tokenizer,
        masking.probability,
        kd_tokens="masked" if masking.probability > 0 else "all",
        seed=0,
    )
    return {
        language: evaluation_batches(
            texts, evaluation, recipe.optimisation.batch_size, recipe.corpus.max_length
        )
        for language, texts in corpus.held_out().items()
    }


def _announce(
    distiller: Distiller,
    corpus: Corpus,
    ops: ModuleType,
    folder: Path,
    accelerator: Accelerator,
) -> None:
    kind = "fused kernels" if ops is comet_kernels else "plain torch"
    text = ", ".join(
        language if count is None else f"{language} {count:,}"
        for language, count in corpus.counts.items()
    )
    print(
        f"teacher  {count_parameters(distiller.teacher):,} parameters\n"
        f"student  {count_parameters(distiller.student):,} parameters\n"
        f"corpus   {text}\n"
        f"compute  {kind} on {accelerator.device}\n"
        f"output   {folder}",
        flush=True,
    )


def _default_recipe(flags: Mapping[str, Any]) -> str | None:
    given = "teacher.model" in flags or "corpus.paths" in flags
    return None if given else "quickstart"


if __name__ == "__main__":
    run_command(main, PROGRAM)
