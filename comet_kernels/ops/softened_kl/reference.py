"""Softened KL divergence in plain torch: the definition, the tests' oracle, the unfused path.

Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531).
"""

from typing import Literal, overload

import torch
from torch.nn.functional import linear, log_softmax


@overload
def softened_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    return_kl: Literal[False] = False,
) -> torch.Tensor: ...


@overload
def softened_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    return_kl: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...


def softened_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    return_kl: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Mean over the chosen rows n of T_n² · KL( softmax(teacher / T_n) ‖ softmax(student / T_n) ).

    T² keeps the gradient's size independent of the temperature. A logit of −∞ in the teacher counts 0 (0 · log 0 = 0).

    Args:
        student_logits: [N, V], any floating dtype.
        teacher_logits: [N, V]; no gradient flows to it.
        temperature: a number, or [N].
        mask: [N] bool, true on chosen rows; what other rows hold does not matter. None: all rows.
        return_kl: also return every row's KL, without T² and as a constant [N], 0 on rows left out.

    Returns:
        A scalar in float32, in float64 for float64 logits; 0 where no row is chosen. With `return_kl` a pair.
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
    mass_NV = teacher_log_NV.exp()
    terms_NV = mass_NV * (teacher_log_NV - student_log_NV)
    terms_NV = torch.where(teacher_log_NV == -float("inf"), 0, terms_NV)
    # Σ q − Σ p is 0 but for rounding, which the logarithms share: it takes the place of what they are wrong by.
    rounding_N = student_log_NV.detach().exp().sub_(mass_NV).sum(-1)
    kl_N = terms_NV.sum(-1) + rounding_N
    kl_N = torch.where(kl_N < 0, kl_N - kl_N.detach(), kl_N)  # 0, with its gradient
    if mask is None:
        chosen: torch.Tensor | int = max(kl_N.shape[0], 1)
    else:
        kl_N, chosen = torch.where(mask, kl_N, 0), mask.sum().clamp(min=1)
    loss = (temperature_N1[:, 0] ** 2 * kl_N).sum() / chosen
    return (loss, kl_N.detach()) if return_kl else loss


@overload
def linear_softened_kl(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    return_kl: Literal[False] = False,
) -> torch.Tensor: ...


@overload
def linear_softened_kl(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    return_kl: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...


def linear_softened_kl(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: float | torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    return_kl: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
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
        return_kl: also return every row's KL, as `softened_kl` does.

    Returns:
        A scalar in float32, in float64 for float64 inputs; 0 where no row is chosen. With `return_kl` a pair.
    """
    if mask is not None:
        # 0 · NaN would be NaN in the weight's gradient.
        student_hidden = torch.where(mask[:, None], student_hidden, 0)
    with torch.no_grad():
        teacher_logits = linear(teacher_hidden, teacher_weight, teacher_bias)
    student_logits = linear(student_hidden, student_weight, student_bias)
    if return_kl:
        return softened_kl(student_logits, teacher_logits, temperature, mask, return_kl=True)
    return softened_kl(student_logits, teacher_logits, temperature, mask)
