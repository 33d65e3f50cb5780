"""The factorized projection in plain torch: the definition, the test oracle and the unfused path.

A learnable map of flattened S × S attention maps is an S² × S² matrix. Written as a sum of Kronecker products (Van Loan
and Pitsianis, "Approximation with Kronecker products", 1993) it becomes

    P(A) = Σ_k L_k A R_kᵀ,    k = 1 … K,

2 K S² numbers instead of S⁴.
"""

import torch

from comet_kernels.ops.launch import without_autocast


def factorized_projection(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """P(A)[b] = Σ_k L_k A_b R_kᵀ, in float32 (float64 for a float64 map) whatever autocast says.

    Args:
        map: [B, S, S] attention maps A.
        left: [K, S_max, S_max]; the leading S × S corner of each term counts.
        right: [K, S_max, S_max], likewise.

    Returns:
        [B, S, S].
    """
    dtype = torch.promote_types(map.dtype, torch.float32)
    size = map.shape[-1]
    with without_autocast(map.device):
        left_KSS = left[:, :size, :size].to(dtype)
        right_KSS = right[:, :size, :size].to(dtype)
        return torch.einsum("kip,bpq,kjq->bij", left_KSS, map.to(dtype), right_KSS)


def projected_mse(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Σ (P(A_student) − A_teacher)² over positions whose row and column are real, divided by their number.

    Args:
        student_map: [B, S, S].
        teacher_map: [B, S, S].
        left: [K, S_max, S_max].
        right: [K, S_max, S_max].
        mask: [B, S] bool, true on real tokens; None: every token is real.

    Returns:
        A scalar; 0 if no token is real.
    """
    difference = factorized_projection(student_map, left, right) - teacher_map
    if mask is None:
        mask = torch.ones(student_map.shape[:2], dtype=torch.bool, device=student_map.device)
    real_BSS = mask[:, :, None] & mask[:, None, :]
    squares = torch.where(real_BSS, difference, 0).square()
    return squares.sum() / real_BSS.sum().clamp(min=1)
