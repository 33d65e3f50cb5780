"""Where the teacher's part of the loss comes from: a frozen model that reads the batch now, or a cache that did before."""

from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from comet.batch import Batch, TeacherOutputs
from comet.tap import TappedEncoder


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
    """

    def __init__(self, encoder: TappedEncoder, ops: ModuleType) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.ops = ops

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
        """One pass of the encoder."""
        tapped = self.encoder(batch.input_ids, batch.mask)
        attention_map = self.ops.mean_attention(
            tapped.query, tapped.key, batch.mask, scale=tapped.scale
        )
        hidden = tapped.hidden.flatten(0, 1).index_select(0, batch.kd_positions)
        return TeacherOutputs(attention_map=attention_map, hidden=hidden)

    def to(self, device: torch.device) -> object:
        """Move the encoder."""
        return self.encoder.to(device)
