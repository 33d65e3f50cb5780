"""`python -m comet.initialise`: how close a student is to its teacher before any training.

    python -m comet.initialise --teacher T --corpus TEXT --student.initial teacher [--output runs/start]

Takes the recipe and the flags of `comet.distill`, makes the student that such a run would begin with, and compares it
with its teacher on held-out text. With `--output` the student is written, as a model to begin with (`--student`).
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import comet_kernels
import comet_kernels.reference
from comet.agreement import measure_distiller, table
from comet.configuration import build, parse_command, run_command
from comet.distill import SHORTCUTS, build_distiller, open_sources
from comet.durable import require_new_folder
from comet.processes import make_accelerator, on_main, say
from comet.recipe import DistillRecipe
from comet.students import count_parameters, save_model
from comet.teacher_cache import complete

PROGRAM = "comet.initialise"


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = parse_command(
        DistillRecipe,
        argv,
        program=PROGRAM,
        description="Compare a student with its teacher before any training.",
        shortcuts=SHORTCUTS,
        default_recipe=_default_recipe,
    )
    if given.resume:
        raise ValueError("--resume: nothing is trained here; leave it out")
    recipe = build(DistillRecipe, on_main(lambda: complete(given.content)))
    folder = None if recipe.run.output is None else Path(recipe.run.output)
    if folder is not None:
        on_main(lambda: require_new_folder(folder))
    accelerator = make_accelerator(recipe.optimisation.precision)
    ops: ModuleType = comet_kernels if recipe.objective.fused else comet_kernels.reference
    sources = open_sources(recipe, ops, accelerator)
    with closing(sources.batches):
        distiller, start = build_distiller(recipe, sources, ops)
        distiller.teacher.to(accelerator.device)
        distiller.to(accelerator.device)
        found = measure_distiller(distiller, sources.held_out, accelerator)
    student = distiller.student.model
    say(
        f"student  {count_parameters(student):,} parameters\n"
        f"start    {start.describe(sources.config)}"
    )
    say(table({"before training": found}))
    if folder is not None:
        on_main(lambda: save_model(student, sources.tokenizer, folder, new=True))
        say(f"\nmodel   {folder}")


def _default_recipe(flags: Mapping[str, Any]) -> str | None:
    given = {"teacher.model", "teacher.cache", "corpus.paths"} & flags.keys()
    return None if given else "quickstart"


if __name__ == "__main__":
    run_command(main, PROGRAM)
