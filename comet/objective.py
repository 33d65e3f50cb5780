"""The objective: softened KL on masked-language-model logits, and a distance of attention; if asked for, MLM itself.

    L = α · L_kd + (1 − α) · L_att + mlm_weight · L_mlm          AfroXLMR-Comet, arXiv 2502.18020, where mlm_weight is 0

    L_kd  = mean over the chosen tokens of T_n² · KL(softmax(t_n / T_n) ‖ softmax(s_n / T_n))    Hinton et al., 2015
    L_att = mean over real pairs of tokens of (P(A_student) − A_teacher)², or another of `attention_losses.py`
    L_mlm = mean over the masked tokens of −log softmax(s_n)[label_n]                            Devlin et al., 2019

T_n is of `temperatures.py`. A term whose weight is 0 is not computed.
`ops` is one of two namespaces with the same names: `comet_kernels`, or `comet_kernels.reference` in plain torch.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from comet.attention_losses import (
    map_divergence,
    map_squares,
    relation_divergence,
    require_divisor,
)
from comet.batch import Batch, Counts, StepLosses, TeacherOutputs, total_counts
from comet.configuration import require
from comet.factored_logits import FactoredLogits, cross_entropy_sum
from comet.objective_recipe import ObjectiveRecipe
from comet.projections import Projection
from comet.tap import Attention, Tapped, TappedEncoder
from comet.teachers import Teacher
from comet.temperatures import Temperature
from comet.top_logits import top_softened_kl


class Distiller(nn.Module):
    """Student, projection, temperature and objective as one module whose forward returns the loss.

    The teacher is held, not trained. Of a student that only the attention term trains, the parameters that this term
    does not reach (those above the tapped layer's attention) are frozen: DDP waits for a gradient of every other.

    Args:
        teacher: frozen, and kept out of this module's parameters.
        student: trained.
        projection: trained with the student.
        recipe: weights and options.
        ops: `comet_kernels` or `comet_kernels.reference`.
        languages: the corpus's, in alphabetical order.

    Raises:
        ValueError: teacher and student have different vocabularies, the student's width cannot be cut into the recipe's
            relation heads, or a temperature is given for a language that is not there.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: TappedEncoder,
        projection: Projection,
        recipe: ObjectiveRecipe,
        ops: ModuleType,
        languages: Sequence[str] = ("all",),
    ) -> None:
        super().__init__()
        sizes = student.output_weight.shape[0], teacher.output_weight.shape[0]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the student's vocabulary has {sizes[0]} entries, the teacher's {sizes[1]}: softened KL "
                "compares them entry by entry, so both models need the same tokenizer"
            )
        if recipe.attention_loss == "relation":
            require_divisor(recipe.relation_heads, student.width, "student")
        if recipe.alpha == 0 and recipe.mlm_weight == 0:
            student.freeze_above_attention(keep_value=recipe.attention_loss == "relation")
        self.student = student
        self.projection = projection
        self.temperature = Temperature(recipe, languages)
        self.recipe = recipe
        self.ops = ops
        self.languages = len(languages)
        self.weights = {"kd": recipe.alpha, "attention": 1 - recipe.alpha, "mlm": recipe.mlm_weight}
        self._teacher = (teacher,)

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher; not a submodule, so neither optimizer nor checkpoint sees it."""
        return self._teacher[0]

    def set_progress(self, step: int, steps: int) -> None:
        """Say that `step` of `steps` steps are done: what a scheduled or learnt temperature goes by."""
        self.temperature.set_progress(step, steps)

    def forward(self, batch: Batch, totals: Counts | None = None) -> StepLosses:
        """Both models read the batch once; gradients flow to student, projection and a learnt temperature.

        Args:
            batch: a piece of a step's batch, or all of it.
            totals: what the sums are divided by: the counts of the whole step, at least 1 each; None where the batch is
                all of it.

        Returns:
            Shares of the step's losses. `terms` has `kd`, `attention` and `mlm` where their weight is not 0, and
            `temperature` where it is not constant: shares of its mean over the matched tokens. `by_language` has
            KL without T², None without `kd`.
        """
        totals = total_counts([batch]) if totals is None else totals
        teacher = self.teacher.read(batch)
        student = self.student(batch.input_ids, batch.mask)
        terms: dict[str, Tensor] = {}
        by_language = adversary = None
        if self.weights["kd"]:
            found, by_language, adversary = self._match_logits(student, teacher, batch, totals)
            terms.update(found)
        if self.weights["attention"]:
            terms["attention"] = match_attention(
                student, teacher, batch, totals, self.recipe, self.projection, self.ops
            )
        if self.weights["mlm"]:
            terms["mlm"] = self._predict_masked(student, batch, totals)
        weighted = [weight * terms[name] for name, weight in self.weights.items() if weight]
        total = torch.stack(weighted).sum()
        if adversary is not None:
            total = total + self.weights["kd"] * adversary
        return StepLosses(total, terms, by_language)

    def _student_logits(self, student: Tapped, positions: Tensor) -> FactoredLogits:
        hidden = student.hidden.flatten(0, 1).index_select(0, positions)
        return FactoredLogits(hidden, self.student.output_weight, self.student.output_bias)

    def _match_logits(
        self, student: Tapped, teacher: TeacherOutputs, batch: Batch, totals: Counts
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Terms `kd` and `temperature`, KL by language, and what trains a learnt temperature."""
        ours = self._student_logits(student, batch.kd_positions)
        share = len(batch.kd_positions) / totals.matched
        if teacher.hidden is None:
            assert teacher.top is not None
            self._require_constant_temperature()
            mean, kl_N = top_softened_kl(*ours, teacher.top, self.recipe.temperature, self.ops)
            return {"kd": mean * share}, sums_by_language(kl_N, batch, self.languages), None
        theirs = FactoredLogits(
            teacher.hidden, self.teacher.output_weight, self.teacher.output_bias
        )
        temperature = self.temperature(batch, theirs)
        mean, kl_N = self.ops.linear_softened_kl(*ours, *theirs, temperature, return_kl=True)
        terms = {"kd": mean * share}
        adversary = None
        if self.recipe.temperature_mode != "constant":
            summed = _sum_over(batch.kd_positions, temperature)
            terms["temperature"] = summed / totals.matched
        if self.recipe.temperature_mode == "learnt" and torch.is_grad_enabled():
            adversary = self.temperature.adversary(batch, ours, theirs) / totals.matched
        return terms, sums_by_language(kl_N, batch, self.languages), adversary

    def _require_constant_temperature(self) -> None:
        require(
            self.recipe.temperature_mode == "constant",
            "objective.temperature_mode",
            self.recipe.temperature_mode,
            "constant with a cache of the teacher's largest logits, whose others were summed at one temperature",
        )

    def _predict_masked(self, student: Tapped, batch: Batch, totals: Counts) -> Tensor:
        labels_M = batch.labels.flatten().index_select(0, batch.masked_positions)
        logits = self._student_logits(student, batch.masked_positions)
        return cross_entropy_sum(logits, labels_M) / totals.masked


def match_attention(
    student: Attention,
    teacher: TeacherOutputs,
    batch: Batch,
    totals: Counts,
    recipe: ObjectiveRecipe,
    projection: Projection,
    ops: ModuleType,
) -> Tensor:
    """The batch's share of the attention term.

    Args:
        student: query, key, value and scale of the layer that is trained.
        teacher: its map or relation, as the recipe asks.
        batch: what both read.
        totals: the counts of the whole step.
        recipe: which distance.
        projection: from the student's map to the teacher's.
        ops: `comet_kernels` or `comet_kernels.reference`.
    """
    if recipe.attention_loss == "relation":
        assert teacher.relation is not None
        ours = (student.query, student.key, student.value)
        divergence = relation_divergence(ours, teacher.relation, batch.mask, recipe.relation_heads)
        return divergence / totals.tokens
    assert teacher.attention_map is not None
    ours_map = ops.mean_attention(student.query, student.key, batch.mask, scale=student.scale)
    if recipe.attention_loss == "kl":
        return map_divergence(ours_map, teacher.attention_map) / totals.tokens
    squares = map_squares(
        ours_map, teacher.attention_map, batch.mask, projection, ops, batch.squared_lengths
    )
    return squares / (totals.tokens if recipe.attention_reduction == "row" else totals.pairs)


def sums_by_language(
    values_N: Tensor, batch: Batch, languages: int, counted_N: Tensor | None = None
) -> Tensor:
    """`[2, L]`: sums over each language's matched tokens (or those that count), and how many; without atomics."""
    rows_N = batch.kd_positions // batch.input_ids.shape[1]
    member_NL = nn.functional.one_hot(batch.languages[rows_N], languages).to(values_N.dtype)
    if counted_N is not None:
        member_NL = member_NL * counted_N[:, None]
    return torch.stack([values_N @ member_NL, member_NL.sum(0)])


def _sum_over(positions_N: Tensor, value: float | Tensor) -> Tensor:
    """The sum of a number per token, or of one number for all of them."""
    if isinstance(value, Tensor):
        return value.sum()
    return torch.full((), value * len(positions_N), device=positions_N.device)
