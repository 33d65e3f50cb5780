"""The recipe of a distillation run: one dataclass per part, impossible combinations refused when it is made."""

from dataclasses import dataclass, field
from typing import Literal

from comet.configuration import option, require, require_positive
from comet.objective_recipe import ObjectiveRecipe
from comet.student_recipe import StudentRecipe, refuse_own_shape, require_shape


def require_corpus(recipe: "CorpusRecipe") -> None:
    """Require some text."""
    require(
        bool(recipe.paths),
        "corpus.paths",
        "nothing",
        "--corpus with files, folders, madlad400 or toy",
    )


@dataclass(frozen=True)
class TeacherRecipe:
    """The frozen masked language model that is imitated."""

    model: str | None = option(None, "hub id or folder; none: a toy teacher, trained and cached")
    revision: str | None = option(None, "branch, tag or commit on the hub")
    trim: float | None = option(
        None,
        "of its vocabulary keep so many entries (above 1), or those that leave every language this share of its "
        "pieces: what the corpus uses most; teacher and student then share them",
    )
    attention_layer: int | Literal["last", "upper-middle"] = option(
        "last", "the layer whose attention is matched: a number from 0, or one of these names"
    )
    cache: str | None = option(
        None, "folder of python -m comet.cache_teacher: train from it, with no teacher in memory"
    )

    def __post_init__(self) -> None:
        require(
            self.revision is None or self.model is not None,
            "teacher.revision",
            self.revision,
            "nothing, unless teacher.model names a model of the hub",
        )
        if self.trim is None:
            return
        require(
            0 < self.trim <= 1 or (self.trim > 1 and self.trim == int(self.trim)),
            "teacher.trim",
            self.trim,
            "a number of entries, such as 32000, or a share above 0 and at most 1, such as 0.9995",
        )
        require(
            self.model is not None,
            "teacher.trim",
            self.trim,
            "nothing, unless teacher.model names the teacher; a cache is made of a trimmed one by "
            "python -m comet.cache_teacher --trim",
        )


@dataclass(frozen=True)
class CorpusRecipe:
    """The text both read."""

    paths: list[str] = option([], "files, folders laid out as LANG/*.jsonl.gz, madlad400, or toy")
    languages: list[str] | None = option(None, "only these language codes")
    sampling_temperature: float = option(1.0, "languages are drawn with p ∝ documents^(1/τ)")
    held_out: int = option(64, "documents per language that are never trained on")
    max_length: int = option(128, "tokens per sequence; longer documents are cut into several")
    mask_probability: float = option(0.15, "share of tokens chosen as in MLM; 0 feeds plain text")
    shuffle_buffer: int = option(
        10000, "documents of a language that are shuffled together where text is streamed"
    )
    in_memory: int = option(
        1024,
        "MiB of local files, as they lie on disk, up to which they are held in memory, not streamed",
    )
    streams: int = option(
        1, "streams the text is split into, each read by one process (or by several that share it)"
    )
    workers: int = option(
        1, "background processes that read and tokenise, for each stream a process reads; 0: none"
    )
    strict: bool = option(
        False, "end at a line that cannot be read instead of counting and skipping it"
    )

    def __post_init__(self) -> None:
        require_positive(
            "corpus",
            {"sampling_temperature": self.sampling_temperature, "held_out": self.held_out},
        )
        require_positive("corpus", {"shuffle_buffer": self.shuffle_buffer, "streams": self.streams})
        for name in ("in_memory", "workers"):
            require(getattr(self, name) >= 0, f"corpus.{name}", getattr(self, name), "0 or more")
        require(self.max_length >= 4, "corpus.max_length", self.max_length, "4 or more")
        require(
            0 <= self.mask_probability < 1,
            "corpus.mask_probability",
            self.mask_probability,
            "0 or more and below 1",
        )


@dataclass(frozen=True)
class OptimisationRecipe:
    """AdamW, and Muon if asked for, with linear warm-up and linear decay."""

    steps: int = option(1000, "optimizer steps")
    batch_size: int = option(32, "sequences per step, over all processes")
    batch_tokens: int | None = option(
        None, "tokens per step, padding included, instead of batch_size sequences"
    )
    accumulation: int = option(
        1,
        "pieces a process reads its share of a step in, one after the other; the loss stays the same",
    )
    learning_rate: float = option(5e-4, "peak learning rate of AdamW")
    muon_learning_rate: float | None = option(
        None, "peak rate of Muon for the matrices of the layers; none: AdamW trains those too"
    )
    embedding_learning_rate: float | None = option(
        None, "peak rate of the input embeddings; none: that of the rest"
    )
    warmup_steps: int = option(100, "steps from 0 to the peak", below="optimisation.steps")
    weight_decay: float = option(0.01, "decoupled decay of weight matrices")
    max_grad_norm: float = option(1.0, "gradient norm, over student and projection, to clip to")
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "dtype of matrix products; float16 scales the loss, and needs a GPU"
    )
    compile: bool = option(False, "torch.compile teacher and student")
    gradient_checkpointing: bool = option(
        False, "keep the student's layers' inputs only and run the layers again for the gradient"
    )
    skipped_steps: int = option(
        3, "steps in a row without a finite loss or gradient that are skipped before the run ends"
    )

    def __post_init__(self) -> None:
        require_positive(
            "optimisation",
            {
                "steps": self.steps,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "max_grad_norm": self.max_grad_norm,
                "accumulation": self.accumulation,
            },
        )
        require(
            self.skipped_steps >= 0, "optimisation.skipped_steps", self.skipped_steps, "0 or more"
        )
        if self.batch_tokens is not None:
            require_positive("optimisation", {"batch_tokens": self.batch_tokens})
        for name in ("muon_learning_rate", "embedding_learning_rate"):
            if getattr(self, name) is not None:
                require_positive("optimisation", {name: getattr(self, name)})
        require(
            0 <= self.warmup_steps < self.steps,
            "optimisation.warmup_steps",
            self.warmup_steps,
            f"0 or more and fewer than optimisation.steps ({self.steps})",
        )
        require(self.weight_decay >= 0, "optimisation.weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True)
class RunRecipe:
    """Where and how."""

    output: str | None = option(
        None, "run folder; none: runs/NAME, or the first free NAME-2, NAME-3, ..."
    )
    seed: int = option(0, "of initialisation, shuffling, masking and dropout")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    checkpoint_every: int = option(500, "steps between checkpoints")
    keep_checkpoints: int = option(2, "how many of the newest checkpoints stay")
    evaluate_every: int = option(
        0, "steps between evaluations on held-out text; 0: at the start and the end only"
    )
    trackers: list[Literal["tensorboard", "wandb"]] = option([], "where metrics are also sent")

    def __post_init__(self) -> None:
        require(self.seed >= 0, "run.seed", self.seed, "0 or more")
        require(self.evaluate_every >= 0, "run.evaluate_every", self.evaluate_every, "0 or more")
        require_positive(
            "run",
            {
                "log_every": self.log_every,
                "checkpoint_every": self.checkpoint_every,
                "keep_checkpoints": self.keep_checkpoints,
            },
        )


@dataclass(frozen=True)
class DistillRecipe:
    """A whole run."""

    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    student: StudentRecipe = field(default_factory=StudentRecipe)
    corpus: CorpusRecipe = field(default_factory=CorpusRecipe)
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    optimisation: OptimisationRecipe = field(default_factory=OptimisationRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self) -> None:
        require(
            self.objective.kd_tokens == "all" or self.corpus.mask_probability > 0,
            "objective.kd_tokens",
            "masked with corpus.mask_probability 0",
            "kd_tokens all, or a mask_probability above 0",
        )
        require(
            self.objective.mlm_weight == 0 or self.corpus.mask_probability > 0,
            "objective.mlm_weight",
            f"{self.objective.mlm_weight} with corpus.mask_probability 0",
            "mlm_weight 0, or a mask_probability above 0: the masked tokens are what it predicts",
        )
        require(
            self.objective.attention_loss != "relation" or self.teacher.cache is None,
            "objective.attention_loss",
            "relation with teacher.cache",
            "mse or kl: a cache holds attention maps, not queries, keys and values",
        )
        if self.teacher.cache is not None:
            return  # it has a teacher and a text: what is named beside it is only compared
        if self.teacher.model is None:
            require(
                self.corpus.paths == ["toy"],
                "teacher.model",
                "none",
                "--teacher with a hub id or a folder; `python -m comet.adapt` trains one on a corpus",
            )
            require(
                self.student.model is None and self.corpus.mask_probability > 0,
                "teacher.model",
                "none with a student of its own or a mask_probability of 0",
                "a teacher: the toy teacher's student is compared with one trained by masking alone",
            )
        require_corpus(self.corpus)


VOCABULARY_SIZE = 8000


@dataclass(frozen=True)
class ModelRecipe:
    """The masked language model that is trained: a checkpoint to go on with, or a new encoder of this shape."""

    model: str | None = option(
        None, "go on training this hub id or folder; the shape below is then its own"
    )
    tokenizer: str | None = option(
        None,
        "hub id or folder of a tokenizer; none: the checkpoint's, or one trained on the corpus",
    )
    architecture: Literal["xlm-roberta", "modernbert"] = option(
        "xlm-roberta", "of a new encoder; modernbert learns from little text several times as fast"
    )
    vocabulary_size: int | None = option(
        None,
        f"entries of a tokenizer trained on the corpus; none: {VOCABULARY_SIZE:,}, or as many as it yields",
        formerly=VOCABULARY_SIZE,
    )
    lowercase: bool = option(
        False, "that tokenizer reads capitals as small letters: good for tweets, bad for names"
    )
    layers: int = option(6, "number of layers")
    hidden_size: int = option(256, "width of the residual stream")
    heads: int = option(8, "attention heads; hidden_size is a multiple of it")
    intermediate_size: int = option(1024, "width of the feed-forward layers")
    positions: int = option(512, "longest sequence, in tokens, the model has positions for")
    dropout: float = option(0.0, "dropout of hidden states and attention")
    initial_deviation: float = option(0.05, "standard deviation of the initial weights")

    def __post_init__(self) -> None:
        require_shape("model", self)
        refuse_own_shape("model", self)
        require_positive(
            "model",
            {
                "positions": self.positions,
                "initial_deviation": self.initial_deviation,
            },
        )
        if self.vocabulary_size is not None:
            require_positive("model", {"vocabulary_size": self.vocabulary_size})
        require(
            self.tokenizer is None or not self.lowercase,
            "model.lowercase",
            self.lowercase,
            "nothing, as model.tokenizer has its own rule",
        )


@dataclass(frozen=True)
class WarmStartRecipe:
    """Short sequences first: from scratch, a model leaves the plateau at the entropy of single pieces sooner so."""

    steps: int = option(
        0, "the first steps, which read short sequences", below="optimisation.steps"
    )
    max_length: int = option(32, "tokens per sequence of those")
    batch_size: int = option(128, "sequences per step of those")
    mask_probability: float | None = option(
        None, "share of tokens chosen in those; none: corpus.mask_probability"
    )

    def __post_init__(self) -> None:
        require(self.steps >= 0, "warm_start.steps", self.steps, "0 or more")
        require(
            self.mask_probability is None or 0 < self.mask_probability < 1,
            "warm_start.mask_probability",
            self.mask_probability,
            "above 0 and below 1",
        )
        require(self.max_length >= 4, "warm_start.max_length", self.max_length, "4 or more")
        require_positive("warm_start", {"batch_size": self.batch_size})


@dataclass(frozen=True)
class AdaptRecipe:
    """Masked-language-model training of a teacher."""

    model: ModelRecipe = field(default_factory=ModelRecipe)
    corpus: CorpusRecipe = field(default_factory=CorpusRecipe)
    warm_start: WarmStartRecipe = field(default_factory=WarmStartRecipe)
    optimisation: OptimisationRecipe = field(default_factory=OptimisationRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self) -> None:
        require_corpus(self.corpus)
        require(
            self.corpus.mask_probability > 0,
            "corpus.mask_probability",
            self.corpus.mask_probability,
            "a number above 0: the masked tokens are what is learnt",
        )
