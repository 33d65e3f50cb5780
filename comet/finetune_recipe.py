"""The recipe of fine-tuning a model on a task: one dataclass per part, impossible combinations refused."""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from comet.configuration import is_idle, option, require, require_positive
from comet.objective_recipe import ObjectiveRecipe
from comet.recipe import OptimisationRecipe, RunRecipe
from comet.tasks.recipe import TaskRecipe

TFIDF = "tfidf"
_RATE, _RATE_WIDTH, _HIGHEST_RATE = 2e-5, 1024, 5e-4
_TEACHER_ONLY = ("alpha", "temperature", "attention_loss", "attention_reduction", "relation_heads")


@dataclass(frozen=True)
class TunedModelRecipe:
    """The model that is fine-tuned."""

    model: str | None = option(
        None,
        "folder or hub id of an encoder, such as a run's student or model, or tfidf for the baseline of character "
        "n-grams",
    )
    initial: Literal["pretrained", "random"] = option(
        "pretrained", "its weights, or random ones in its shape"
    )
    dropout: float = option(0.1, "dropout of hidden states, attention and the classifier")
    attention_dropout: float | None = option(
        None, "dropout of attention; none: as elsewhere, 0: a fifth less time on a CPU"
    )
    max_length: int = option(
        128,
        "tokens per sequence: a longer text is cut off, a longer sentence of words cut into several",
    )
    attention_layer: int | Literal["last", "upper-middle"] = option(
        "last", "the layer whose attention a teacher trains: a number from 0, or one of these names"
    )

    def __post_init__(self) -> None:
        for name in ("dropout", "attention_dropout"):
            share = getattr(self, name)
            require(
                share is None or 0 <= share < 1, f"model.{name}", share, "0 or more and below 1"
            )
        require(self.max_length >= 4, "model.max_length", self.max_length, "4 or more")
        if self.model == TFIDF:
            for one in fields(self):
                require(
                    one.name == "model" or getattr(self, one.name) == one.default,
                    f"model.{one.name}",
                    getattr(self, one.name),
                    "nothing, as model.model is tfidf",
                )


@dataclass(frozen=True)
class TunedTeacherRecipe:
    """A model fine-tuned on the same task that is imitated; none: the labels alone teach."""

    model: str | None = option(
        None, "folder of a fine-tuning run (of its seeds the best on dev is taken) or of its model"
    )
    attention_layer: int | Literal["last", "upper-middle"] = option(
        "last", "the layer whose attention is matched: a number from 0, or one of these names"
    )


@dataclass(frozen=True)
class TaskObjectiveRecipe:
    """L = label_weight · L_labels + floor_weight · L_floor, and with a teacher + α · L_kd + (1 − α) · L_att."""

    label_weight: float = option(1.0, "weight of the cross-entropy of the labels")
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: a label counts N / (labels · its number) in the cross-entropy"
    )
    floor_weight: float = option(
        0.0,
        "weight of the KL to TF-IDF models, each fitted without the fold that it labels; 0: none",
    )
    floor_mixtures: float = option(
        0.0,
        "for each text of the train split, so many made of two texts' halves, which the floor alone labels",
    )
    alpha: float = option(0.5, "weight of the softened KL; the attention term has 1 − α")
    temperature: float = option(2.0, "softens both distributions of the KL")
    attention_loss: Literal["mse", "kl", "relation"] = option(
        "mse", "squared error or KL of head-averaged maps, or KL of MiniLMv2's relations"
    )
    attention_reduction: Literal["mean", "row"] = option(
        "row",
        "squared map error: mean over the map's entries, or sum over keys, mean over queries",
        formerly="mean",
    )
    relation_heads: int = option(
        64, "heads that queries, keys and values are cut into for relations; both widths' divisor"
    )
    fused: bool = option(False, "the fused kernels instead of plain torch")

    def __post_init__(self) -> None:
        for name in ("label_weight", "floor_weight", "floor_mixtures"):
            require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "0 or more")
        require(
            self.floor_mixtures == 0 or self.floor_weight > 0,
            "objective.floor_mixtures",
            self.floor_mixtures,
            "0, unless objective.floor_weight lets the floor teach",
        )
        self.matching()

    def matching(self) -> ObjectiveRecipe:
        """What distillation calls the same terms."""
        return ObjectiveRecipe(
            fused=self.fused, **{name: getattr(self, name) for name in _TEACHER_ONLY}
        )


@dataclass(frozen=True)
class TuningRecipe:
    """AdamW with linear warm-up and linear decay over some epochs."""

    epochs: int = option(5, "how often the train split is read")
    batch_size: int = option(32, "sequences per step, over all processes")
    accumulation: int = option(
        1,
        "pieces a process reads its share of a step in, one after the other; the loss stays the same",
    )
    learning_rate: float | None = option(
        None, "peak rate of AdamW; none: 2e-5 · (1024 / the model's width)², at most 5e-4"
    )
    embedding_learning_rate: float | None = option(
        None, "peak rate of the input embeddings; none: that of the rest"
    )
    warmup: float = option(0.06, "share of the steps from 0 to the peak")
    weight_decay: float = option(0.01, "decoupled decay of weight matrices")
    max_grad_norm: float = option(1.0, "gradient norm to clip to")
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "dtype of matrix products; float16 scales the loss, and needs a GPU"
    )
    compile: bool = option(False, "torch.compile teacher and student")
    gradient_checkpointing: bool = option(
        False, "keep the layers' inputs only and run the layers again for the gradient"
    )
    skipped_steps: int = option(
        3, "steps in a row without a finite loss or gradient that are skipped before the run ends"
    )

    def __post_init__(self) -> None:
        require_positive("optimisation", {"epochs": self.epochs})
        require(0 <= self.warmup < 1, "optimisation.warmup", self.warmup, "0 or more and below 1")
        self.resolved(steps=1, width=1)

    def resolved(self, steps: int, width: int) -> OptimisationRecipe:
        """What the training loop goes by.

        Args:
            steps: of all epochs.
            width: the model's hidden size, from which a rate that is not given follows.
        """
        rate = self.learning_rate
        if rate is None:
            rate = min(_RATE * (_RATE_WIDTH / width) ** 2, _HIGHEST_RATE)
        return OptimisationRecipe(
            steps=steps,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            learning_rate=rate,
            embedding_learning_rate=self.embedding_learning_rate,
            warmup_steps=min(round(self.warmup * steps), steps - 1),
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            precision=self.precision,
            compile=self.compile,
            gradient_checkpointing=self.gradient_checkpointing,
            skipped_steps=self.skipped_steps,
        )


@dataclass(frozen=True)
class SeedsRecipe:
    """Where and how often."""

    output: str | None = option(
        None, "run folder; none: runs/finetune, or the first free finetune-2, finetune-3, ..."
    )
    seeds: list[int] = option(
        [0], "one run for each: of the classifier's initial weights, shuffling and dropout"
    )
    per_language: bool = option(False, "a model for each language instead of one for all")
    evaluate_every: int = option(
        0, "steps between measurements on dev, of which the best is kept; 0: twice an epoch"
    )
    checkpoint_every: int = option(0, "steps between checkpoints; 0: once an epoch")
    log_every: int = option(20, "steps between lines of metrics.jsonl")
    keep_checkpoints: int = option(1, "how many of the newest checkpoints stay")
    trackers: list[Literal["tensorboard", "wandb"]] = option([], "where metrics are also sent")

    def __post_init__(self) -> None:
        require(
            bool(self.seeds) and len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0,
            "run.seeds",
            self.seeds,
            "one or more numbers from 0, each once",
        )
        for name in ("evaluate_every", "checkpoint_every"):
            require(getattr(self, name) >= 0, f"run.{name}", getattr(self, name), "0 or more")
        self.resolved(steps_per_epoch=1)

    def resolved(self, steps_per_epoch: int) -> RunRecipe:
        """What the training loop goes by, of the first seed."""
        return RunRecipe(
            seed=self.seeds[0],
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every or steps_per_epoch,
            keep_checkpoints=self.keep_checkpoints,
            evaluate_every=self.evaluate_every or max(1, steps_per_epoch // 2),
            trackers=self.trackers,
        )


@dataclass(frozen=True)
class FinetuneRecipe:
    """Fine-tuning of a model on a task."""

    model: TunedModelRecipe = field(default_factory=TunedModelRecipe)
    task: TaskRecipe = field(default_factory=TaskRecipe)
    teacher: TunedTeacherRecipe = field(default_factory=TunedTeacherRecipe)
    objective: TaskObjectiveRecipe = field(default_factory=TaskObjectiveRecipe)
    optimisation: TuningRecipe = field(default_factory=TuningRecipe)
    run: SeedsRecipe = field(default_factory=SeedsRecipe)

    def __post_init__(self) -> None:
        require(
            self.model.model is not None,
            "model.model",
            "nothing",
            "--model with a folder, a hub id, or tfidf",
        )
        if self.teacher.model is None:
            for one in fields(self.objective):
                value = getattr(self.objective, one.name)
                require(
                    one.name not in _TEACHER_ONLY or is_idle(one, value),
                    f"objective.{one.name}",
                    value,
                    "nothing, unless --teacher names a fine-tuned model",
                )
            require(
                self.objective.label_weight > 0 or self.objective.floor_weight > 0,
                "objective.label_weight",
                self.objective.label_weight,
                "a number above 0, as there is no teacher",
            )
        require(
            max(self.objective.label_weight, self.objective.floor_weight, self.objective.alpha) > 0,
            "objective.alpha",
            "0 with objective.label_weight 0",
            "one of them above 0: attention alone does not train the classifier",
        )
        if self.objective.label_weight == 0:
            require(
                self.objective.class_weights == "none",
                "objective.class_weights",
                self.objective.class_weights,
                "none, as objective.label_weight is 0",
            )
        require(
            self.objective.floor_weight == 0 or not self.task.is_token,
            "objective.floor_weight",
            self.objective.floor_weight,
            "0, as TF-IDF knows nothing of words and their tags",
        )
        if self.model.model == TFIDF:
            self._require_fit_for_tfidf()

    def _require_fit_for_tfidf(self) -> None:
        require(
            not self.task.is_token,
            "model.model",
            "tfidf for tags of words",
            "an encoder; n-grams of a text know nothing of its words",
        )
        require(
            len(self.run.seeds) == 1,
            "run.seeds",
            self.run.seeds,
            "one, as model.model is tfidf, in which nothing is random",
        )
        for part in ("teacher", "objective", "optimisation"):
            for one in fields(getattr(self, part)):
                require(
                    is_idle(one, getattr(getattr(self, part), one.name)),
                    f"{part}.{one.name}",
                    getattr(getattr(self, part), one.name),
                    "nothing, as model.model is tfidf, which has an objective of its own",
                )

    def member(self, seed: int, languages: list[str]) -> "FinetuneRecipe":
        """The recipe of one seed over these languages."""
        return replace(
            self,
            task=replace(self.task, languages=languages),
            run=replace(self.run, seeds=[seed], per_language=False),
        )
