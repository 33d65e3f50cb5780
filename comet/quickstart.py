"""The quickstart: a toy teacher, made once and cached, and what its student is compared with.

With neither teacher nor corpus, a small teacher is trained on the toy corpus and kept in the user's cache folder. So
is an undistilled twin of the student: same shape, same steps, batches and rates, but trained by masked language
modelling alone.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

import comet
from comet.agreement import Agreement, measure, table
from comet.batch import Batch
from comet.configuration import build, read_recipe, to_yaml
from comet.durable import checksums, require_checksums, sealed, unsealed, write_json
from comet.environment import cache_folder, environment_of_one, kept_in_cache
from comet.objective import Distiller
from comet.processes import copy_of, on_main, say
from comet.recipe import AdaptRecipe, DistillRecipe, ModelRecipe, RunRecipe
from comet.runs import read_record
from comet.students import count_parameters, load_masked_lm
from comet.tap import TappedEncoder
from comet.teachers import OnlineTeacher

CHECKSUMS = "checksums.json"


def toy_teacher() -> str:
    """The folder of the toy teacher; it is trained now unless it lies in the cache."""
    recipe = build(AdaptRecipe, read_recipe(AdaptRecipe, "toy-teacher"))
    return _made_once(
        "toy-teacher", recipe, "training the toy teacher, once; it is kept in the cache"
    )


def compare(
    recipe: DistillRecipe,
    distiller: Distiller,
    distilled: Mapping[str, Agreement],
    held_out: Mapping[str, Sequence[Batch]],
    accelerator: Accelerator,
    folder: Path,
) -> None:
    """Print what distillation achieved against the undistilled twin, where everything lies, and what to run next.

    Every process calls this.
    """
    teacher_folder = toy_teacher()
    twin_folder = _made_once(
        "undistilled",
        _twin(recipe, distiller, teacher_folder),
        "training the same student without a teacher, once, to compare with",
    )
    twin = TappedEncoder(load_masked_lm(twin_folder)).to(accelerator.device)
    undistilled = measure(distiller.teacher, twin, held_out, distiller.ops, accelerator)
    teacher = distiller.teacher
    assert isinstance(teacher, OnlineTeacher)
    sizes = [count_parameters(model) for model in (teacher.encoder, distiller.student)]
    columns = {"undistilled student": undistilled, "distilled student": distilled}
    say(
        f"\nAgainst the same student trained without a teacher, on held-out text\n{table(columns)}\n\n"
        f"parameters  teacher {sizes[0]:,}, students {sizes[1]:,} ({sizes[1] / sizes[0]:.0%})\n"
        f"teacher     {teacher_folder}\n"
        f"undistilled {twin_folder}\n"
        f"student     {folder / 'student'}\n\n"
        "Next, with your own text (folders laid out as LANG/*.jsonl.gz, or .txt files):\n"
        "  python -m comet.adapt --corpus TEXT --output runs/teacher\n"
        "  python -m comet.distill --fused --teacher runs/teacher/model --corpus TEXT --output runs/student\n"
        "or the paper's run, with a GPU and the hub:\n"
        "  python -m comet.distill --fused --recipe paper"
    )


def _twin(recipe: DistillRecipe, distiller: Distiller, teacher_folder: str) -> AdaptRecipe:
    config = distiller.student.model.config
    return AdaptRecipe(
        model=ModelRecipe(
            tokenizer=teacher_folder,
            **recipe.student.sizes._asdict(),
            positions=config.max_position_embeddings - config.pad_token_id - 1,
            dropout=recipe.student.dropout,
            initial_deviation=config.initializer_range,
        ),
        corpus=recipe.corpus,
        optimisation=recipe.optimisation,
        run=RunRecipe(seed=recipe.run.seed, log_every=recipe.run.log_every),
    )


def _made_once(name: str, recipe: AdaptRecipe, announcement: str) -> str:
    """Train by a recipe into the cache, unless the same recipe's model lies there already.

    In a process of its own: random generators, precision and peak memory of the run that needs it stay as they are.

    Raises:
        ValueError: training ended with an error, which it has printed.
    """
    return copy_of(on_main(lambda: _made(name, recipe, announcement)))


def _made(name: str, recipe: AdaptRecipe, announcement: str) -> str:
    key = hashlib.sha256(f"{comet.__version__}\n{to_yaml(recipe)}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{key}"
    if not _is_whole(folder):
        with kept_in_cache(folder):
            if not _is_whole(folder):  # another process may have made it meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                print(f"{announcement}\n", flush=True)
                _train(recipe, name, folder)
                write_json(folder / CHECKSUMS, sealed({"model": checksums(folder / "model")}))
                print(flush=True)
    return str(folder / "model")


def _is_whole(folder: Path) -> bool:
    """Whether a model was made there to the end.

    Raises:
        ValueError: it is not what was written.
    """
    if read_record(folder).get("state") != "done" or not (folder / CHECKSUMS).is_file():
        return False
    try:
        known = unsealed(json.loads((folder / CHECKSUMS).read_text("utf-8")), required=True)
        require_checksums(folder / "model", known["model"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the cache: {folder} is damaged ({error}); remove it, and it is made again"
        ) from error
    return True


def _train(recipe: AdaptRecipe, name: str, folder: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(to_yaml(recipe))
        file.flush()
        command = ["-m", "comet.adapt", "--recipe", file.name, "--output", str(folder)]
        if subprocess.run(
            [sys.executable, *command], check=False, env=environment_of_one()
        ).returncode:
            raise ValueError(
                f"{name}: training failed in {folder}, see above; COMET_CACHE names another cache folder"
            )
