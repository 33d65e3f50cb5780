"""`linear_softened_kl` as a torch op: schema, checks, autograd.

The op yields the sum over the rows and, already in the forward, the gradients of that sum; backward multiplies them by
the incoming gradient. How they come about stands in `linear_pieces.py`.
"""

from collections.abc import Sequence
from typing import Literal, overload

import torch

from comet_kernels.checks import (
    expect,
    expect_float32,
    expect_floating,
    expect_same_device,
    expect_shape,
    refuse_forward_mode,
)
from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl.linear_pieces import empty_gradients, total_and_gradients
from comet_kernels.ops.softened_kl.op import kl_of_rows, mean_of_rows, per_row


@torch.library.custom_op("comet::linear_softened_kl", mutates_args=())
def _forward(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    autocast: torch.dtype | None,
    hidden_needs: bool,
    weight_needs: bool,
    bias_needs: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    student = student_hidden, student_weight, student_bias
    _check(student, (teacher_hidden, teacher_weight, teacher_bias), autocast is not None)
    expect_float32(temperature=temperature)
    temperature, mask = per_row(temperature, mask, student_hidden)
    return total_and_gradients(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        temperature,
        mask,
        autocast,
        (hidden_needs, weight_needs, bias_needs),
    )


@_forward.register_fake
def _forward_fake(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    autocast: torch.dtype | None,
    hidden_needs: bool,
    weight_needs: bool,
    bias_needs: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    needs = (hidden_needs, weight_needs, bias_needs)
    total = student_hidden.new_empty((), dtype=torch.float32)
    loss = student_hidden.new_empty(student_hidden.shape[0], dtype=torch.float32)
    return total, loss, *empty_gradients(student_hidden, student_weight, needs)


@torch.library.custom_op("comet::linear_softened_kl_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The gradients of the sum times the incoming one, in the dtypes of the inputs.

    The inputs are there for what they require: whoever differentiates this again is told that it cannot be done.
    """
    expect_float32(gradient=gradient)
    expect_shape("gradient", gradient, (), "a scalar")
    for found, tensor in zip(gradients, inputs, strict=True):
        expect_shape("gradients", found, tuple(tensor.shape), "shapes of inputs")
    # The incoming gradient carries 1 / rows and a scaler's factor: multiplied in float32, 16 bits may not hold it.
    return [
        torch.mul(found, gradient).to(tensor.dtype)
        for found, tensor in zip(gradients, inputs, strict=True)
    ]


@_backward.register_fake
def _backward_fake(
    gradient: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    return [
        found.new_empty(found.shape, dtype=tensor.dtype)
        for found, tensor in zip(gradients, inputs, strict=True)
    ]


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.needs = inputs[-3:]
    needed = [i for i, needs in enumerate(ctx.needs) if needs]
    ctx.save_for_backward(*(output[2 + i] for i in needed), *(inputs[i] for i in needed))
    ctx.mark_non_differentiable(*output[1:])
    # Or backward would be handed a gradient of zeros for each of them, one as large as the weight.
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gradient, *_):  # type: ignore[no-untyped-def]
    saved, count = ctx.saved_tensors, sum(ctx.needs)  # which checkpointing lets be read once
    found = iter(_backward(gradient, saved[:count], saved[count:]))
    return *(next(found) if needed else None for needed in ctx.needs), *(None,) * 9


_forward.register_autograd(_differentiate, setup_context=_remember)


Head = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # hidden states, weight, bias


def _check(student: Head, teacher: Head, autocast: bool) -> None:
    """Require heads over one vocabulary, and hidden states of as many rows.

    Raises:
        ValueError: names the argument.
        NotImplementedError: one of the student's carries a forward-mode tangent.
    """
    refuse_forward_mode("linear_softened_kl", *student)
    _check_side("student", *student, autocast)
    _check_side("teacher", *teacher, autocast)
    n, v = student[0].shape[0], student[1].shape[0]
    expect(v > 0, "student_weight", "V = 0", "at least one row")
    shape = (v, teacher[1].shape[1])
    expect_shape("teacher_weight", teacher[1], shape, "[V of student_weight, Ht]")
    shape = (n, teacher[0].shape[1])
    expect_shape("teacher_hidden", teacher[0], shape, "[N of student_hidden, Ht]")
    expect_same_device("teacher_hidden", teacher[0], student[0], "student_hidden")


def _check_side(
    side: str, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, autocast: bool
) -> None:
    expect(hidden.dim() == 2, f"{side}_hidden", f"{hidden.dim()} dimensions", "[N, H]")
    expect(weight.dim() == 2, f"{side}_weight", f"{weight.dim()} dimensions", "[V, H]")
    expect(hidden.shape[1] > 0, f"{side}_hidden", "H = 0", "at least one column")
    shape = (weight.shape[0], hidden.shape[1])
    expect_shape(f"{side}_weight", weight, shape, f"[V, H of {side}_hidden]")
    named = {f"{side}_weight": weight}
    if bias is not None:
        expect_shape(f"{side}_bias", bias, (weight.shape[0],), f"[V of {side}_weight]")
        named[f"{side}_bias"] = bias
    expect_floating(f"{side}_hidden", hidden)
    for name, tensor in named.items():
        expect_floating(name, tensor)
        same = autocast or tensor.dtype == hidden.dtype
        expect(same, name, tensor.dtype, f"the dtype of {side}_hidden, {hidden.dtype}")
        expect_same_device(name, tensor, hidden, f"{side}_hidden")


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
    """`softened_kl` of the logits `hidden @ weight.T + bias` of both sides, of which only a piece exists at a time.

    Logits take at most 256 MiB, both sides together, or what COMET_LOGITS_BYTES in the environment says, unless that
    made more than 32 pieces (a warning says so). The gradients that are needed are computed along with the loss, so
    that no logits are computed twice; backward may run again, but they cannot be differentiated.

    Inside autocast the products run in autocast's dtype, for which a head of another dtype is converted once per call;
    a float32 head stays as it is on a CPU without instructions for bfloat16. float16 is multiplied as such on NVIDIA
    GPUs only, whose library sums its products in float32; elsewhere it is converted to float32.

    Args:
        student_hidden: [N, Hs] float32, bfloat16 or float16.
        student_weight: [V, Hs], the dtype of student_hidden (any inside autocast, as for the following). Its gradient
            is summed in float32 and comes in its own dtype.
        student_bias: [V] or None.
        teacher_hidden: [N, Ht]; all the teacher's are constants, even if they require a gradient.
        teacher_weight: [V, Ht], the dtype of teacher_hidden.
        teacher_bias: [V] or None.
        temperature: a number above 0, or one per row [N]; see `softened_kl`.
        mask: [N] bool, true on chosen rows; what other rows hold does not matter. None: all rows.
        return_kl: also return every row's KL [N]; see `softened_kl`.

    Returns:
        A scalar in float32; 0 where no row is chosen. With `return_kl` a pair of that and the rows' KL.

    Raises:
        ValueError: a wrong shape, dtype, device or temperature; the message names the argument.
    """
    autocast = launch.autocast_dtype(student_hidden.device)
    student = student_hidden, student_weight, student_bias
    _check(student, (teacher_hidden, teacher_weight, teacher_bias), autocast is not None)
    temperature_N, mask = per_row(temperature, mask, student_hidden)
    needs = (
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in student
    )
    total, loss_N, *_ = _forward(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden.detach(),
        teacher_weight.detach(),
        None if teacher_bias is None else teacher_bias.detach(),
        temperature_N,
        mask,
        autocast,
        *needs,
    )
    loss: torch.Tensor = mean_of_rows(total, student_hidden.shape[0], mask)
    return (loss, kl_of_rows(loss_N, temperature_N, mask)) if return_kl else loss
