"""How the student's attention is compared with the teacher's: sums over a piece of a step's batch.

`map_squares` and `map_divergence` compare maps that are averaged over heads, `relation_divergence` compares how alike
the queries, keys and values of a sequence are to one another. Heads and widths of the two models may differ.
"""

from types import ModuleType

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from comet.batch import Three
from comet.configuration import require
from comet.projections import Projection

LEAST_PROBABILITY = 1e-30  # its inverse, and that times a scaled loss, is a number in float32
RELATION_BYTES = 256 << 20  # what the relations of a piece and all that is computed from them take
COPIES = 12  # float32 numbers per entry of a relation at the time when most are held


def map_squares(
    student_map: Tensor,
    teacher_map: Tensor,
    mask: Tensor | None,
    projection: Projection,
    ops: ModuleType,
    pairs: int,
) -> Tensor:
    """Σ_{b, i, j real} ( P(A_student)[b,i,j] − A_teacher[b,i,j] )², of AfroXLMR-Comet (arXiv 2502.18020).

    Args:
        student_map: `[B, S, S]`.
        teacher_map: `[B, S, S]`.
        mask: `[B, S]` bool, true on real tokens, or None when all are.
        projection: P.
        ops: `comet_kernels` or `comet_kernels.reference`.
        pairs: how many real (b, i, j) there are.
    """
    return projection.loss(student_map, teacher_map, mask, ops) * pairs


def map_divergence(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Σ_{b, i real} KL( A_teacher[b,i] ‖ A_student[b,i] ), MiniLM's transfer of attention (Wang et al., 2020).

    MiniLM (arXiv 2002.10957) compares head by head; here maps are averaged over heads first, as heads may differ in
    number. A row of a map is a distribution over real keys; rows and columns of padding are 0 and add nothing. Summed
    as Σ_j t log(t / s) − t + s, which is the same where rows sum to 1 and does not round below 0 where they nearly
    agree; its gradient to a row differs by a constant, which that of softmax cancels.

    Args:
        student_map: `[B, S, S]`.
        teacher_map: `[B, S, S]`.
    """
    least = student_map.clamp(min=LEAST_PROBABILITY)
    excess = teacher_map - least
    ratio = torch.where(teacher_map > 0, excess / least, 0)
    return (teacher_map * ratio.log1p() - (teacher_map - student_map)).sum().clamp(min=0)


def relation_divergence(student: Three, teacher: Three, mask: Tensor | None, heads: int) -> Tensor:
    """Σ_{x in q, k, v} Σ_{b, i real} (1/R) Σ_r KL( T_x[b,r,i] ‖ S_x[b,r,i] ), MiniLMv2's relations.

        T_x[b, r, i] = softmax_j( x[b,r,i] · x[b,r,j] / √d ) over real keys j,  d = width / R, and S_x likewise

    Wang et al., 2021 (arXiv 2012.15828): the heads of a query, key or value are joined and cut into R relation heads,
    so that the two models need neither the same heads nor the same width. Computed in float32 for some samples at a
    time, and again for their gradient.

    Args:
        student: query, key and value, each `[B, H, S, D]`.
        teacher: likewise, with heads and width of its own; constants.
        mask: `[B, S]` bool, true on real tokens, or None when all are.
        heads: R.

    Raises:
        ValueError: R does not divide one of the widths H · D.
    """
    for role, three in (("student", student), ("teacher", teacher)):
        require_divisor(heads, three[0].shape[1] * three[0].shape[3], role)
    samples, length = student[0].shape[0], student[0].shape[2]
    step = max(1, RELATION_BYTES // (COPIES * 4 * heads * length**2))
    summed = [
        checkpoint(
            _relation_divergence,
            ours[start : start + step],
            theirs[start : start + step],
            None if mask is None else mask[start : start + step],
            heads,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for ours, theirs in zip(student, teacher, strict=True)
        for start in range(0, samples, step)
    ]
    return torch.stack(summed).sum()


def require_divisor(heads: int, width: int, role: str) -> None:
    """Require that a model's width can be cut into this many relation heads.

    Raises:
        ValueError: it cannot.
    """
    require(
        width % heads == 0,
        "objective.relation_heads",
        heads,
        f"a divisor of the {role}'s width {width}",
    )


def _relation_divergence(
    student_BHSD: Tensor, teacher_BHSD: Tensor, mask: Tensor | None, heads: int
) -> Tensor:
    with torch.autocast(student_BHSD.device.type, enabled=False):
        logs = _log_relation(student_BHSD, mask, heads)
        with torch.no_grad():
            teacher_logs = _log_relation(teacher_BHSD, mask, heads)
        terms_BRSS = _divergence_terms(teacher_logs, logs)
        if mask is not None:
            pairs = mask[:, None, :, None] & mask[:, None, None, :]
            terms_BRSS = torch.where(pairs, terms_BRSS, 0)
        return terms_BRSS.sum().clamp(min=0) / heads


def _divergence_terms(teacher_logs: Tensor, logs: Tensor) -> Tensor:
    """t log(t / s) − t + s of each entry, exact also where the two nearly agree; its sum over a row is the KL."""
    difference = teacher_logs - logs
    near = difference.clamp(-1, 1)
    mass = teacher_logs.exp()
    return torch.where(
        difference == near,
        mass * (near + (-near).expm1()),
        mass * (difference - 1) + logs.exp(),
    )


def _log_relation(vectors_BHSD: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """`[B, R, S, S]`, the logarithm of a relation."""
    joined_BSE = vectors_BHSD.transpose(1, 2).flatten(2)
    joined_BSE = joined_BSE.to(torch.promote_types(joined_BSE.dtype, torch.float32))
    cut_BRSd = joined_BSE.unflatten(2, (heads, -1)).transpose(1, 2)
    scores_BRSS = cut_BRSd @ cut_BRSd.transpose(-1, -2) * cut_BRSd.shape[-1] ** -0.5
    if mask is not None:
        lowest = torch.finfo(scores_BRSS.dtype).min
        scores_BRSS = scores_BRSS.masked_fill(~mask[:, None, None, :], lowest)
    return scores_BRSS.log_softmax(-1)
