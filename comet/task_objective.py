"""The objective of fine-tuning: cross-entropy of the labels; with a teacher, softened KL and a distance of attention.

    L = label_weight · L_labels + floor_weight · L_floor + α · L_kd + (1 − α) · L_att     the latter two with a teacher

    L_labels = mean over labelled texts or words n of w[y_n] · (−log softmax(s_n)[y_n])
    L_floor  = mean over texts n, also without a label, of KL(p_n ‖ softmax(s_n)), p_n as in `floor.py`
    L_kd     = mean over texts or words n of T² · KL(softmax(t_n / T) ‖ softmax(s_n / T))          Hinton et al., 2015
    L_att    = as in `objective.py`

Balanced weights are w[c] = N / (L · N_c) (King and Zeng, 2001), whose mean over the training labels is 1, so that the
sum is divided by N as without weights and no split of a step changes it.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from comet.attention_losses import require_divisor
from comet.batch import Batch, Counts, StepLosses, TeacherOutputs, total_counts
from comet.finetune_recipe import TaskObjectiveRecipe
from comet.masking import IGNORED_LABEL
from comet.objective import match_attention, sums_by_language
from comet.projections import Identity
from comet.task_model import TaskEncoder
from comet.teachers import needed_parts


class TaskTeacher:
    """A frozen model, fine-tuned on the same task, that reads every batch.

    Args:
        encoder: put into evaluation mode.
        recipe: says what of it the loss needs.
        ops: `comet_kernels` or `comet_kernels.reference`.

    Raises:
        ValueError: its width cannot be cut into the recipe's relation heads.
    """

    def __init__(self, encoder: TaskEncoder, recipe: TaskObjectiveRecipe, ops: ModuleType) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.parts = needed_parts(recipe.matching())
        self.ops = ops
        if self.parts.relation_heads is not None:
            require_divisor(self.parts.relation_heads, encoder.width, "teacher")

    @torch.no_grad()
    def read(self, batch: Batch) -> tuple[Tensor, TeacherOutputs]:
        """Logits `[N, L]` at the labelled positions, and what the attention term needs."""
        logits, attention = self.encoder(batch)
        if attention is None:
            return logits, TeacherOutputs()
        if self.parts.relation_heads is not None:
            relation = (attention.query, attention.key, attention.value)
            return logits, TeacherOutputs(relation=relation)
        attention_map = self.ops.mean_attention(
            attention.query, attention.key, batch.mask, scale=attention.scale
        )
        return logits, TeacherOutputs(attention_map=attention_map)


class TaskLearner(nn.Module):
    """The model that is fine-tuned and its objective as one module whose forward returns the loss.

    Args:
        encoder: trained.
        recipe: weights and options.
        ops: `comet_kernels` or `comet_kernels.reference`.
        class_weights: `[L]` float32; None where all labels count alike.
        teacher: imitated; kept out of this module's parameters.
        languages: how many there are.

    Raises:
        ValueError: its width cannot be cut into the recipe's relation heads.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        encoder: TaskEncoder,
        recipe: TaskObjectiveRecipe,
        ops: ModuleType,
        *,
        class_weights: Tensor | None = None,
        teacher: TaskTeacher | None = None,
        languages: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.recipe = recipe
        self.matching = recipe.matching()
        self.ops = ops
        self.languages = languages
        self.projection = Identity()
        self._teacher = (teacher,)
        self.register_buffer("class_weights", class_weights, persistent=False)
        heads = needed_parts(self.matching).relation_heads
        if teacher is not None and heads is not None:
            require_divisor(heads, encoder.width, "student")

    @property
    def teacher(self) -> TaskTeacher | None:
        """The frozen teacher; not a submodule, so neither optimizer nor checkpoint sees it."""
        return self._teacher[0]

    def forward(self, batch: Batch, totals: Counts | None = None) -> StepLosses:
        """Shares of the step's losses.

        Args:
            batch: a piece of a step's batch, or all of it.
            totals: the counts of the whole step; None where the batch is all of it.

        Returns:
            `terms` has `labels`, `floor`, `kd` and `attention` where their weight is not 0, or nothing where there are
            but labels; `by_language` is of the cross-entropy, or of the KL to the teacher, without T², where the labels
            have no weight.
        """
        totals = total_counts([batch]) if totals is None else totals
        logits_NL, attention = self.encoder(batch)
        logits_NL = logits_NL.float()
        weights = {
            "labels": self.recipe.label_weight,
            "floor": self.recipe.floor_weight,
            "kd": self.recipe.alpha,
            "attention": 1 - self.recipe.alpha,
        }
        terms: dict[str, Tensor] = {}
        labels_N = batch.labels.flatten().index_select(0, batch.kd_positions)
        labelled_N: Tensor | None = labels_N != IGNORED_LABEL
        of_labels, losses_N = self._predict_labels(logits_NL, labels_N, totals)
        if weights["labels"]:
            terms["labels"] = of_labels
        if weights["floor"]:
            terms["floor"] = self._imitate_floor(logits_NL, batch, totals)
        if self.teacher is not None:
            theirs_NL, outputs = self.teacher.read(batch)
            if weights["kd"]:
                mean, kl_N = self.ops.softened_kl(
                    logits_NL, theirs_NL.float(), self.recipe.temperature, return_kl=True
                )
                terms["kd"] = mean * (len(batch.kd_positions) / totals.matched)
                if not weights["labels"]:
                    losses_N, labelled_N = kl_N.detach(), None
            if weights["attention"]:
                assert attention is not None
                terms["attention"] = match_attention(
                    attention, outputs, batch, totals, self.matching, self.projection, self.ops
                )
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return StepLosses(
            total,
            {} if terms.keys() == {"labels"} else terms,
            sums_by_language(losses_N, batch, self.languages, labelled_N),
        )

    def _imitate_floor(self, logits_NL: Tensor, batch: Batch, totals: Counts) -> Tensor:
        """The share of the mean KL to the soft labels."""
        assert batch.soft_labels is not None, "one matched position a sequence, so N = B"
        return _kl_to(batch.soft_labels, logits_NL) / totals.matched

    def _predict_labels(
        self, logits_NL: Tensor, labels_N: Tensor, totals: Counts
    ) -> tuple[Tensor, Tensor]:
        """The share of the mean cross-entropy, weighted, and that of every position, unweighted; 0 without a label."""
        losses_N = nn.functional.cross_entropy(
            logits_NL, labels_N, ignore_index=IGNORED_LABEL, reduction="none"
        )
        weighted_N = losses_N
        if self.class_weights is not None:
            weighted_N = losses_N * self.class_weights[labels_N.clamp(min=0)]
        return weighted_N.sum() / totals.masked, losses_N.detach()


def _kl_to(soft_NL: Tensor, logits_NL: Tensor) -> Tensor:
    """Σ_n KL(p_n ‖ softmax(s_n)); a label of probability 0 counts nothing."""
    return nn.functional.kl_div(logits_NL.log_softmax(-1), soft_NL, reduction="sum")


def balanced_weights(labels: Sequence[int], count: int) -> Tensor:
    """`[L]` float32: N / (L · N_c) for each of `count` labels; 0 for one that is never there.

    Args:
        labels: of all training positions.
        count: L; a label that is never there is not counted.
    """
    numbers = torch.bincount(torch.tensor(labels), minlength=count).double()
    present = numbers > 0
    weights = numbers.sum() / (present.sum() * numbers.clamp(min=1))
    return torch.where(present, weights, 0.0).float()
