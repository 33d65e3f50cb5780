"""What is chosen of a student: its shape, and what it starts from; impossible combinations refused when it is made."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple

from comet.configuration import is_idle, option, require, require_positive

if TYPE_CHECKING:
    from comet.recipe import ModelRecipe


class Sizes(NamedTuple):
    """Sizes of an encoder."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int


def require_shape(part: str, recipe: "StudentRecipe | ModelRecipe") -> None:
    """Require sizes above zero, a width that the heads divide, and a dropout below 1; None is not decided yet."""
    sizes = {name: getattr(recipe, name) for name in Sizes._fields}
    require_positive(part, {name: size for name, size in sizes.items() if size is not None})
    width, heads = recipe.hidden_size, recipe.heads
    require(
        width is None or heads is None or width % heads == 0,
        f"{part}.hidden_size",
        width,
        f"a multiple of {part}.heads ({heads})",
    )
    require(0 <= recipe.dropout < 1, f"{part}.dropout", recipe.dropout, "0 or more and below 1")


def refuse_own_shape(part: str, recipe: "StudentRecipe | ModelRecipe") -> None:
    """Refuse sizes beside a model that has its own: they would change nothing."""
    if recipe.model is None:
        return
    own = {"model", "tokenizer", "attention_layer", "allow_larger"}
    for one in fields(recipe):
        require(
            one.name in own or is_idle(one, getattr(recipe, one.name)),
            f"{part}.{one.name}",
            getattr(recipe, one.name),
            f"nothing, as {recipe.model} has its own; leave it out, or leave out {part}.model",
        )


@dataclass(frozen=True)
class StudentRecipe:
    """The model that is trained: the teacher's architecture, made smaller."""

    model: str | None = option(
        None, "start from this hub id or folder; the shape below is then its own"
    )
    layers: int | None = option(None, "number of layers; none: half the teacher's", formerly=6)
    hidden_size: int | None = option(
        None,
        "width of the residual stream; none: half the teacher's, in heads as wide as the teacher's",
        formerly=256,
    )
    heads: int | None = option(
        None,
        "attention heads, of which hidden_size is a multiple; none: as wide as the teacher's",
        formerly=8,
    )
    intermediate_size: int | None = option(
        None,
        "width of the feed-forward layers; none: the teacher's, in proportion to hidden_size",
        formerly=1024,
    )
    allow_larger: bool = option(False, "train a student that has as many parameters as its teacher")
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
            self.embedding_size is None
            or (self.embedding_size > 0 and self.embedding_size < (self.hidden_size or math.inf)),
            "student.embedding_size",
            self.embedding_size,
            "1 or more and below student.hidden_size"
            + (f" ({self.hidden_size})" if self.hidden_size else ""),
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
            len(layers) == (self.layers or len(layers))
            and min(layers, default=-1) >= 0
            and layers == sorted(set(layers)),
            "student.initial_layers",
            layers,
            f"{'some' if self.layers is None else f'as many as student.layers ({self.layers})'}, from 0, in ascending "
            "order",
        )

    @property
    def sizes(self) -> Sizes:
        """All of them; they are decided with the teacher at hand (`comet.students.settled`)."""
        sizes = [getattr(self, name) for name in Sizes._fields]
        assert None not in sizes
        return Sizes(*sizes)
