"""What is chosen of a student: its shape, and what it starts from; impossible combinations refused when it is made."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from comet.configuration import option, require, require_positive

if TYPE_CHECKING:
    from comet.recipe import ModelRecipe


def require_shape(part: str, recipe: "StudentRecipe | ModelRecipe") -> None:
    """Require sizes above zero, a width that the heads divide, and a dropout below 1."""
    sizes = ("layers", "hidden_size", "heads", "intermediate_size")
    require_positive(part, {name: getattr(recipe, name) for name in sizes})
    require(
        recipe.hidden_size % recipe.heads == 0,
        f"{part}.hidden_size",
        recipe.hidden_size,
        f"a multiple of {part}.heads ({recipe.heads})",
    )
    require(0 <= recipe.dropout < 1, f"{part}.dropout", recipe.dropout, "0 or more and below 1")


def refuse_own_shape(part: str, recipe: "StudentRecipe | ModelRecipe") -> None:
    """Refuse sizes beside a model that has its own: they would change nothing."""
    if recipe.model is None:
        return
    own = {"model", "tokenizer", "attention_layer"}
    for one in fields(recipe):
        require(
            one.name in own or getattr(recipe, one.name) == one.default,
            f"{part}.{one.name}",
            getattr(recipe, one.name),
            f"nothing, as {recipe.model} has its own; leave it out, or leave out {part}.model",
        )


@dataclass(frozen=True)
class StudentRecipe:
    """The model that is trained: the teacher's architecture, made smaller."""

    model: str | None = option(None, "start from this hub id or folder instead of random weights")
    layers: int = option(6, "number of layers")
    hidden_size: int = option(256, "width of the residual stream")
    heads: int = option(8, "attention heads; hidden_size is a multiple of it")
    intermediate_size: int = option(1024, "width of the feed-forward layers")
    dropout: float = option(0.1, "dropout of hidden states and attention")
    attention_layer: int | Literal["last", "upper-middle"] = option(
        "last", "the layer whose attention is trained: a number from 0, or one of these names"
    )
    embedding_size: int | None = option(
        None,
        "width of the embeddings, below hidden_size: two factors of the table, as in ALBERT; the student is an ELECTRA "
        "then, whatever the teacher",
    )
    initial: Literal["auto", "random", "embeddings", "teacher"] = option(
        "auto",
        "first weights: random, the teacher's embeddings alone, or all of the teacher's, reduced; auto is the last of "
        "these that its sizes allow",
    )
    initial_layers: list[int] | None = option(
        None, "teacher layers to start from, from 0; none: evenly from the first to the last"
    )

    def __post_init__(self) -> None:
        require_shape("student", self)
        refuse_own_shape("student", self)
        require(
            self.embedding_size is None or 0 < self.embedding_size < self.hidden_size,
            "student.embedding_size",
            self.embedding_size,
            f"1 or more and below student.hidden_size ({self.hidden_size})",
        )
        layers = self.initial_layers
        if layers is None:
            return
        require(
            self.initial in ("auto", "teacher"),
            "student.initial_layers",
            f"{layers} with student.initial {self.initial}",
            "student.initial teacher",
        )
        require(
            len(layers) == self.layers and min(layers) >= 0 and layers == sorted(set(layers)),
            "student.initial_layers",
            layers,
            f"as many as student.layers ({self.layers}), from 0, in ascending order",
        )
