"""What a step reads: token ids with their masks, and the counts that losses are averaged over.

A batch of a step may be split over processes and over pieces that follow one another (gradient accumulation). Each
piece contributes sums; they are divided by the counts of the whole step, so that neither split changes the loss.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Three = tuple[Tensor, Tensor, Tensor]


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
        relation: query, key and value `[B, H, S, D]` of the tapped layer; None where no relations are matched.
    """

    attention_map: Tensor | None = None
    hidden: Tensor | None = None
    top: Three | None = None
    relation: Three | None = None

    def to(self, device: torch.device) -> "TeacherOutputs":
        """The same on a device."""
        return TeacherOutputs(
            _move(self.attention_map, device),
            _move(self.hidden, device),
            _each(self.top, lambda value: value.to(device, non_blocking=True)),
            _each(self.relation, lambda value: value.to(device, non_blocking=True)),
        )


@dataclass(frozen=True)
class Batch:
    """Sequences as both models read them.

    Attributes:
        input_ids: `[B, S]` int64, masked as in MLM training.
        mask: `[B, S]` bool, true on real tokens; None when nothing is padded.
        kd_positions: `[N]` int64, the tokens whose logits are matched: ascending positions in the flattened `[B · S]`.
        masked_positions: `[M]` int64, the tokens that were chosen for masking, likewise.
        labels: `[B, S]` int64, the original id where a token was chosen for masking, −100 elsewhere.
        languages: `[B]` int64, the language of each sequence: its place in the corpus's alphabetical list.
        tokens: how many tokens are real.
        squared_lengths: Σ_b n_b², the number of real pairs of tokens.
        teacher: what the teacher said to this batch, where that comes from a cache.
        soft_labels: `[B, L]` float32, the probability of each label of a sequence, where those are imitated.
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
    soft_labels: Tensor | None = None

    @property
    def counts(self) -> Counts:
        """What this batch alone is averaged over."""
        return Counts(
            self.tokens, self.squared_lengths, len(self.kd_positions), len(self.masked_positions)
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        moved: dict[str, Any] = {
            field.name: _move(getattr(self, field.name), device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        teacher = None if self.teacher is None else self.teacher.to(device)
        return replace(self, **moved, teacher=teacher)


def summed_counts(batches: Iterable[Batch]) -> Counts:
    """Counts of several micro-batches together. May be 0: sum over all processes before anything is divided by them."""
    return Counts(*map(sum, zip(*(batch.counts for batch in batches), strict=True)))


def total_counts(batches: Iterable[Batch]) -> Counts:
    """Counts of a whole step, each at least 1, so that an empty sum over them is 0."""
    return Counts(*(max(number, 1) for number in summed_counts(batches)))


def piece_of(batch: Batch, rows: slice) -> Batch:
    """Some sequences of a batch, with what the teacher said to them; the padded length stays.

    Args:
        batch: on any device.
        rows: which sequences, such as `slice(r, None, n)` for the r-th of n pieces.
    """
    sequences, length = batch.input_ids.shape
    kept = torch.arange(sequences, device=batch.input_ids.device)[rows]
    place_B = torch.full_like(batch.languages, -1)
    place_B[kept] = torch.arange(len(kept), device=kept.device)

    def among_kept(positions: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions lie in kept sequences, and where those lie in the piece."""
        place = place_B[positions // length]
        return place >= 0, (place * length + positions % length)[place >= 0]

    matched_N, kd_positions = among_kept(batch.kd_positions)
    mask = None if batch.mask is None else batch.mask[rows]
    lengths = [length] * len(kept) if mask is None else mask.sum(1).tolist()
    return Batch(
        input_ids=batch.input_ids[rows],
        mask=mask,
        kd_positions=kd_positions,
        masked_positions=among_kept(batch.masked_positions)[1],
        labels=batch.labels[rows],
        languages=batch.languages[rows],
        tokens=sum(lengths),
        squared_lengths=sum(n * n for n in lengths),
        teacher=None if batch.teacher is None else _outputs_of(batch.teacher, rows, matched_N),
        soft_labels=None if batch.soft_labels is None else batch.soft_labels[rows],
    )


def _outputs_of(teacher: TeacherOutputs, rows: slice, matched_N: Tensor) -> TeacherOutputs:
    map_BSS, hidden_NE, top = teacher.attention_map, teacher.hidden, teacher.top
    return TeacherOutputs(
        attention_map=None if map_BSS is None else map_BSS[rows],
        hidden=None if hidden_NE is None else hidden_NE[matched_N],
        top=_each(top, lambda values_N: values_N[matched_N]),
        relation=_each(teacher.relation, lambda values_BHSD: values_BHSD[rows]),
    )


class StepLosses(NamedTuple):
    """What a module's forward returns to the training loop, one piece's share of the step.

    Attributes:
        total: scalar, to be minimised: this piece's sums over the counts of the whole step.
        terms: scalars by name, before weighting, likewise shares.
        by_language: `[2, L]`, sums of the first term (or the loss that has none) over each language's tokens, and how
            many those are; None if the module does not tell languages apart.
    """

    total: Tensor
    terms: dict[str, Tensor]
    by_language: Tensor | None


def added(shares: Sequence[StepLosses]) -> StepLosses:
    """The sum of the pieces' shares, detached."""
    by_language = [share.by_language for share in shares if share.by_language is not None]
    return StepLosses(
        total=torch.stack([share.total.detach() for share in shares]).sum(),
        terms={
            name: torch.stack([share.terms[name].detach() for share in shares]).sum()
            for name in shares[0].terms
        },
        by_language=torch.stack(by_language).sum(0) if by_language else None,
    )


def _move(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device, non_blocking=True)


def _each(three: Three | None, function: Callable[[Tensor], Tensor]) -> Three | None:
    return None if three is None else (function(three[0]), function(three[1]), function(three[2]))
