"""The factorized projection in plain torch, some samples and one term at a time: for devices without a kernel of ours.

Holds a few [samples, S, S] tensors at a time, `samples` as many as PIECE_BYTES allow, never one map per term and
sample.
"""

from collections.abc import Iterator

import torch

from comet_kernels.ops.factorized_projection.arguments import Gradients, Needs
from comet_kernels.ops.launch import without_autocast

PIECE_BYTES = 64 << 20


def forward(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """P(A), [B, S, S]."""
    output = torch.empty_like(map, memory_format=torch.contiguous_format)
    with without_autocast(map.device):
        for piece in _pieces(map):
            output[piece] = _project(map[piece], left, right)
    return output


def backward(
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    needs: Needs,
) -> Gradients:
    """dA, dL and dR for the gradient with respect to P(A); None where not needed."""
    found = _zeros(map, left, right, needs)
    with without_autocast(map.device):
        for piece in _pieces(map):
            _add_gradients(found, piece, gradient[piece], map[piece], left, right)
    return found


def mse(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None,
    needs: Needs,
) -> tuple[torch.Tensor, Gradients]:
    """The loss, and its gradients where needed."""
    found = _zeros(student_map, left, right, needs)
    loss = student_map.new_zeros(())
    batch, size, _ = student_map.shape
    positions = (
        loss + max(1, batch * size * size)
        if mask is None
        else mask.sum(1).square().sum().clamp(min=1)
    )
    with without_autocast(student_map.device):
        for piece in _pieces(student_map):
            difference = _project(student_map[piece], left, right) - teacher_map[piece]
            if mask is not None:
                real = mask[piece, :, None] & mask[piece, None, :]
                difference = torch.where(real, difference, 0)
            loss += difference.square().sum()
            if any(needs):
                slope = difference.mul_(2 / positions)
                _add_gradients(found, piece, slope, student_map[piece], left, right)
    return loss / positions, found


def _pieces(map: torch.Tensor) -> Iterator[slice]:
    batch, size, _ = map.shape
    samples = max(1, PIECE_BYTES // (4 * size * size))
    return (slice(first, min(batch, first + samples)) for first in range(0, batch, samples))


def _zeros(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, needs: Needs) -> Gradients:
    map_gradient, left_gradient, right_gradient = (
        torch.zeros_like(tensor, memory_format=torch.contiguous_format) if needed else None
        for tensor, needed in zip((map, left, right), needs, strict=True)
    )
    return map_gradient, left_gradient, right_gradient


def _project(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    size = map.shape[-1]
    output = torch.zeros_like(map)
    for L, R in zip(left[:, :size, :size], right[:, :size, :size], strict=True):
        output += L @ map @ R.mT
    return output


def _add_gradients(
    found: Gradients,
    piece: slice,
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
) -> None:
    """Add dA = Σ_k L_kᵀ D R_k, dL_k = Σ_b D R_k Aᵀ and dR_k = Σ_b Dᵀ L_k A of these samples."""
    size = map.shape[-1]
    map_gradient, left_gradient, right_gradient = found
    for k, (L, R) in enumerate(zip(left[:, :size, :size], right[:, :size, :size], strict=True)):
        if map_gradient is not None or left_gradient is not None:
            projected = gradient @ R
            if map_gradient is not None:
                map_gradient[piece] += L.mT @ projected
            if left_gradient is not None:
                left_gradient[k, :size, :size] += (projected @ map.mT).sum(0)
        if right_gradient is not None:
            right_gradient[k, :size, :size] += (gradient.mT @ (L @ map)).sum(0)
