"""Softened KL divergence in plain torch: the definition, the tests' oracle, the unfused path.

Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531).
"""

import torch
from torch.nn.functional import linear, log_softmax


def softened_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over the chosen rows n of T_n² · KL( softmax(teacher / T_n) ‖ softmax(student / T_n) ).

    T² keeps the gradient's size independent of the temperature. A logit of −∞ in the teacher counts 0 (0 · log 0 = 0).

    Args:
        student_logits: [N, V], any floating dtype.
        teacher_logits: [N, V]; no gradient flows to it.
        temperature: a number, or [N].
        mask: [N] bool, true on chosen rows; what other rows hold does not matter. None: all rows.

    Returns:
        A scalar in float32, in float64 for float64 logits; 0 where no row is chosen.
    """
    precision = torch.promote_types(student_logits.dtype, torch.float32)
    student_NV, teacher_NV = student_logits, teacher_logits.detach()
    if isinstance(temperature, torch.Tensor):
        temperature_N1 = temperature.detach().to(precision)[:, None]
    else:
        temperature_N1 = torch.full_like(student_NV[:, :1], temperature, dtype=precision)
    if mask is not None:
        chosen_N1 = mask[:, None]
        student_NV = torch.where(chosen_N1, student_NV, 0)
        teacher_NV = torch.where(chosen_N1, teacher_NV, 0)
        temperature_N1 = torch.where(chosen_N1, temperature_N1, 1)
    student_log_NV = log_softmax(student_NV.to(precision) / temperature_N1, -1)
    teacher_log_NV = log_softmax(teacher_NV.to(precision) / temperature_N1, -1)
    terms_NV = teacher_log_NV.exp() * (teacher_log_NV - student_log_NV)
    terms_NV = torch.where(teacher_log_NV == -float("inf"), 0, terms_NV)
    loss_N = temperature_N1[:, 0] ** 2 * terms_NV.sum(-1)
    if mask is None:
        return loss_N.sum() / max(loss_N.shape[0], 1)
    return torch.where(mask, loss_N, 0).sum() / mask.sum().clamp(min=1)


def linear_softened_kl(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`softened_kl` of the logits `hidden @ weight.T + bias` of both sides, which are held whole.

    Args:
        student_hidden: [N, Hs].
        student_weight: [V, Hs].
        student_bias: [V] or None.
        teacher_hidden: [N, Ht]; no gradient flows to any of the teacher's.
        teacher_weight: [V, Ht].
        teacher_bias: [V] or None.
        temperature: a number, or [N].
        mask: [N] bool, true on chosen rows. None: all rows.

    Returns:
        A scalar in float32, in float64 for float64 inputs; 0 where no row is chosen.
    """
    if mask is not None:
        # 0 · NaN would be NaN in the weight's gradient.
        student_hidden = torch.where(mask[:, None], student_hidden, 0)
    with torch.no_grad():
        teacher_logits = linear(teacher_hidden, teacher_weight, teacher_bias)
    student_logits = linear(student_hidden, student_weight, student_bias)
    return softened_kl(student_logits, teacher_logits, temperature, mask)
