"""What a step reads: token ids with their masks, and the counts that losses are averaged over.

A batch of a step may be split over processes and over pieces that follow one another (gradient accumulation). Each
piece contributes sums; they are divided by the counts of the whole step, so that neither split changes the loss.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """What sums are divided by: numbers of one piece, or 0-dimensional tensors on the device for a whole step.

    Attributes:
        tokens: real tokens, Σ_b n_b.
        pairs: real pairs of tokens, Σ_b n_b².
        matched: tokens whose logits are matched.
        masked: tokens that were chosen for masking.
    """

    tokens: int | Tensor
    pairs: int | Tensor
    matched: int | Tensor
    masked: int | Tensor


@dataclass(frozen=True)
class TeacherOutputs:
    """What the loss needs of the teacher for one batch.

    Attributes:
        attention_map: `[B, S, S]` float32, averaged over heads; None where no attention term asks for it.
        hidden: `[N, E]`, the input of the output embeddings at the matched tokens; None if `top` is there.
        top: the largest logits `[N, K]`, their pieces `[N, K]` int64, and the log-sum-exp of all others at the run's
            temperature `[N]`, in place of `hidden`.
    """

    attention_map: Tensor | None = None
    hidden: Tensor | None = None
    top: tuple[Tensor, Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> "TeacherOutputs":
        """The same on a device."""
        moved = None if self.top is None else tuple(_move(one, device) for one in self.top)
        return TeacherOutputs(
            _move(self.attention_map, device),
            _move(self.hidden, device),
            moved,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Batch:
    """Sequences as both models read them.

    Attributes:
        input_ids: `[B, S]` int64, masked as in MLM training.
        mask: `[B, S]` bool, true on real tokens; None when nothing is padded.
        kd_positions: `[N]` int64, the tokens whose logits are matched, as positions in the flattened `[B · S]`.
        masked_positions: `[M]` int64, the tokens that were chosen for masking, likewise.
        labels: `[B, S]` int64, the original id where a token was chosen for masking, −100 elsewhere.
        languages: `[B]` int64, the language of each sequence: its place in the corpus's alphabetical list.
        tokens: how many tokens are real.
        squared_lengths: Σ_b n_b², the number of real pairs of tokens.
        teacher: what the teacher said to this batch, where that comes from a cache.
    """

    input_ids: Tensor
    mask: Tensor | None
    kd_positions: Tensor
    masked_positions: Tensor
    labels: Tensor
    languages: Tensor
    tokens: int
    squared_lengths: int
    teacher: TeacherOutputs | None = None

    @property
    def counts(self) -> Counts:
        """What this batch alone is averaged over."""
        return Counts(
            self.tokens, self.squared_lengths, len(self.kd_positions), len(self.masked_positions)
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        moved = {
            field.name: _move(getattr(self, field.name), device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        teacher = None if self.teacher is None else self.teacher.to(device)
        return replace(self, **moved, teacher=teacher)


class StepLosses(NamedTuple):
    """What a module's forward returns to the training loop, one piece's share of the step.

    Attributes:
        total: scalar, to be minimised: this piece's sums over the counts of the whole step.
        terms: scalars by name, before weighting, likewise shares.
        by_language: `[2, L]`, sums of the first term over each language's tokens, and how many those are; None if the
            module does not tell languages apart.
    """

    total: Tensor
    terms: dict[str, Tensor]
    by_language: Tensor | None


def _move(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device, non_blocking=True)
