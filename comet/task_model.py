"""Models with a head for a task: made of an encoder, run, saved beside what they were trained on, and loaded."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from comet.batch import Batch
from comet.configuration import require
from comet.corpus.documents import composed
from comet.durable import SEAL, sealed, unsealed, write_json
from comet.finetune_recipe import TunedModelRecipe
from comet.formats import NewerFormatError, require_known_format, stamp
from comet.holdings import instead
from comet.names import path_component
from comet.pretrained import load_config, load_model, random_model, require_encoder
from comet.students import (
    DROPOUTS,
    count_parameters,
    load_tokenizer,
    require_embedded,
    save_model,
)
from comet.tap import Attention, AttentionSink, Layer, layer_index, require_positions, tap_attention
from comet.tasks import Task

CARD = "comet.json"
FORMAT = 1  # of the card and the model next to it
HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}


class TaskEncoder(nn.Module):
    """A model with a task's head, and the attention of one of its layers where that is asked for.

    Args:
        model: of `make_task_model` or `load_tuned`.
        layer: the layer that is read; None for none, which takes any architecture.

    Raises:
        ValueError: the layer cannot be read.
    """

    def __init__(self, model: PreTrainedModel, layer: Layer | None = None) -> None:
        super().__init__()
        self.model = model
        self.name = model.config.name_or_path or type(model).__name__
        self.layer = None
        if layer is not None:
            self.layer = layer_index(layer, model.config.num_hidden_layers, self.name)
            tap_attention(model, self.layer, self.name)

    @property
    def width(self) -> int:
        """Of hidden states."""
        return int(self.model.config.hidden_size)

    def forward(self, batch: Batch) -> tuple[Tensor, Attention | None]:
        """Logits `[N, L]` at the batch's matched positions, and the layer's attention if one is read."""
        sink = None if self.layer is None else AttentionSink(self.layer)
        carried = {} if sink is None else {"attention_sink": sink}
        logits = self.model(input_ids=batch.input_ids, attention_mask=batch.mask, **carried).logits
        if logits.ndim == 3:  # of every token; else of every sequence, each of which has one label
            logits = logits.flatten(0, 1).index_select(0, batch.kd_positions)
        return logits, None if sink is None else Attention(*sink.release())


@dataclass(frozen=True)
class ModelCard:
    """What lies beside a fine-tuned model, as comet.json.

    Attributes:
        task: how the data set is called.
        kind: "sequence" or "token".
        labels: their names in the order of the logits.
        languages: it was fine-tuned on.
        max_length: tokens per sequence; 0 where texts are not cut.
        seed: of the run.
        dev: the measure on dev by which it was chosen, mean over languages.
        step: at which.
        size: parameters, encoder_parameters (without embeddings and heads) and bytes; None where that says nothing.
    """

    task: str
    kind: str
    labels: list[str]
    languages: list[str]
    max_length: int
    seed: int
    dev: float
    step: int
    size: dict[str, int] | None

    def require_sound(self) -> None:
        """Refuse a seed or languages that cannot name files.

        Raises:
            ValueError: one cannot.
        """
        require(type(self.seed) is int and self.seed >= 0, "seed", self.seed, "a whole number")
        for language in self.languages:
            path_component(language, "languages")

    def write(self, folder: Path) -> None:
        """Write it into a model's folder, whole or not at all."""
        write_json(folder / CARD, sealed(stamp(FORMAT) | asdict(self)))


def read_card(folder: Path, *, flag: str = "--model") -> ModelCard:
    """What a fine-tuned model was trained on.

    Raises:
        ValueError: the folder holds no such model, or a later version of Comet wrote it.
    """
    try:
        content = unsealed(json.loads((folder / CARD).read_text("utf-8")))
        require_known_format(f"{flag}: {folder}", content, FORMAT)
        card = ModelCard(**{key: content[key] for key in content if key not in stamp(FORMAT)})
        card.require_sound()
        return replace(card, labels=[composed(label) for label in card.labels])
    except NewerFormatError:
        raise
    except FileNotFoundError:
        found = sorted(folder.glob(f"**/{CARD}"))
        hint = (
            f"; did you mean {found[0].parent}?"
            if found
            else "; python -m comet.finetune makes one"
        )
        raise ValueError(
            f"{flag}: {folder} holds no fine-tuned model ({CARD}){instead(folder, 'fine-tuned model') or hint}"
        ) from None
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{flag}: cannot read {folder / CARD}: {error}; if you changed it on purpose, remove its {SEAL!r}"
        ) from error


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model as it was saved.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        card: what it was trained on.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    card: ModelCard


def load_tuned(folder: Path, *, flag: str = "--model") -> Tuned:
    """Load a fine-tuned model.

    Raises:
        ValueError: the folder holds none.
    """
    card = read_card(folder, flag=flag)
    model, report = load_model(HEADS[card.kind], str(folder), flag=flag)
    if report["missing_keys"]:
        raise ValueError(
            f"{flag}: {folder} has no weights for {min(report['missing_keys'])}; fine-tune the model again"
        )
    tokenizer = load_tokenizer(str(folder), flag=flag)
    require_embedded(tokenizer, model.config, flag=flag)
    return Tuned(model, tokenizer, card)


def save_tuned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    card: ModelCard,
    folder: Path,
    describe: Callable[[Path], None] | None = None,
) -> None:
    """Write a fine-tuned model as transformers and its users know it, with its tokenizer and card.

    `describe` may add to the folder; all of it is there or nothing.
    """

    def beside(partial: Path) -> None:
        card.write(partial)
        if describe is not None:
            describe(partial)

    save_model(model, tokenizer, folder, beside)


def make_task_model(
    recipe: TunedModelRecipe, task: Task, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """An encoder with a new head for a task; random numbers come from torch's generator.

    Raises:
        ValueError: it cannot be had, has too few positions or embeddings.
    """
    assert recipe.model is not None
    config = load_config(
        recipe.model,
        id2label=dict(enumerate(task.labels)),
        label2id={label: number for number, label in enumerate(task.labels)},
    )
    require_encoder(config, recipe.model, flag="--model")
    _set_dropout(config, recipe)
    if type(config) not in HEADS[task.kind]._model_mapping:
        raise ValueError(f"--model: a {config.model_type} model has no {task.kind} classifier")
    if recipe.initial == "random":
        model = random_model(HEADS[task.kind], config)
    else:
        model = _pretrained(recipe.model, config, task)
    require_positions(model, recipe.max_length, "model.max_length", "the model")
    require_embedded(tokenizer, model.config, flag="--model")
    return model


def _pretrained(name: str, config: PreTrainedConfig, task: Task) -> PreTrainedModel:
    with _no_loading_report():
        model, report = load_model(
            HEADS[task.kind],
            name,
            config=config,
            ignore_mismatched_sizes=True,  # a classifier of another task
        )
    changed = [str(key[0]) for key in report["mismatched_keys"]]
    missing = [
        key
        for key in [*sorted(report["missing_keys"]), *changed]
        if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key.split(".")
    ]
    if missing:
        raise ValueError(
            f"--model: {name} has no weights for {missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; give a whole encoder, or "
            "--initial random for its shape alone"
        )
    return model


@contextlib.contextmanager
def _no_loading_report() -> Iterator[None]:
    """Transformers tells at length that the classifier is new and the old head unused: both are meant."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _set_dropout(config: PreTrainedConfig, recipe: TunedModelRecipe) -> None:
    attention = recipe.dropout if recipe.attention_dropout is None else recipe.attention_dropout
    for name in (*DROPOUTS, "classifier_dropout"):
        if hasattr(config, name):
            setattr(config, name, attention if name.startswith("attention") else recipe.dropout)


def sizes(model: PreTrainedModel) -> dict[str, int]:
    """Parameters, those of the encoder without embeddings and heads, and bytes as saved in float32."""
    base = getattr(model, model.base_model_prefix, model)
    layers = sum(
        parameter.numel()
        for name, parameter in base.named_parameters()
        if not {"embeddings", "pooler"} & set(name.split("."))
    )
    total = count_parameters(model)
    return {"parameters": total, "encoder_parameters": layers, "bytes": 4 * total}
