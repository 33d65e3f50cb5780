"""The factorized projection on a GPU: csrc's CUDA; where that cannot be had, plain torch in pieces."""

import functools
import warnings

import torch

from comet_kernels import native
from comet_kernels.ops.factorized_projection import pieces
from comet_kernels.ops.factorized_projection.arguments import (
    Gradients,
    Needs,
    address,
    call,
    rooms,
    sizes,
)
from comet_kernels.ops.launch import products_in_tf32

FLOAT32, TF32, BFLOAT16 = range(3)  # csrc's Precision


def forward(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, in_bfloat16: bool
) -> torch.Tensor:
    """P(A), [B, S, S]."""
    if not _usable():
        return pieces.forward(map, left, right)
    map, left, right = map.contiguous(), left.contiguous(), right.contiguous()
    output = torch.empty_like(map)
    with torch.cuda.device(map.device):
        workspace = _workspace(map, left, (False, False, False))
        native.library().cuda_factorized_projection_forward(
            *call(map, left, right), output.data_ptr(), *_how(workspace, in_bfloat16)
        )
    return output


def backward(
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    needs: Needs,
    in_bfloat16: bool,
) -> Gradients:
    """dA, dL and dR for the gradient with respect to P(A); None where not needed."""
    if not _usable():
        return pieces.backward(gradient, map, left, right, needs)
    gradient, map = gradient.contiguous(), map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    found = rooms(map, left, right, needs)
    with torch.cuda.device(map.device):
        workspace = _workspace(map, left, needs)
        native.library().cuda_factorized_projection_backward(
            *call(map, left, right),
            gradient.data_ptr(),
            *(address(g) for g in found),
            *_how(workspace, in_bfloat16),
        )
    return found


def mse(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None,
    needs: Needs,
    in_bfloat16: bool,
) -> tuple[torch.Tensor, Gradients]:
    """The loss, and its gradients where needed."""
    if not _usable():
        return pieces.mse(student_map, teacher_map, left, right, mask, needs)
    student_map, teacher_map = student_map.contiguous(), teacher_map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    mask = None if mask is None else mask.contiguous()
    loss = student_map.new_empty(())
    found = rooms(student_map, left, right, needs)
    with torch.cuda.device(student_map.device):
        workspace = _workspace(student_map, left, needs)
        native.library().cuda_projected_mse(
            *(address(tensor) for tensor in (student_map, teacher_map, left, right, mask)),
            *sizes(student_map, left),
            loss.data_ptr(),
            *(address(g) for g in found),
            *_how(workspace, in_bfloat16),
        )
    return loss, found


def _workspace(map: torch.Tensor, left: torch.Tensor, needs: Needs) -> torch.Tensor:
    """Must live until the call returns; what is freed then is only used again later on the same stream."""
    terms, _, batch, size = sizes(map, left)
    count = native.library().cuda_projection_workspace_bytes(terms, batch, size, *needs)
    return torch.empty(count, dtype=torch.uint8, device=map.device)


def _how(workspace: torch.Tensor, in_bfloat16: bool) -> tuple[int, int, int]:
    """The arguments with which the extension's CUDA functions end: workspace, precision and stream."""
    device = workspace.device
    precision = BFLOAT16 if in_bfloat16 else TF32 if products_in_tf32(device) else FLOAT32
    return workspace.data_ptr(), precision, torch.cuda.current_stream(device).cuda_stream


@functools.cache
def _usable() -> bool:
    """Whether csrc's CUDA serves GPUs here; if not, says once why, and what to do about it."""
    why_not = _why_not()
    if why_not is not None:
        warnings.warn(
            f"factorized_projection runs in plain torch, one term at a time: {why_not}",
            stacklevel=2,
        )
    return why_not is None


def _why_not() -> str | None:
    if torch.version.hip is not None:
        return (
            "comet_kernels has its kernels for NVIDIA GPUs only, not for ROCm. "
            "The results are the same and memory stays small; only time is lost"
        )
    try:
        native.library()
    except RuntimeError as error:
        return f"{error}, and nvcc with COMET_CUDA=1 for its CUDA kernels"
    if not native.has_cuda():
        return (
            "comet_kernels' C++ extension was built without CUDA. "
            "Build it where nvcc is found: COMET_CUDA=1 pip install -e ."
        )
    return None
