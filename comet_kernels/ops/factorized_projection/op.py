"""`factorized_projection` and `projected_mse` as torch ops: schema, one implementation per device, autograd.

`projected_mse` computes its gradients together with the loss, while P(A) is at hand; backward only scales them.
"""

import torch
from torch.autograd.function import once_differentiable

from comet_kernels import native
from comet_kernels.checks import expect_float32, expect_same_device, expect_shape
from comet_kernels.ops.factorized_projection import cuda, pieces
from comet_kernels.ops.factorized_projection.arguments import (
    Gradients,
    address,
    call,
    check,
    check_mask,
    check_teacher,
    rooms,
    sizes,
)

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _present(found: Gradients, like: torch.Tensor) -> Three:
    """An op returns tensors only: an empty one stands for None."""
    first, second, third = (like.new_empty(0) if g is None else g for g in found)
    return first, second, third


@torch.library.custom_op("comet::factorized_projection", mutates_args=())
def _forward(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, in_bfloat16: bool
) -> torch.Tensor:
    _check_forward(map, left, right)
    return pieces.forward(map, left, right)


def _check_forward(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    check("factorized_projection", "map", map, left, right)
    expect_float32(map=map, left=left, right=right)


@_forward.register_kernel("cpu")
def _forward_cpu(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, in_bfloat16: bool
) -> torch.Tensor:
    _check_forward(map, left, right)
    map, left, right = map.contiguous(), left.contiguous(), right.contiguous()
    output = torch.empty_like(map)
    native.library().factorized_projection_forward(
        *call(map, left, right), output.data_ptr(), torch.get_num_threads()
    )
    return output


@_forward.register_kernel("cuda")
def _forward_cuda(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, in_bfloat16: bool
) -> torch.Tensor:
    _check_forward(map, left, right)
    return cuda.forward(map, left, right, in_bfloat16)


@_forward.register_fake
def _forward_fake(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, in_bfloat16: bool
) -> torch.Tensor:
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
    in_bfloat16: bool,
) -> Three:
    """dA, dL and dR; an empty tensor for each that is not needed."""
    _check_backward(gradient, map, left, right)
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
    in_bfloat16: bool,
) -> Three:
    _check_backward(gradient, map, left, right)
    gradient, map = gradient.contiguous(), map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    found = rooms(map, left, right, (map_needs, left_needs, right_needs))
    native.library().factorized_projection_backward(
        *call(map, left, right),
        gradient.data_ptr(),
        *(address(g) for g in found),
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
    in_bfloat16: bool,
) -> Three:
    _check_backward(gradient, map, left, right)
    needs = (map_needs, left_needs, right_needs)
    return _present(cuda.backward(gradient, map, left, right, needs, in_bfloat16), map)


def _check_backward(
    gradient: torch.Tensor, map: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> None:
    _check_forward(map, left, right)
    expect_shape("gradient", gradient, tuple(map.shape), "[B, S, S] of map")
    expect_same_device("gradient", gradient, map, "map")
    expect_float32(gradient=gradient)


@_backward.register_fake
def _backward_fake(
    gradient: torch.Tensor,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    map_needs: bool,
    left_needs: bool,
    right_needs: bool,
    in_bfloat16: bool,
) -> Three:
    return _present(rooms(map, left, right, (map_needs, left_needs, right_needs)), map)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.in_bfloat16 = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad[:3]
    found = _backward(gradient, *ctx.saved_tensors, *needs, ctx.in_bfloat16)
    return *(g if needed else None for g, needed in zip(found, needs, strict=True)), None


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
    in_bfloat16: bool,
) -> Four:
    """The loss and its gradients dA, dL and dR; an empty tensor for each that is not needed."""
    _check_mse(student_map, teacher_map, left, right, mask)
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
    in_bfloat16: bool,
) -> Four:
    _check_mse(student_map, teacher_map, left, right, mask)
    student_map, teacher_map = student_map.contiguous(), teacher_map.contiguous()
    left, right = left.contiguous(), right.contiguous()
    mask = None if mask is None else mask.contiguous()
    loss = student_map.new_empty(())
    found = rooms(student_map, left, right, (map_needs, left_needs, right_needs))
    native.library().projected_mse(
        *(address(tensor) for tensor in (student_map, teacher_map, left, right, mask)),
        *sizes(student_map, left),
        loss.data_ptr(),
        *(address(g) for g in found),
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
    in_bfloat16: bool,
) -> Four:
    _check_mse(student_map, teacher_map, left, right, mask)
    needs = (map_needs, left_needs, right_needs)
    loss, found = cuda.mse(student_map, teacher_map, left, right, mask, needs, in_bfloat16)
    return loss, *_present(found, student_map)


def _check_mse(
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    check("projected_mse", "student_map", student_map, left, right)
    check_teacher(teacher_map, student_map)
    check_mask(mask, student_map)
    expect_float32(student_map=student_map, teacher_map=teacher_map, left=left, right=right)


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
    in_bfloat16: bool,
) -> Four:
    found = rooms(student_map, left, right, (map_needs, left_needs, right_needs))
    return student_map.new_empty(()), *_present(found, student_map)


def _keep_gradients(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.needs = inputs[5:8]
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
    return map_gradient, None, left_gradient, right_gradient, *(None,) * 5


_mse.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def _in_bfloat16(device: torch.device) -> bool:
    """Whether autocast asks for products in bfloat16; only NVIDIA GPUs have them here."""
    return (
        device.type == "cuda"
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
    )


def factorized_projection(
    map: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """A learnable linear map of attention maps, a sum of K Kronecker products: P(A)[b] = Σ_k L_k A_b R_kᵀ.

    Differentiable once, with respect to all three arguments; gradients that nobody needs are not computed. Never
    holds K·B·S·S numbers, but 2 K S² for a few samples at a time, and on an NVIDIA GPU with S ≤ 128 only for sums of
    a few samples' gradients. Gives the same bits for the same input.

    Sums, and what is returned, are float32 always. Factors of matrix products are float32 too, except on an NVIDIA
    GPU: there they are rounded to bfloat16 inside `torch.autocast("cuda", torch.bfloat16)`, and else to TF32 where
    torch may do so (`torch.backends.cuda.matmul.fp32_precision = "tf32"`). The backward pass follows the autocast of
    its forward pass.

    Args:
        map: [B, S, S] attention maps A, float32, bfloat16 or float16, any strides.
        left: [K, S_max, S_max], S ≤ S_max; the leading S × S corner of each term counts.
        right: [K, S_max, S_max], likewise.

    Returns:
        [B, S, S] float32.

    Raises:
        ValueError: a wrong shape, dtype or device; the message names the argument.
        RuntimeError: on the CPU, if the C++ extension is not built; on a GPU, if a kernel cannot be launched.
    """
    check("factorized_projection", "map", map, left, right)
    output: torch.Tensor = _forward(
        map.float(), left.float(), right.float(), _in_bfloat16(map.device)
    )
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
        RuntimeError: on the CPU, if the C++ extension is not built; on a GPU, if a kernel cannot be launched.
    """
    check("projected_mse", "student_map", student_map, left, right)
    check_teacher(teacher_map, student_map)
    check_mask(mask, student_map)
    wanted = torch.is_grad_enabled()
    needs = [wanted and tensor.requires_grad for tensor in (student_map, left, right)]
    loss: torch.Tensor = _mse(
        student_map.float(),
        teacher_map.detach().float(),
        left.float(),
        right.float(),
        mask,
        *needs,
        _in_bfloat16(student_map.device),
    )[0]
    return loss
