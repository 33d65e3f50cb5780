"""Twins of a distilled student: the same untrained weights, and the recipe to train them by MLM alone."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from comet.batches import Masking, open_text
from comet.configuration import build
from comet.durable import write_json
from comet.experiments.budget import (
    PROBE_LINES,
    Pace,
    fitted,
    pace,
    probe_steps,
    steps_for,
    teacher_seconds,
    training_seconds,
)
from comet.experiments.stage import Stage, read_json
from comet.experiments.written import Content, Settings, nested
from comet.initialisation import make_started
from comet.pretrained import load_config
from comet.recipe import AdaptRecipe, DistillRecipe
from comet.runs import METRICS
from comet.sources import first_batches
from comet.students import load_masked_lm, load_tokenizer, save_model
from comet.teacher_cache import INDEX
from comet.trimmed_teacher import teacher_of

UNTRAINED, BUDGET, TRAINED = "untrained", "budget.json", "mlm"


def make_untrained(recipe: DistillRecipe, teacher: str, folder: Path) -> None:
    """Write the student of a recipe as it is before its first step, to the same bits.

    Where the recipe names a model to start from, that is it.

    Args:
        recipe: of the distilled student.
        teacher: hub id or folder of its teacher, which gives architecture and tokenizer.
        folder: where it goes; left alone where it is there.
    """
    if folder.is_dir():
        return
    name, revision = teacher_of(recipe, teacher)
    tokenizer = load_tokenizer(name, revision=revision)
    config = load_config(name, revision=revision, flag="--teacher")
    set_seed(recipe.run.seed)
    masking = Masking(
        tokenizer, recipe.corpus.mask_probability, recipe.objective.kd_tokens, recipe.run.seed
    )
    student, _ = make_started(
        config,
        recipe.student,
        lambda: load_masked_lm(name, revision=revision),
        lambda: first_batches(open_text(recipe.corpus, recipe.run.seed), masking, recipe),
        recipe.corpus.max_length,
    )
    save_model(student, tokenizer, folder)


def mlm_content(recipe: DistillRecipe, own: Settings, untrained: Path) -> Content:
    """The recipe of `comet.adapt` for a twin: text, batches, rates and steps of the distilled student.

    Args:
        recipe: of the distilled student.
        own: what the grid says of twins, which goes over it.
        untrained: the folder of the weights it starts from.

    Raises:
        ValueError: a combination that cannot be.
    """
    content: Content = {
        "model": {"model": str(untrained)},
        "corpus": _other_than_default(recipe.corpus),
        "optimisation": _other_than_default(recipe.optimisation),
        "run": _other_than_default(recipe.run),
    }
    content["run"].pop("output", None)
    for part, values in nested(own).items():
        content.setdefault(part, {}).update(values)
    build(AdaptRecipe, content)
    return content


def probe_content(content: Content) -> Content:
    """The recipe of a short run that measures how fast a twin is."""
    recipe = build(AdaptRecipe, content)
    short, steps = probe_steps(recipe.warm_start.steps)
    return {
        **content,
        "warm_start": {**content.get("warm_start", {}), "steps": short},
        "optimisation": {**content["optimisation"], "steps": steps, "warmup_steps": 0},
        "run": {**content["run"], "log_every": PROBE_LINES, "checkpoint_every": steps},
    }


def timed_content(
    content: Content, like: Stage, cache: Stage | None, like_steps: int, probe: Stage
) -> Content:
    """The recipe of a twin that trains as long as the distilled student did; says in budget.json how that came.

    Args:
        content: its recipe, with the distilled student's steps.
        like: where that student was trained.
        cache: what it was trained from, or None where the teacher was at work beside it.
        like_steps: of the student.
        probe: the twin's short run.
    """
    recipe = build(AdaptRecipe, content)
    trained = training_seconds(like.path / METRICS)
    taught = teacher_seconds(read_json(cache.path / INDEX), like_steps) if cache else 0.0
    short, _ = probe_steps(recipe.warm_start.steps)
    measured: Pace = pace(probe.path / METRICS, short)
    steps = steps_for(trained + taught, measured, recipe.warm_start.steps)
    write_json(
        probe.path.with_name(BUDGET),
        {
            "like": like.cell,
            "seconds": round(trained + taught, 1),
            "student_seconds": round(trained, 1),
            "teacher_seconds": round(taught, 1) if cache else None,
            "probe_seconds_per_step": asdict(measured),
            "steps": steps,
        },
    )
    return {**content, "optimisation": {**content["optimisation"], **fitted(recipe, steps)}}


def budget_of(cell_folder: Path) -> dict[str, Any] | None:
    """What a twin was given and what it took, or None for a cell that has no budget."""
    budget = read_json(cell_folder / BUDGET)
    if not budget:
        return None
    metrics = cell_folder / TRAINED / METRICS
    spent = training_seconds(metrics) if metrics.is_file() else None
    return {**budget, "spent_seconds": None if spent is None else round(spent, 1)}


def _other_than_default(part: Any) -> dict[str, Any]:
    kind = type(part)()
    return {
        field.name: getattr(part, field.name)
        for field in fields(part)
        if getattr(part, field.name) != getattr(kind, field.name)
    }
