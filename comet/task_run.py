"""One model of a fine-tuning run: trained with one seed on one set of languages, and chosen on dev alone."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import comet_kernels
import comet_kernels.reference
from comet.card import describing
from comet.checkpoints import module_tensors, restore_module
from comet.finetune_recipe import FinetuneRecipe
from comet.floor import Lessons
from comet.inputs import Input
from comet.masking import IGNORED_LABEL
from comet.memory_advice import explained
from comet.processes import on_main, say
from comet.runs import RECIPE, RunFolder
from comet.students import keep_inputs_only
from comet.task_batches import Row, TaskBatches, encode
from comet.task_model import (
    ModelCard,
    TaskEncoder,
    Tuned,
    make_task_model,
    save_tuned,
    sizes,
)
from comet.task_objective import TaskLearner, TaskTeacher, balanced_weights
from comet.task_predict import SplitPredictor
from comet.tasks import Example, TaskData
from comet.trackers import Trackers
from comet.training import Evaluation, Training, Watching
from comet.watch import Watch

PROGRAM = "comet.finetune"
MODEL = "model"


class BestWeights:
    """The weights that did best on dev so far, and how well.

    Args:
        model: whose weights are kept.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._tensors: dict[str, Tensor] = {}
        self.step = -1
        self.score = float("-inf")

    def consider(self, step: int, score: float) -> None:
        """Keep the model's weights if they do better than any before; of equals the earlier stay."""
        if score > self.score:
            self.step, self.score = step, score
            self._tensors = {
                name: value.detach().cpu().clone()
                for name, value in module_tensors(self._model).items()
            }

    def give_back(self) -> None:
        """Copy them into the model."""
        restore_module(self._model, self._tensors)

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return self._tensors

    def state_dict(self) -> dict[str, Any]:
        """Step and score; none before the first evaluation."""
        return {"step": self.step, "score": self.score} if self._tensors else {}

    def restore(self, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to what was saved."""
        self._tensors = dict(tensors)
        if state:
            self.step, self.score = state["step"], state["score"]


@dataclass(frozen=True)
class TunedData:
    """What one model is trained on and chosen by; nothing of the test split.

    Attributes:
        train: the train split.
        dev: the dev split of the same languages.
        tokenizer: the model's.
        floor: language → what the floor teaches; None where it does not.
    """

    train: TaskData
    dev: TaskData
    tokenizer: PreTrainedTokenizerFast
    floor: Mapping[str, Lessons] | None = None

    def rows(self, max_length: int) -> list[Row]:
        """The train split as the model reads it, and behind it what the floor alone labels."""
        languages = self.train.languages
        rows = encode(self.train.examples, self.tokenizer, max_length, languages)
        if self.floor is None:
            return rows
        made = [
            Example(text, IGNORED_LABEL, language, 0)
            for language in languages
            for text in self.floor[language].mixtures
        ]
        rows += encode(made, self.tokenizer, max_length, languages)
        lessons = [self.floor[language] for language in languages]
        soft = np.concatenate(
            [*(one.soft for one in lessons), *(one.soft_mixtures for one in lessons)]
        )
        return [replace(row, soft=its) for row, its in zip(rows, soft, strict=True)]


def tune(
    recipe: FinetuneRecipe,
    folder: Path,
    data: TunedData,
    inputs: Mapping[str, Input],
    accelerator: Accelerator,
    teacher: Tuned | None = None,
) -> None:
    """Train a model with the recipe's only seed, and leave the best on dev in `folder/model`.

    A run that is there already is gone on with; one that is done is left as it is.

    Args:
        recipe: of one seed.
        folder: of this model's run.
        data: train and dev.
        inputs: what the run reads, data and teacher among it.
        accelerator: device, precision, processes.
        teacher: to be imitated.

    Raises:
        ValueError: something the user can mend, in one line.
        Interrupted: asked to stop; a checkpoint was saved.
    """
    resume = on_main((folder / RECIPE).exists)
    run = RunFolder(folder, recipe, resume=resume)
    run.reads(inputs)
    seed = recipe.run.seeds[0]
    set_seed(seed)
    model = make_task_model(recipe.model, data.train.task, data.tokenizer)
    learner = make_learner(recipe, model, data, teacher)
    batches = TaskBatches(
        data.rows(recipe.model.max_length),
        data.tokenizer.pad_token_id,
        batch_size=recipe.optimisation.batch_size,
        seed=seed,
        accumulation=recipe.optimisation.accumulation,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    steps = batches.steps_per_epoch * recipe.optimisation.epochs
    optimisation = recipe.optimisation.resolved(steps, model.config.hidden_size)
    trackers = Trackers(recipe.run.trackers, folder)
    best = BestWeights(model)
    with (
        run.recorded(steps=steps, learning_rate=optimisation.learning_rate),
        explained(_memory_advice),
    ):
        learner.to(accelerator.device)
        if learner.teacher is not None:
            learner.teacher.encoder.to(accelerator.device)
        dev = SplitPredictor(
            data.dev,
            data.tokenizer,
            recipe.model.max_length,
            accelerator.device,
            accelerator.autocast,
        )

        def evaluate() -> Evaluation:
            found = dev.measure(learner.encoder)
            best.consider(training.step, found["all"][dev.main])
            return found

        training = Training(
            learner,
            batches,
            optimisation,
            recipe.run.resolved(batches.steps_per_epoch),
            run,
            accelerator,
            Watching(
                program=PROGRAM,
                languages=data.train.languages,
                watch=Watch(
                    {},
                    measure="loss",
                    advice="give it more examples, or a model of its own with --per-language",
                ),
                trackers=trackers,
                tokenizer=data.tokenizer,
                evaluate=evaluate,
            ),
            kept=best,
        )
        say(
            f"\n{folder}: {steps:,} steps, peak rate {optimisation.learning_rate:.3g}, "
            f"{', '.join(data.train.languages)}"
        )
        if resume:
            training.resume()
            say(f"resuming at step {training.step}")
        trackers.start(accelerator, run.recipe, training.step)
        with closing(trackers):
            training.train()
            training.tell_evaluation(evaluate(), say)
        best.give_back()
        card = ModelCard(
            task=data.train.task.name,
            kind=data.train.task.kind,
            labels=list(data.train.task.labels),
            languages=list(data.train.languages),
            max_length=recipe.model.max_length,
            seed=seed,
            dev=best.score,
            step=best.step,
            size=sizes(model),
        )
        home = folder / MODEL
        on_main(lambda: save_tuned(model, data.tokenizer, card, home, describing(home)))
    say(f"best on dev: {dev.main} {best.score:.4f} at step {best.step}")


def make_learner(
    recipe: FinetuneRecipe,
    model: PreTrainedModel,
    data: TunedData,
    teacher: Tuned | None,
) -> TaskLearner:
    """Model, objective and teacher of a recipe.

    Raises:
        ValueError: an option does not fit the models.
    """
    ops: ModuleType = comet_kernels if recipe.objective.fused else comet_kernels.reference
    matched = teacher is not None and recipe.objective.alpha < 1
    if recipe.optimisation.gradient_checkpointing:
        keep_inputs_only(model)
    encoder = TaskEncoder(model, recipe.model.attention_layer if matched else None)
    imitated = None
    if teacher is not None:
        layer = recipe.teacher.attention_layer if matched else None
        theirs = TaskEncoder(teacher.model, layer)
        if recipe.optimisation.compile:
            theirs.compile(dynamic=True)
        imitated = TaskTeacher(theirs, recipe.objective, ops)
    if recipe.optimisation.compile:
        encoder.compile(dynamic=True)
    weights = None
    if recipe.objective.class_weights == "balanced":
        labels = [
            label
            for example in data.train.examples
            for label in (example.label if isinstance(example.label, tuple) else (example.label,))
        ]
        weights = balanced_weights(labels, len(data.train.task.labels))
    return TaskLearner(
        encoder,
        recipe.objective,
        ops,
        class_weights=weights,
        teacher=imitated,
        languages=len(data.train.languages),
    )


def _memory_advice() -> str:
    return (
        "out of memory: raise --optimisation.accumulation (same result), add "
        "--optimisation.gradient_checkpointing (same result), or take --optimisation.precision bfloat16, or a "
        "lower --model.max_length"
    )
