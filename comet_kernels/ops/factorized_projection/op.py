"""`factorized_projection` and `projected_mse` as torch ops: schema, checks, one implementation per device, autograd.

`projected_mse` computes its gradients together with the loss, while P(A) is at hand; backward only scales them.
"""

import functools
import warnings

import torch
from torch.autograd.function import once_differentiable

from comet_kernels import native
from comet_kernels.checks import (
    expect,
    expect_floating,
    expect_mask,
    expect_same_device,
    expect_shape,
)
from comet_kernels.ops.factorized_projection import pieces

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _call(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> tuple[int, ...]:
    """The arguments with which the extension's functions on P(A) begin."""
    return map.data_ptr(), left.data_ptr(), right.data_ptr(), *_sizes(map, left)


def _sizes(map: torch.Tensor, left: torch.Tensor) -> tuple[int, int, int, int]:
    """K, S_max, B and S."""
    return left.shape[0], left.shape[1], map.shape[0], map.shape[1]


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rooms(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, needs: pieces.Needs
) -> pieces.Gradients:
    """Unwritten gradients, None where not needed."""
    first, second, third = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed else None
        for tensor, needed in zip((map, left, right), needs, strict=True)
    )
    return first, second, third


def _present(found: pieces.Gradients, like: torch.Tensor) -> Three:
    """An op returns tensors only: an empty one stands for None."""
    first, second, third = (like.new_empty(0) if g is None else g for g in found)
    return first, second, third


def _on_cuda(
    map: torch.Tensor, left: torch.Tensor, needs: pieces.Needs
) -> tuple[torch.Tensor, int, int]:
    """Workspace, device and stream of a CUDA call. The workspace must live until the call returns."""
    terms, _, batch, size = _sizes(map, left)
    count = native.library().cuda_projection_workspace_bytes(terms, batch, size, *needs)
    workspace = torch.empty(count, dtype=torch.uint8, device=map.device)
    return workspace, map.get_device(), torch.cuda.current_stream(map.device).cuda_stream


@functools.cache
def _use_cuda_kernels() -> bool:
    """Whether csrc's CUDA serves this device; says once what to do if it could but was not compiled."""
    if torch.version.hip is not None:
        return False
    if not native.has_cuda():
        warnings.warn(
            "comet_kernels was built without CUDA: factorized_projection runs in plain torch, one term at a time. "
            "Build it where nvcc is found: COMET_CUDA=1 pip install -e .",
            stacklevel=2,
        )
        return False
    return True


@torch.library.custom_op("comet::factorized_projection", mutates_args=())
def _forward(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return pieces.forward(map, left, right)


@_forward.register_kernel("cpu")
def _forward_cpu(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    map, left, right = map.contiguous(), left.contiguous(), right.contiguous()
    output = torch.empty_like(map)
    native.library().factorized_projection_forward(
        *_call(map, left, right), output.data_ptr(), torch.get_num_threads()
    )
    return output


@_forward.register_kernel("cuda")
def _forward_cuda(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if not _use_cuda_kernels():
        return pieces.forward(map, left, right)
    map, left, right = map.contiguous(), left.contiguous(), right.contiguous()
    output = torch.empty_like(map)
    workspace, device, stream = _on_cuda(map, left, (False, False, False))
    native.library().cuda_factorized_projection_forward(
        *_call(map, left, right), output.data_ptr(), workspace.data_ptr(), device, stream
    )
    return output


@_forward.register_fake
def _forward_fake(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return map.new_empty(map.shape)


@torch.library.custom_op("comet::factorized_projection_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Three:
    """dA, dL and dR; an empty tensor for each that is not needed."""
    needs = (map_needs, left_needs, right_needs)
    return _present(pieces.backward(gradient, map, left, right, needs), map)


@_backward.register_kernel("cpu")
def _backward_cpu(
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Three:
    gradient, map = gradient.contiguous(), map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    found = _rooms(map, left, right, (map_needs, left_needs, right_needs))
    native.library().factorized_projection_backward(
        *_call(map, left, right),
        gradient.data_ptr(),
        *(_address(g) for g in found),
        torch.get_num_threads(),
    )
    return _present(found, map)


@_backward.register_kernel("cuda")
def _backward_cuda(
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Three:
    needs = (map_needs, left_needs, right_needs)
    if not _use_cuda_kernels():
        return _present(pieces.backward(gradient, map, left, right, needs), map)
    gradient, map = gradient.contiguous(), map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    found = _rooms(map, left, right, needs)
    workspace, device, stream = _on_cuda(map, left, needs)
    native.library().cuda_factorized_projection_backward(
        *_call(map, left, right),
        gradient.data_ptr(),
        *(_address(g) for g in found),
        workspace.data_ptr(),
        device,
        stream,
    )
    return _present(found, map)


@_backward.register_fake
def _backward_fake(
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Three:
    return _present(_rooms(map, left, right, (map_needs, left_needs, right_needs)), map)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    found = _backward(gradient, *ctx.saved_tensors, *needs)
    return tuple(g if needed else None for g, needed in zip(found, needs, strict=True))


_forward.register_autograd(_differentiate, setup_context=_remember)


@torch.library.custom_op("comet::projected_mse", mutates_args=())
def _mse(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Four:
    """The loss and its gradients dA, dL and dR; an empty tensor for each that is not needed."""
    needs = (map_needs, left_needs, right_needs)
    loss, found = pieces.mse(student_map, teacher_map, left, right, mask, needs)
    return loss, *_present(found, student_map)


@_mse.register_kernel("cpu")
def _mse_cpu(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Four:
    student_map, teacher_map = student_map.contiguous(), teacher_map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    mask = None if mask is None else mask.contiguous()
    loss = student_map.new_empty(())
    found = _rooms(student_map, left, right, (map_needs, left_needs, right_needs))
    native.library().projected_mse(
        *(_address(tensor) for tensor in (student_map, teacher_map, left, right, mask)),
        *_sizes(student_map, left),
        loss.data_ptr(),
        *(_address(g) for g in found),
        torch.get_num_threads(),
    )
    return loss, *_present(found, student_map)


@_mse.register_kernel("cuda")
def _mse_cuda(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Four:
    needs = (map_needs, left_needs, right_needs)
    if not _use_cuda_kernels():
        loss, missing = pieces.mse(student_map, teacher_map, left, right, mask, needs)
        return loss, *_present(missing, student_map)
    student_map, teacher_map = student_map.contiguous(), teacher_map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    mask = None if mask is None else mask.contiguous()
    loss = student_map.new_empty(())
    found = _rooms(student_map, left, right, needs)
    workspace, device, stream = _on_cuda(student_map, left, needs)
    native.library().cuda_projected_mse(
        *(_address(tensor) for tensor in (student_map, teacher_map, left, right, mask)),
        *_sizes(student_map, left),
        loss.data_ptr(),
        *(_address(g) for g in found),
        workspace.data_ptr(),
        device,
        stream,
    )
    return loss, *_present(found, student_map)


@_mse.register_fake
def _mse_fake(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
) -> Four:
    found = _rooms(student_map, left, right, (map_needs, left_needs, right_needs))
    return student_map.new_empty(()), *_present(found, student_map)


def _keep_gradients(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.needs = inputs[-3:]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    # Or backward would be handed a gradient of zeros for each of them.
    ctx.set_materialize_grads(False)


@once_differentiable
def _scale_gradients(ctx, gradient, *_):  # type: ignore[no-untyped-def]
    map_gradient, left_gradient, right_gradient = (
        kept * gradient if needed else None
        for kept, needed in zip(ctx.saved_tensors, ctx.needs, strict=True)
    )
    return map_gradient, None, left_gradient, right_gradient, None, None, None, None


_mse.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def _check(name: str, map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    expect(map.dim() == 3, name, f"{map.dim()} dimensions", "3: [B, S, S]")
    size, columns = map.shape[1:]
    expect(size == columns and size > 0, name, f"shape {list(map.shape)}", "square maps: [B, S, S]")
    expect_floating(name, map)
    expect(left.dim() == 3, "left", f"{left.dim()} dimensions", "3: [K, S_max, S_max]")
    terms, largest, columns = left.shape
    expect(
        terms > 0 and largest == columns, "left", f"shape {list(left.shape)}", "[K, S_max, S_max]"
    )
    expect_shape("right", right, (terms, largest, largest), "[K, S_max, S_max] of left")
    expect(size <= largest, name, f"S = {size}", f"at most S_max = {largest} of left")
    for argument, tensor in (("left", left), ("right", right)):
        expect_floating(argument, tensor)
        expect_same_device(argument, tensor, map, name)


def factorized_projection(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """A learnable linear map of attention maps, a sum of K Kronecker products: P(A)[b] = Σ_k L_k A_b R_kᵀ.

    Computed and returned in float32 whatever the dtypes and autocast say. Differentiable once, with respect to all
    three arguments; gradients that nobody needs are not computed. Holds 2 K S² numbers for a few samples at a time,
    never K·B·S·S, and gives the same bits for the same input.

    Args:
        map: [B, S, S] attention maps A, float32, bfloat16 or float16, any strides.
        left: [K, S_max, S_max], S ≤ S_max; the leading S × S corner of each term counts.
        right: [K, S_max, S_max], likewise.

    Returns:
        [B, S, S] float32.

    Raises:
        ValueError: a wrong shape, dtype or device; the message names the argument.
        RuntimeError: on the CPU, if the C++ extension is not built.
    """
    _check("map", map, left, right)
    output: torch.Tensor = _forward(map.float(), left.float(), right.float())
    return output


def projected_mse(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of projected attention maps: Σ (P(A_student) − A_teacher)² / Σ_b n_b².

    The sum runs over positions whose row and column are real tokens, n_b of them in sample b. P as in
    `factorized_projection`, with the same precision, memory and limits. Gradient to student_map, left and right.

    Args:
        student_map: [B, S, S], float32, bfloat16 or float16, any strides.
        teacher_map: [B, S, S], likewise; gets no gradient.
        left: [K, S_max, S_max], S ≤ S_max.
        right: [K, S_max, S_max].
        mask: [B, S] bool, true on real tokens. None: every token is real. What the teacher's map holds at padding does
            not matter; padding of the student's map is expected to be 0, as P would spread anything else.

    Returns:
        A float32 scalar; 0, with gradients 0, if no token is real.

    Raises:
        ValueError: a wrong shape, dtype or device; the message names the argument.
        RuntimeError: on the CPU, if the C++ extension is not built.
    """
    _check("student_map", student_map, left, right)
    expect_shape("teacher_map", teacher_map, tuple(student_map.shape), "[B, S, S] of student_map")
    expect_floating("teacher_map", teacher_map)
    expect_same_device("teacher_map", teacher_map, student_map, "student_map")
    if mask is not None:
        expect_mask(
            mask, tuple(student_map.shape[:2]), student_map, "[B, S] of student_map", "student_map"
        )
    wanted = torch.is_grad_enabled()
    needs = [wanted and tensor.requires_grad for tensor in (student_map, left, right)]
    loss: torch.Tensor = _mse(
        student_map.float(), teacher_map.detach().float(), left.float(), right.float(), mask, *needs
    )[0]
    return loss
