"""Teacher and student models: how they are loaded, and how the student's shape follows from the teacher's.

The paper's student of AfroXLMR-large is the same architecture with 6 layers, hidden 256, 8 heads and intermediate
1024: 69,187,730 parameters with its tied masked-language-model head, 92.5 % of them embeddings.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from transformers import (
    AutoModelForMaskedLM,
    ElectraConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from comet.anatomy import SUPPORTED
from comet.configuration import require
from comet.durable import folder_aside
from comet.pretrained import (
    load_any_tokenizer,
    load_config,
    load_model,
    random_model,
    require_encoder,
)
from comet.student_recipe import Sizes, StudentRecipe

DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "mlp_dropout",
    "embedding_dropout",
)

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


def student_config(teacher: PreTrainedConfig, recipe: StudentRecipe) -> PreTrainedConfig:
    """The teacher's configuration with the recipe's shape; vocabulary, positions and special tokens stay.

    With `embedding_size` it is ELECTRA's, the one BERT-like architecture of transformers whose embeddings are narrower
    than its layers and tied to its masked-language-model head.

    Raises:
        ValueError: the architecture does not name its sizes as BERT does.
    """
    recipe = settled(teacher, recipe).recipe
    require_startable(teacher, recipe)
    values = teacher.to_dict()
    if recipe.embedding_size is not None and teacher.model_type != "electra":
        return _factorized_config(teacher, recipe, recipe.embedding_size)
    _require_sizes(teacher)
    sizes = dict(zip(_SIZES, recipe.sizes, strict=True))
    layers, hidden_size, heads, _ = recipe.sizes
    names = {size_name(teacher, name): name for name in sizes}
    values.update({own: sizes[name] for own, name in names.items()})
    for name in values:
        if name in DROPOUTS and values[name] is not None:
            values[name] = recipe.dropout
    if "embedding_size" in values:
        widest = recipe.embedding_size or values["embedding_size"]
        values["embedding_size"] = min(widest, hidden_size)
    if "num_key_value_heads" in values:
        values["num_key_value_heads"] = heads
    kinds = values.pop("layer_types", None)
    if kinds:
        # the last layers' pattern of windows, so that the student's last layer has the attention of the teacher's
        values["layer_types"] = (kinds * layers)[-layers:]
        if recipe.initial == "teacher":
            values["layer_types"] = [kinds[number] for number in chosen_layers(teacher, recipe)]
    for name in ("head_dim", "_name_or_path", "architectures", "dtype"):
        values.pop(name, None)
    return cast(PreTrainedConfig, type(teacher).from_dict(values))


def chosen_layers(teacher: PreTrainedConfig, recipe: StudentRecipe) -> tuple[int, ...]:
    """The teacher's layers that a student starts from: the recipe's, else evenly spaced from the first to the last.

    The last is there because its attention is matched, the first because it alone reads embeddings.
    """
    if recipe.initial_layers is not None:
        return tuple(recipe.initial_layers)
    last, gaps = teacher.num_hidden_layers - 1, recipe.sizes.layers - 1
    if gaps == 0:
        return (last,)
    return tuple((2 * number * last + gaps) // (2 * gaps) for number in range(gaps + 1))


class Start(NamedTuple):
    """What a student's first weights are.

    Attributes:
        recipe: whose sizes are all decided and whose `initial` is no longer "auto", but for a model that has its own.
        hindrance: what kept "auto" from all of the teacher's weights, or None.
    """

    recipe: StudentRecipe
    hindrance: str | None

    def describe(self, teacher: PreTrainedConfig) -> str:
        """For people."""
        if self.recipe.model is not None:
            return self.recipe.model
        if self.recipe.initial == "teacher":
            layers = ", ".join(map(str, chosen_layers(teacher, self.recipe)))
            return f"the teacher's weights, reduced; layers {layers}"
        kinds = {"random": "random weights", "embeddings": "the teacher's embeddings, reduced"}
        why = "" if self.hindrance is None else f", for want of more: {self.hindrance}"
        return f"{kinds[self.recipe.initial]}{why}"


def settled(teacher: PreTrainedConfig, recipe: StudentRecipe) -> Start:
    """Decide on sizes that are left open, and on an `initial` of "auto".

    That is all of the teacher's weights, else its embeddings, else random ones. Factors of its embeddings alone are
    worth less than random ones (docs/initialisation.md).
    """
    recipe = _sized(teacher, recipe)
    if recipe.initial != "auto" or recipe.model is not None:
        return Start(recipe, None)
    hindrance = None
    candidates = [replace(recipe, initial="teacher")]
    if recipe.embedding_size is None and recipe.initial_layers is None:
        candidates.append(replace(recipe, initial="embeddings"))
    for found in candidates:
        try:
            require_startable(teacher, found)
        except ValueError as error:
            if recipe.initial_layers is not None:
                raise
            hindrance = hindrance or str(error)
        else:
            return Start(found, hindrance)
    return Start(replace(recipe, initial="random"), hindrance)


def _sized(teacher: PreTrainedConfig, recipe: StudentRecipe) -> StudentRecipe:
    """The recipe with the sizes that it leaves open: half the teacher's layers and width, and what follows from these.

    Heads are as wide as the teacher's wherever the sizes that were given allow it, and never wider, so that the student
    can start from the teacher's weights.
    """
    if recipe.model is not None or None not in (getattr(recipe, name) for name in Sizes._fields):
        return recipe
    _require_sizes(teacher)
    feed_forward = size_name(teacher, "intermediate_size")
    layers = recipe.layers or len(recipe.initial_layers or ())
    width, heads = recipe.hidden_size, recipe.heads
    widest = teacher.hidden_size // teacher.num_attention_heads
    if width is None:
        own = teacher.num_attention_heads > 1 and heads is None
        heads = heads or _half(teacher.num_attention_heads)
        # an even width of each, as positions that are rotations turn pairs
        narrower = min(widest, max(2, teacher.hidden_size // (4 * heads) * 2))
        width = heads * (widest if own else narrower)
    if heads is None:
        counts = range(-(-width // widest), width)
        pairs = 2 if teacher.model_type == "modernbert" else 1
        heads = next((count for count in counts if width % (count * pairs) == 0), width)
    return replace(
        recipe,
        layers=layers or _half(teacher.num_hidden_layers),
        hidden_size=width,
        heads=heads,
        intermediate_size=recipe.intermediate_size
        or max(1, getattr(teacher, feed_forward) * width // teacher.hidden_size),
    )


def size_name(config: PreTrainedConfig, name: str) -> str:
    """What an architecture's configuration calls one of BERT's sizes."""
    if name == "intermediate_size" and not hasattr(config, name):
        name = "hidden_dim"  # DistilBERT
    return str(config.attribute_map.get(name, name))


def _half(count: int) -> int:
    return (count + 1) // 2


def _require_sizes(teacher: PreTrainedConfig) -> None:
    missing = [name for name in _SIZES if not hasattr(teacher, size_name(teacher, name))]
    if missing:
        raise ValueError(
            f"student: a {teacher.model_type} configuration has no {', '.join(missing)}; "
            "give a student of your own with --student"
        )


def require_smaller(
    teacher: PreTrainedConfig, student: PreTrainedModel, recipe: StudentRecipe
) -> None:
    """Refuse a student that is no smaller than its teacher, unless the recipe asks for it.

    Raises:
        ValueError: it has as many parameters or more.
    """
    ours, theirs = count_parameters(student), count_parameters(outline_of(teacher))
    if ours < theirs or recipe.allow_larger:
        return
    remedy = f"give a smaller one than {recipe.model} with --student, or leave it out"
    if recipe.model is None:
        sizes = ", ".join(f"{name} {size}" for name, size in recipe.sizes._asdict().items())
        remedy = f"lower its sizes ({sizes}), or leave them out for half the teacher's"
    raise ValueError(
        f"student: got {ours:,} parameters, expected fewer than the {theirs:,} of its teacher; {remedy}; "
        "--student.allow_larger trains it all the same"
    )


def outline_of(config: PreTrainedConfig) -> PreTrainedModel:
    """The masked language model of a configuration, without memory for its weights."""
    with torch.device("meta"):
        return random_model(AutoModelForMaskedLM, copy.deepcopy(config))  # a live model may have it


def require_startable(teacher: PreTrainedConfig, recipe: StudentRecipe) -> None:
    """Refuse a student that cannot start from such a teacher.

    Raises:
        ValueError: another architecture, or a size above the teacher's.
    """
    if recipe.initial == "random":
        return
    require(
        teacher.model_type in SUPPORTED,
        "student.initial",
        f"{recipe.initial} with a {teacher.model_type} teacher",
        f"random, or a teacher that is {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}",
    )
    layers, hidden_size, heads, intermediate_size = recipe.sizes
    _require_at_most("hidden_size", hidden_size, teacher.hidden_size)
    if recipe.initial == "embeddings":
        return
    require(
        recipe.embedding_size is None or teacher.model_type != "modernbert",
        "student.initial",
        "teacher with student.embedding_size and a modernbert teacher",
        "embeddings: the student is an ELECTRA, whose layers are of another kind",
    )
    _require_at_most("layers", layers, teacher.num_hidden_layers)
    _require_at_most("heads", heads, teacher.num_attention_heads)
    _require_at_most("intermediate_size", intermediate_size, teacher.intermediate_size)
    own = hidden_size // heads
    theirs = teacher.hidden_size // teacher.num_attention_heads
    require(
        own <= theirs,
        "student.heads",
        f"{heads} of {own} numbers each",
        f"heads no wider than the teacher's {theirs}; give {-(-hidden_size // theirs)} heads or more",
    )
    highest = max(recipe.initial_layers or [0])
    last = teacher.num_hidden_layers - 1
    require(
        highest <= last, "student.initial_layers", highest, f"layers of the teacher, 0 to {last}"
    )


def _require_at_most(name: str, got: int, most: int) -> None:
    require(got <= most, f"student.{name}", got, f"at most the teacher's {most} to start from it")


def _factorized_config(
    teacher: PreTrainedConfig, recipe: StudentRecipe, embedding_size: int
) -> PreTrainedConfig:
    positions = teacher.max_position_embeddings
    if teacher.model_type in _POSITIONS_AFTER_PADDING:
        positions -= teacher.pad_token_id + 1  # ELECTRA counts from 0
    layers, hidden_size, heads, intermediate_size = recipe.sizes
    return ElectraConfig(
        vocab_size=teacher.vocab_size,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate_size,
        hidden_act=getattr(teacher, "hidden_act", "gelu"),
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=recipe.dropout,
        max_position_embeddings=positions,
        type_vocab_size=getattr(teacher, "type_vocab_size", 1),
        initializer_range=teacher.initializer_range,
        layer_norm_eps=getattr(teacher, "layer_norm_eps", 1e-5),
        pad_token_id=teacher.pad_token_id,
        bos_token_id=teacher.bos_token_id,
        eos_token_id=teacher.eos_token_id,
    )


def make_student(teacher: PreTrainedConfig, recipe: StudentRecipe) -> PreTrainedModel:
    """A student of the recipe's shape with random weights, or the model that `recipe.model` names."""
    if recipe.model is not None:
        return load_masked_lm(recipe.model, flag="--student")
    return random_model(AutoModelForMaskedLM, student_config(teacher, recipe))


def load_masked_lm(
    name_or_folder: str,
    *,
    revision: str | None = None,
    flag: str = "--teacher",
    head_required: bool = True,
) -> PreTrainedModel:
    """Load an encoder with the masked-language-model head it was trained with.

    Args:
        name_or_folder: a hub id, or a folder written by `save_pretrained`.
        revision: branch, tag or commit on the hub.
        flag: the option that named the model, for messages.
        head_required: refuse a checkpoint without the head's weights; otherwise they start at random.

    Raises:
        ValueError: it is not there, is no encoder, or its head's weights are missing.
    """
    config = load_config(name_or_folder, revision=revision, flag=flag)
    require_encoder(config, name_or_folder, flag=flag)
    if type(config) not in AutoModelForMaskedLM._model_mapping:
        raise ValueError(
            f"{flag}: cannot load {name_or_folder}: a {config.model_type} model has no masked-language-model head"
        )
    model, report = load_model(
        AutoModelForMaskedLM, name_or_folder, config=config, revision=revision, flag=flag
    )
    missing = sorted(report["missing_keys"])
    if missing and head_required and not config.tie_word_embeddings:
        head = model.get_output_embeddings()
        own = [] if head is None else [id(value) for value in head.parameters()]
        if set(missing) <= {name for name, value in model.named_parameters() if id(value) in own}:
            raise ValueError(
                f"{flag}: {name_or_folder} has no weights for {missing[0]}, and config.json says tie_word_embeddings: "
                "false; remove that key if its output embeddings are its input embeddings"
            )
    if missing and head_required:
        raise ValueError(
            f"{flag}: {name_or_folder} has no weights for {missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}: it was saved without its "
            "masked-language-model head; train one with `python -m comet.adapt --model "
            f"{name_or_folder}`, or give a checkpoint that has it"
        )
    return model


def load_tokenizer(
    name_or_folder: str, *, revision: str | None = None, flag: str = "--teacher"
) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer that lies with a model.

    Raises:
        ValueError: there is none, it is not a fast one, or it has no mask or padding token.
    """
    tokenizer = load_any_tokenizer(name_or_folder, revision=revision, flag=flag)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"{flag}: {name_or_folder} holds no tokenizer; save one beside the model")
    if not tokenizer.is_fast:
        raise ValueError(f"{flag}: {name_or_folder} has no fast tokenizer (tokenizer.json)")
    for kind in ("mask_token_id", "pad_token_id"):
        if getattr(tokenizer, kind) is None:
            raise ValueError(f"{flag}: the tokenizer of {name_or_folder} has no {kind[:-9]} token")
    tokenizer.chat_template = None  # saving one writes files of whatever names it lists
    for name in ("is_local", "local_files_only"):  # of how it was loaded, and would be saved
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def require_same_vocabulary(
    teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast
) -> None:
    """Refuse two tokenizers that number their pieces differently.

    Raises:
        ValueError: the vocabularies differ; the message counts where.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        shared = sum(theirs.get(piece) == number for piece, number in ours.items())
        raise ValueError(
            f"--student: its vocabulary has {len(ours)} entries, the teacher's {len(theirs)}, and only "
            f"{shared} agree: softened KL compares logits entry by entry, so both models need the same "
            "tokenizer; start from a student made for this teacher, or from random weights"
        )


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    beside: Callable[[Path], None] | None = None,
    *,
    new: bool = False,
) -> None:
    """Write a model as transformers and its users know it, with its tokenizer; whole or not at all.

    `beside` writes more into the folder, before it is put in its place; a `new` one replaces none.
    """
    with folder_aside(folder, new=new) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if beside is not None:
            beside(partial)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer, whole or not at all."""
    with folder_aside(folder) as partial:
        tokenizer.save_pretrained(partial)


def require_embedded(
    tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, *, flag: str
) -> None:
    """Refuse a tokenizer with more entries than the model embeds.

    Raises:
        ValueError: it has more.
    """
    entries = (
        max(tokenizer.get_vocab().values()) + 1
    )  # more than there are where numbers are left out
    if entries > config.vocab_size:
        raise ValueError(
            f"{flag}: the tokenizer has {entries:,} entries, the model embeds {config.vocab_size:,}; give the "
            "tokenizer that it was trained with, or resize its embeddings (resize_token_embeddings) and train them"
        )


def keep_inputs_only(model: PreTrainedModel) -> None:
    """Let training keep each layer's input alone and run the layer again for its gradient (Chen et al., 2016).

    Raises:
        ValueError: the architecture cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"optimisation.gradient_checkpointing: {type(model).__name__} has no support for it; leave it out"
        )
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name in later transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
