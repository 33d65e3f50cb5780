"""The objective: softened KL on masked-language-model logits, and squared error of head-averaged attention maps.

    L = α · L_kd + (1 − α) · L_att                                     AfroXLMR-Comet, arXiv 2502.18020

    L_kd  = mean over the chosen tokens of T² · KL(softmax(t / T) ‖ softmax(s / T))          Hinton et al., 2015
    L_att = mean over real pairs of tokens of (P(A_student) − A_teacher)²

`ops` is one of two namespaces with the same names: `comet_kernels`, or `comet_kernels.reference` in plain torch.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from comet.projections import Projection
from comet.recipe import ObjectiveRecipe
from comet.tap import TappedEncoder


@dataclass(frozen=True)
class Batch:
    """Sequences as both models read them.

    Attributes:
        input_ids: `[B, S]` int64, masked as in MLM training.
        mask: `[B, S]` bool, true on real tokens; None when nothing is padded.
        kd_positions: `[N]` int64, the tokens whose logits are matched, as positions in the flattened `[B · S]`.
        labels: `[B, S]` int64, the original id where a token was chosen for masking, −100 elsewhere.
        tokens: how many tokens are real.
        squared_lengths: Σ_b n_b², the number of real pairs of tokens.
    """

    input_ids: Tensor
    mask: Tensor | None
    kd_positions: Tensor
    labels: Tensor
    tokens: int
    squared_lengths: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            None if self.mask is None else self.mask.to(device, non_blocking=True),
            self.kd_positions.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.tokens,
            self.squared_lengths,
        )


class Losses(NamedTuple):
    """Scalars, float32: the whole objective and its two terms before weighting."""

    total: Tensor
    kd: Tensor
    attention: Tensor


class Distiller(nn.Module):
    """Student, projection and objective as one module whose forward returns the loss; the teacher is held, not trained.

    Args:
        teacher: frozen; put into evaluation mode and kept out of this module's parameters.
        student: trained.
        projection: trained with the student.
        recipe: weights and options.
        ops: `comet_kernels` or `comet_kernels.reference`.

    Raises:
        ValueError: teacher and student have different vocabularies.
    """

    def __init__(
        self,
        teacher: TappedEncoder,
        student: TappedEncoder,
        projection: Projection,
        recipe: ObjectiveRecipe,
        ops: ModuleType,
    ) -> None:
        super().__init__()
        sizes = student.output_weight.shape[0], teacher.output_weight.shape[0]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the student's vocabulary has {sizes[0]} entries, the teacher's {sizes[1]}: softened KL "
                "compares them entry by entry, so both models need the same tokenizer"
            )
        self.student = student
        self.projection = projection
        self.recipe = recipe
        self.ops = ops
        self._teacher = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> TappedEncoder:
        """The frozen teacher; not a submodule, so neither optimizer nor checkpoint sees it."""
        return self._teacher[0]

    def forward(self, batch: Batch) -> Losses:
        """Both models read the batch once; gradients flow to student and projection."""
        with torch.no_grad():
            teacher = self.teacher(batch.input_ids, batch.mask)
            teacher_map = self.ops.mean_attention(
                teacher.query, teacher.key, batch.mask, scale=teacher.scale
            )
        student = self.student(batch.input_ids, batch.mask)
        student_map = self.ops.mean_attention(
            student.query, student.key, batch.mask, scale=student.scale
        )
        kd = self.ops.linear_softened_kl(
            _choose(student.hidden, batch.kd_positions),
            self.student.output_weight,
            self.student.output_bias,
            _choose(teacher.hidden, batch.kd_positions),
            self.teacher.output_weight,
            self.teacher.output_bias,
            self.recipe.temperature,
        )
        attention = self.projection.loss(student_map, teacher_map, batch.mask, self.ops)
        if self.recipe.attention_reduction == "row":
            attention = attention * (batch.squared_lengths / batch.tokens)
        total = self.recipe.alpha * kd + (1 - self.recipe.alpha) * attention
        return Losses(total, kd, attention)


def _choose(hidden_BSE: Tensor, positions_N: Tensor) -> Tensor:
    return hidden_BSE.flatten(0, 1).index_select(0, positions_N)
