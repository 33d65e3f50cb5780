"""Where the teacher's part of the loss comes from: a frozen model that reads the batch now, or a cache that did."""

from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from comet.attention_losses import require_divisor
from comet.batch import Batch, TeacherOutputs
from comet.objective_recipe import ObjectiveRecipe
from comet.tap import TappedEncoder


class Parts(NamedTuple):
    """What of `TeacherOutputs` is asked for.

    Attributes:
        hidden: the inputs of the output embeddings.
        attention_map: the head-averaged map.
        relation_heads: into how many heads query, key and value will be cut; None where they are not asked for.
    """

    hidden: bool = True
    attention_map: bool = True
    relation_heads: int | None = None


USUAL_PARTS = Parts()


def needed_parts(recipe: ObjectiveRecipe) -> Parts:
    """What a recipe's loss asks of the teacher: nothing for a term whose weight is 0."""
    attention = recipe.attention_loss if recipe.alpha < 1 else None
    return Parts(
        hidden=recipe.alpha > 0,
        attention_map=attention in ("mse", "kl"),
        relation_heads=recipe.relation_heads if attention == "relation" else None,
    )


class Teacher(Protocol):
    """What a `Distiller` asks of a teacher. It is never a submodule: no optimizer and no checkpoint sees it."""

    @property
    def output_weight(self) -> Tensor:
        """`[V, E]`: the output embeddings."""

    @property
    def output_bias(self) -> Tensor | None:
        """`[V]`, or None."""

    def read(self, batch: Batch) -> TeacherOutputs:
        """What the teacher says to a batch, without gradient."""

    def to(self, device: torch.device) -> object:
        """Move what is held to a device."""


class OnlineTeacher:
    """A frozen model that reads every batch.

    Args:
        encoder: put into evaluation mode.
        ops: `comet_kernels` or `comet_kernels.reference`.
        parts: what `read` gives; `needed_parts` says what a run's loss needs.

    Raises:
        ValueError: the model's width cannot be cut into the relation heads asked for.
    """

    def __init__(self, encoder: TappedEncoder, ops: ModuleType, parts: Parts = USUAL_PARTS) -> None:
        if parts.relation_heads is not None:
            require_divisor(parts.relation_heads, encoder.width, "teacher")
        self.encoder = encoder.eval().requires_grad_(False)
        self.ops = ops
        self.parts = parts

    @property
    def output_weight(self) -> Tensor:
        """`[V, E]`."""
        return self.encoder.output_weight

    @property
    def output_bias(self) -> Tensor | None:
        """`[V]`, or None."""
        return self.encoder.output_bias

    @torch.no_grad()
    def read(self, batch: Batch) -> TeacherOutputs:
        """One pass of the encoder, and of its outputs those parts that were asked for."""
        tapped = self.encoder(batch.input_ids, batch.mask)
        hidden = attention_map = relation = None
        if self.parts.hidden:
            hidden = tapped.hidden.flatten(0, 1).index_select(0, batch.kd_positions)
        if self.parts.attention_map:
            attention_map = self.ops.mean_attention(
                tapped.query, tapped.key, batch.mask, scale=tapped.scale
            )
        if self.parts.relation_heads is not None:
            relation = (tapped.query, tapped.key, tapped.value)
        return TeacherOutputs(attention_map=attention_map, hidden=hidden, relation=relation)

    def to(self, device: torch.device) -> object:
        """Move the encoder."""
        return self.encoder.to(device)
