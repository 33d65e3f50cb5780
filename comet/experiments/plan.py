"""From a grid to stages: the teacher, the caches that cells share, and of each cell what it is trained and measured by.

DIR/teacher/adapt                 the teacher, where the grid makes one
DIR/caches/KEY/cache              what it said, for all cells of the same text, batches, layer and teacher
DIR/cells/CELL/distill            a student
DIR/cells/CELL/{probe,mlm}        or its twin, trained by MLM alone, from the weights in untrained/
DIR/cells/CELL/finetune           what either is after fine-tuning, with predictions and scores
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comet.configuration import build
from comet.experiments import twins
from comet.experiments.grid import CacheSettings, Cell, Grid
from comet.experiments.stage import Stage
from comet.experiments.written import RECIPES, Content, nested
from comet.recipe import DistillRecipe
from comet.teacher_cache import fixed_part


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        stages: each after those that it needs.
        teacher: folder or hub id of the grid's teacher, None where there is none.
        remarks: what cells share and what they do not, as lines.
    """

    stages: tuple[Stage, ...]
    teacher: str | None
    remarks: tuple[str, ...]

    def of(self, cell: str | None) -> tuple[Stage, ...]:
        """The stages of a cell, or those that cells share."""
        return tuple(stage for stage in self.stages if stage.cell == cell)

    def needed_by(self, cells: Sequence[str]) -> tuple[Stage, ...]:
        """The stages of some cells, and all that those need."""
        wanted: set[str] = set()

        def want(stage: Stage) -> None:
            wanted.add(stage.title)
            for need in (*stage.needs, *(one for *_, one in stage.beside_runs)):
                want(need)

        for name in cells:
            for stage in self.of(name):
                want(stage)
        return tuple(stage for stage in self.stages if stage.title in wanted)


def make_plan(grid: Grid, folder: Path) -> Plan:
    """The stages of a grid.

    Args:
        grid: read.
        folder: of the experiment.

    Raises:
        ValueError: a recipe that cannot be, or a teacher that is missing.
    """
    students = _Students(grid, folder)
    trained = {cell.name: students.stages_of(cell) for cell in grid.cells}
    tuned: dict[str, Stage] = {}
    for cell in grid.cells:
        _finetune(cell, students, trained, tuned)
    measured: dict[str, Stage] = {}
    for cell in grid.cells:
        _evaluate(cell, grid, tuned, measured)
    order: dict[str, Stage] = {}
    shared = [students.adapt] if students.adapt is not None else []
    for stage in (*shared, *measured.values()):
        _put(stage, order)
    return Plan(tuple(order.values()), students.teacher, tuple(students.remarks))


def cache_key(recipe: DistillRecipe, settings: CacheSettings) -> str | None:
    """What names the cache that a run can be trained from, None where none can hold what its loss needs."""
    if recipe.objective.attention_loss == "relation":
        return None
    if settings.keep == "logits" and recipe.objective.temperature_mode != "constant":
        return None
    trimmed = [] if recipe.teacher.trim is None else [recipe.teacher.trim]
    identity = {
        "teacher": [recipe.teacher.model, recipe.teacher.revision, *trimmed],
        "text": [recipe.corpus.paths, recipe.corpus.strict],
        "fixed": fixed_part(recipe, settings.keep),
        "precision": recipe.optimisation.precision,
        "kept": [settings.keep, settings.top_k if settings.keep == "logits" else None],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def _cached_part(recipe: DistillRecipe, keep: str) -> Content:
    """Of a student's recipe what its cache depends on: another learning rate needs no other cache."""
    content: Content = fixed_part(recipe, keep)
    corpus = {"paths": recipe.corpus.paths, "strict": recipe.corpus.strict}
    content["corpus"] |= corpus | {"workers": recipe.corpus.workers}
    content["teacher"] |= {
        name: getattr(recipe.teacher, name) for name in ("model", "revision", "trim")
    }
    content["objective"] |= {"fused": recipe.objective.fused}
    content["optimisation"] |= {"precision": recipe.optimisation.precision}
    return content


class _Students:
    """How the encoder of each cell comes to be."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self.grid = grid
        self.folder = folder
        self.remarks: list[str] = []
        self.teacher = grid.teacher
        self.adapt: Stage | None = None
        if grid.adapt is not None:
            content = nested(grid.adapt)
            _require_buildable("adapt", content, "")
            path = folder / "teacher" / "adapt"
            self.adapt = Stage(None, "teacher", "comet.adapt", path, lambda: content)
            self.teacher = str(path / "model")
        self._caches = self._shared_caches()
        self._distilled = {
            cell.name: self._distill(cell) for cell in grid.cells if cell.model == "distilled"
        }

    def stages_of(self, cell: Cell) -> tuple[Stage, ...]:
        """The stage that the cell's encoder comes from; none where it was there before."""
        if cell.model == "distilled":
            return (self._distilled[cell.name],)
        if cell.model == "random":
            return (self._distilled[str(cell.like)],)
        if cell.model == "mlm":
            return (self._mlm(cell),)
        if cell.model == "teacher":
            self._require_teacher(cell)
            return self._after_teacher
        return ()

    def folder_of(self, cell: Cell) -> Path:
        """Where a cell's stages lie."""
        return self.folder / "cells" / cell.folder

    def model_of(self, cell: Cell) -> dict[str, Any]:
        """What of a fine-tuning recipe's `model` the cell decides."""
        if cell.model == "teacher":
            return {"model": self.teacher}
        if cell.model == "distilled":
            return {"model": str(self._distilled[cell.name].path / "student")}
        if cell.model == "random":
            student = self._distilled[str(cell.like)].path / "student"
            return {"model": str(student), "initial": "random"}
        if cell.model == "mlm":
            return {"model": str(self.folder_of(cell) / twins.TRAINED / "model")}
        return {"model": cell.model}

    @property
    def _after_teacher(self) -> tuple[Stage, ...]:
        return () if self.adapt is None else (self.adapt,)

    def _require_teacher(self, cell: Cell) -> str:
        if self.teacher is None:
            raise ValueError(
                f"{self.grid.name}: {cell.name}: there is no teacher; give --teacher, or take a grid with adapt"
            )
        return self.teacher

    def _content(self, cell: Cell) -> Content:
        content = cell.content("distill")
        content.setdefault("teacher", {})["model"] = self._require_teacher(cell)
        return content

    def _recipe(self, cell: Cell) -> DistillRecipe:
        content = self._content(cell)
        _require_buildable("distill", content, f"{cell.name}: ")
        return build(DistillRecipe, content)

    def _shared_caches(self) -> dict[str, Stage]:
        """Cell → the cache that it is trained from, for those that have one."""
        settings = self.grid.cache
        sharing: dict[str, list[Cell]] = {}
        for cell in self.grid.cells:
            if cell.model == "distilled" and settings.use:
                key = cache_key(self._recipe(cell), settings)
                if key is None:
                    self.remarks.append(
                        f"{cell.name}: the teacher runs beside it, as no cache holds what its loss needs"
                    )
                else:
                    sharing.setdefault(key, []).append(cell)
        found: dict[str, Stage] = {}
        for key, cells in sharing.items():
            names = ", ".join(cell.name for cell in cells)
            longest = max(self._recipe(cell).optimisation.steps for cell in cells)
            steps = min(longest, settings.batches or longest)
            if len(cells) == 1 and steps == longest:
                self.remarks.append(
                    f"{names}: the teacher runs beside it, as no cell shares its batches"
                )
                continue
            self.remarks.append(f"one cache for {names}")
            stage = self._cache(f"{key}-{steps}", cells[0], steps)
            found.update({cell.name: stage for cell in cells})
        return found

    def _cache(self, key: str, cell: Cell, steps: int) -> Stage:
        settings = self.grid.cache
        flags = ["--batches", str(steps), "--keep", settings.keep]
        if settings.keep == "logits":
            flags += ["--top-k", str(settings.top_k)]
        content = _cached_part(self._recipe(cell), settings.keep)
        return Stage(
            None,
            f"cache {key}",
            "comet.cache_teacher",
            self.folder / "caches" / key / "cache",
            lambda: content,
            flags=tuple(flags),
            needs=self._after_teacher,
        )

    def _distill(self, cell: Cell) -> Stage:
        content = self._content(cell)
        cache = self._caches.get(cell.name)
        if cache is not None:
            content["teacher"]["cache"] = str(cache.path)
            content.get("corpus", {}).pop("paths", None)  # else all the text is read, to compare it
        return Stage(
            cell.name,
            "distill",
            "comet.distill",
            self.folder_of(cell) / "distill",
            lambda: content,
            needs=self._after_teacher if cache is None else (cache,),
        )

    def _mlm(self, cell: Cell) -> Stage:
        """A twin of the same steps, or of the same time: then a probe says how many steps those are."""
        teacher = self._require_teacher(cell)
        like = self._distilled[str(cell.like)]
        recipe = self._recipe(self.grid.cell(str(cell.like)))
        folder = self.folder_of(cell)
        untrained = folder / twins.UNTRAINED
        try:
            content = twins.mlm_content(recipe, cell.settings["mlm"], untrained)
        except ValueError as error:
            raise ValueError(f"{cell.name}: mlm: {error}") from error
        prepare = partial(twins.make_untrained, recipe, teacher, untrained)
        path = folder / twins.TRAINED
        if cell.budget == "steps":
            needs = self._after_teacher
            return Stage(cell.name, "mlm", "comet.adapt", path, lambda: content, (), needs, prepare)
        probe = Stage(
            cell.name,
            "probe",
            "comet.adapt",
            folder / "probe",
            lambda: twins.probe_content(content),
            needs=(like,),
            prepare=prepare,
        )
        cache = self._caches.get(str(cell.like))
        steps = recipe.optimisation.steps
        return Stage(
            cell.name,
            "mlm",
            "comet.adapt",
            path,
            lambda: twins.timed_content(content, like, cache, steps, probe),
            needs=(probe,),
            remark=f"optimisation.steps follows from the time that {cell.like} takes",
        )


def _finetune(
    cell: Cell,
    students: _Students,
    trained: dict[str, tuple[Stage, ...]],
    tuned: dict[str, Stage],
) -> Stage:
    if cell.name in tuned:
        return tuned[cell.name]
    needs = trained[cell.name]
    content = cell.content("finetune")
    if cell.model == "tfidf":  # what else there is, is for encoders
        content = {"task": content.get("task", {})}
    content.setdefault("model", {}).update(students.model_of(cell))
    if cell.model != "tfidf":
        content.setdefault("run", {})["seeds"] = list(students.grid.seeds)
    if cell.task_teacher is not None:
        teacher = _finetune(students.grid.cell(cell.task_teacher), students, trained, tuned)
        content.setdefault("teacher", {})["model"] = str(teacher.path)
        needs = (*needs, teacher)
    _require_buildable("finetune", content, f"{cell.name}: ")
    path = students.folder_of(cell) / "finetune"
    stage = Stage(cell.name, "finetune", "comet.finetune", path, lambda: content, needs=needs)
    tuned[cell.name] = stage
    return stage


def _evaluate(cell: Cell, grid: Grid, tuned: dict[str, Stage], measured: dict[str, Stage]) -> Stage:
    """Its figures, beside those of the grid's teacher and floor, where it has such cells."""
    if cell.name in measured:
        return measured[cell.name]
    run = tuned[cell.name]
    flags = ["--run", str(run.path), "--name", cell.name, "--split", grid.evaluate.split]
    if grid.evaluate.unseen:
        flags += ["--unseen", *grid.evaluate.unseen]
    beside = []
    for flag, model in (("--teacher", "teacher"), ("--floor", "tfidf")):
        other = next((one for one in grid.cells if one.model == model), None)
        if other is None or cell.model in ("tfidf", model):
            continue
        stage = _evaluate(other, grid, tuned, measured)
        beside.append((flag, str(tuned[other.name].path), stage))
    measured[cell.name] = Stage(
        cell.name,
        "evaluate",
        "comet.evaluate",
        run.path.with_name("evaluate"),
        flags=tuple(flags),
        needs=(run,),
        beside_runs=tuple(beside),
    )
    return measured[cell.name]


def _put(stage: Stage, order: dict[str, Stage]) -> None:
    """Put a stage after all that it needs."""
    for need in (*stage.needs, *(one for *_, one in stage.beside_runs)):
        _put(need, order)
    order.setdefault(stage.title, stage)


def _require_buildable(stage: str, content: Content, cell: str) -> None:
    try:
        build(RECIPES[stage], content)
    except ValueError as error:
        raise ValueError(f"{cell}{stage}: {error}") from error
