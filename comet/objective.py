"""The objective: softened KL on masked-language-model logits, and squared error of head-averaged attention maps.

    L = α · L_kd + (1 − α) · L_att                                     AfroXLMR-Comet, arXiv 2502.18020

    L_kd  = mean over the chosen tokens of T² · KL(softmax(t / T) ‖ softmax(s / T))          Hinton et al., 2015
    L_att = mean over real pairs of tokens of (P(A_student) − A_teacher)²

`ops` is one of two namespaces with the same names: `comet_kernels`, or `comet_kernels.reference` in plain torch.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from comet.batch import Batch, Counts, StepLosses
from comet.projections import Projection
from comet.recipe import ObjectiveRecipe
from comet.tap import TappedEncoder
from comet.teachers import Teacher


class Distiller(nn.Module):
    """Student, projection and objective as one module whose forward returns the loss; the teacher is held, not trained.

    Args:
        teacher: frozen, and kept out of this module's parameters.
        student: trained.
        projection: trained with the student.
        recipe: weights and options.
        ops: `comet_kernels` or `comet_kernels.reference`.
        languages: how many the corpus has.

    Raises:
        ValueError: teacher and student have different vocabularies.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: TappedEncoder,
        projection: Projection,
        recipe: ObjectiveRecipe,
        ops: ModuleType,
        languages: int = 1,
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
        self.languages = languages
        self._teacher = (teacher,)

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher; not a submodule, so neither optimizer nor checkpoint sees it."""
        return self._teacher[0]

    def forward(self, batch: Batch, totals: Counts | None = None) -> StepLosses:
        """Both models read the batch once; gradients flow to student and projection.

        Args:
            batch: a piece of a step's batch, or all of it.
            totals: what the sums are divided by: the counts of the whole step; None where the batch is all of it.
        """
        totals = batch.counts if totals is None else totals
        teacher = self.teacher.read(batch)
        assert teacher.attention_map is not None and teacher.hidden is not None
        student = self.student(batch.input_ids, batch.mask)
        student_map = self.ops.mean_attention(
            student.query, student.key, batch.mask, scale=student.scale
        )
        mean_kd, kl_N = self.ops.linear_softened_kl(
            student.hidden.flatten(0, 1).index_select(0, batch.kd_positions),
            self.student.output_weight,
            self.student.output_bias,
            teacher.hidden,
            self.teacher.output_weight,
            self.teacher.output_bias,
            self.recipe.temperature,
            return_kl=True,
        )
        kd = mean_kd * (len(batch.kd_positions) / totals.matched)
        attention = self.projection.loss(student_map, teacher.attention_map, batch.mask, self.ops)
        rows = self.recipe.attention_reduction == "row"
        attention = attention * (batch.squared_lengths / (totals.tokens if rows else totals.pairs))
        total = self.recipe.alpha * kd + (1 - self.recipe.alpha) * attention
        by_language = sums_by_language(kl_N, batch, self.languages)
        return StepLosses(total, {"kd": kd, "attention": attention}, by_language)


def sums_by_language(values_N: Tensor, batch: Batch, languages: int) -> Tensor:
    """`[2, L]`: sums over each language's matched tokens, and how many those are; without atomics."""
    rows_N = batch.kd_positions // batch.input_ids.shape[1]
    member_NL = nn.functional.one_hot(batch.languages[rows_N], languages).to(values_N.dtype)
    return torch.stack([values_N @ member_NL, member_NL.sum(0)])
