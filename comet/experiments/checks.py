"""What a dry run opens, so that a stage that would fail is known before any runs: text, labelled data, configurations.

No weights are read and nothing is written. What an earlier stage makes is not looked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comet.batches import open_text
from comet.configuration import build
from comet.experiments.grid import Grid
from comet.experiments.stage import Stage
from comet.experiments.written import RECIPES
from comet.fine_tuned import find_model
from comet.finetune_recipe import TFIDF, FinetuneRecipe
from comet.initialisation import checked_start
from comet.pretrained import load_config
from comet.recipe import AdaptRecipe, CorpusRecipe, DistillRecipe
from comet.students import load_tokenizer, outline_of
from comet.tap import require_positions
from comet.tasks import open_task


def problems(stages: Sequence[Stage], grid: Grid, folder: Path) -> dict[str, str]:
    """Why stages would fail, by their titles.

    Args:
        stages: of a plan.
        grid: that it is of.
        folder: of the experiment, in which stages write.
    """
    opener = _Opener(grid, folder)
    found = {}
    for stage in stages:
        if stage.is_done or stage.content is None or stage.remark:  # else its recipe is known later
            continue
        try:
            opener.open(stage)
        except (ValueError, OSError) as error:
            found[stage.title] = str(error)
    return found


class _Opener:
    """Opens what stages read, each thing once."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self._evaluate = grid.evaluate
        self._folder = folder.resolve()
        self._opened: dict[str, Exception | None] = {}

    def open(self, stage: Stage) -> None:
        """Open what a stage reads.

        Raises:
            ValueError: something is not there or does not fit.
            OSError: a file cannot be read.
        """
        assert stage.content is not None
        kind = stage.program.removeprefix("comet.")
        recipe: Any = build(
            RECIPES["distill" if kind == "cache_teacher" else kind], stage.content()
        )
        if isinstance(recipe, DistillRecipe):
            self._distill(recipe)
        elif isinstance(recipe, AdaptRecipe):
            self._text(recipe.corpus, recipe.run.seed)
            lengths = {
                "corpus.max_length": recipe.corpus.max_length,
                **(
                    {"warm_start.max_length": recipe.warm_start.max_length}
                    if recipe.warm_start.steps
                    else {}
                ),
            }
            self._model(recipe.model.model, "model.model", lengths)
            self._tokenizer(recipe.model.tokenizer, "model.tokenizer")
        elif isinstance(recipe, FinetuneRecipe):
            self._finetune(recipe)

    def _distill(self, recipe: DistillRecipe) -> None:
        if recipe.corpus.paths:
            self._text(recipe.corpus, recipe.run.seed)
        lengths = {"corpus.max_length": recipe.corpus.max_length}
        self._model(recipe.student.model, "student.model", lengths)
        name, revision = recipe.teacher.model, recipe.teacher.revision
        if name is None or self._is_made(name):
            return
        self._tokenizer(name, "teacher.model", revision)
        config = load_config(name, revision=revision, flag="teacher.model")
        checked_start(config, recipe.student, recipe.corpus.max_length)

    def _finetune(self, recipe: FinetuneRecipe) -> None:
        task, ours = recipe.task, self._evaluate

        def open_splits() -> None:
            train = open_task(task, "train")
            labels = train.task.labels
            for split in dict.fromkeys(("dev", ours.split)):
                open_task(task, split, train.languages, labels=labels)
            if ours.unseen:
                open_task(task, ours.split, ours.unseen, labels=labels)

        self._once(f"task {task}", open_splits)
        if recipe.model.model != TFIDF:
            lengths = {"model.max_length": recipe.model.max_length}
            self._model(recipe.model.model, "model.model", lengths)
        teacher = recipe.teacher.model
        if teacher is not None and not self._is_made(teacher):
            find_model(teacher, flag="teacher.model")

    def _text(self, corpus: CorpusRecipe, seed: int) -> None:
        streamed = replace(corpus, in_memory=0)  # opened, but not read whole
        self._once(f"text {streamed}", lambda: open_text(streamed, seed))

    def _model(self, name: str | None, key: str, lengths: Mapping[str, int]) -> None:
        """Tokenizer and configuration, and whether it has positions for the sequences that it is to read."""
        if name is None or self._is_made(name):
            return
        self._tokenizer(name, key)

        def require_lengths() -> None:
            model = outline_of(load_config(name, flag=key))
            for option, length in lengths.items():
                require_positions(model, length, option, "the model")

        self._once(f"configuration {name} {lengths}", require_lengths)

    def _tokenizer(self, name: str | None, key: str, revision: str | None = None) -> None:
        if name is not None and not self._is_made(name):
            what = f"tokenizer {name} {revision}"
            self._once(what, lambda: load_tokenizer(name, revision=revision, flag=key))

    def _is_made(self, name: str) -> bool:
        """Whether a stage of the experiment writes it."""
        return self._folder in Path(name).resolve().parents

    def _once(self, what: str, function: Callable[[], object]) -> None:
        if what not in self._opened:
            try:
                function()
                self._opened[what] = None
            except (ValueError, OSError) as error:
                self._opened[what] = error
        failed = self._opened[what]
        if failed is not None:
            raise failed
