"""`softened_kl` as a torch op: schema, checks, autograd. The op yields the loss of every row; the mean is torch's."""

import math
from typing import Literal, overload

import torch

from comet_kernels.checks import (
    expect,
    expect_float32,
    expect_floating,
    expect_mask,
    expect_positive,
    expect_same_device,
    expect_shape,
    refuse_forward_mode,
)
from comet_kernels.ops.softened_kl import rows


def _check(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Require two sides of one shape.

    Raises:
        ValueError: names the argument.
        NotImplementedError: the student carries a forward-mode tangent.
    """
    refuse_forward_mode("softened_kl", student)
    expect(student.dim() == 2, "student_logits", f"{student.dim()} dimensions", "[N, V]")
    expect(student.shape[1] > 0, "student_logits", "V = 0", "at least one column")
    expect_floating("student_logits", student)
    expect_shape("teacher_logits", teacher, tuple(student.shape), "[N, V] of student_logits")
    expect_floating("teacher_logits", teacher)
    expect_same_device("teacher_logits", teacher, student, "student_logits")


def _check_all(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same for who calls the op itself; temperature and mask come back contiguous."""
    _check(student, teacher)
    expect_float32(temperature=temperature)
    return per_row(temperature, mask, student)


def _readable(logits: torch.Tensor) -> torch.Tensor:
    """Logits with contiguous columns: as they are unless somebody transposed them."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


@torch.library.custom_op("comet::softened_kl", mutates_args=())
def _forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """T² KL of every row [N] and the row statistics [4, N] of the backward, both float32."""
    temperature, mask = _check_all(student, teacher, temperature, mask)
    temperature = rows.checked_temperature(temperature, mask)
    return rows.forward(_readable(student), _readable(teacher), temperature, mask)


@_forward.register_fake
def _forward_fake(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    n = student.shape[0]
    return (
        student.new_empty(n, dtype=torch.float32),
        student.new_empty(4, n, dtype=torch.float32),
    )


@torch.library.custom_op("comet::softened_kl_backward", mutates_args=())
def _backward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor,
    statistics: torch.Tensor,
) -> torch.Tensor:
    """The gradient [N, V] of Σ scale · loss with respect to the student, in its dtype."""
    temperature, mask = _check_all(student, teacher, temperature, mask)
    expect_float32(scale=scale, statistics=statistics)
    n = student.shape[0]
    expect_shape("scale", scale, (n,), "[N]")
    expect_shape("statistics", statistics, (4, n), "[4, N]")
    for name, tensor in (("scale", scale), ("statistics", statistics)):
        expect_same_device(name, tensor, student, "student_logits")
    gradient = student.new_empty(student.shape)
    rows.backward(
        _readable(student),
        _readable(teacher),
        temperature,
        mask,
        scale.contiguous(),
        statistics.contiguous(),
        gradient,
    )
    return gradient


@_backward.register_fake
def _backward_fake(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor,
    statistics: torch.Tensor,
) -> torch.Tensor:
    return student.new_empty(student.shape)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gradient, _):  # type: ignore[no-untyped-def]
    *inputs, statistics = ctx.saved_tensors
    return _backward(*inputs, gradient, statistics), None, None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


def per_row(
    temperature: float | torch.Tensor, mask: torch.Tensor | None, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Check temperature and mask against the rows of `like`; the temperatures come back as float32 [N]."""
    n = like.shape[0]
    if isinstance(temperature, torch.Tensor):
        expect(temperature.is_floating_point(), "temperature", temperature.dtype, "a float dtype")
        expect_shape("temperature", temperature, (n,), "[N]")
        expect_same_device("temperature", temperature, like, "the student")
        temperature_N = temperature.detach().to(torch.float32).contiguous()
    else:
        if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
            expect_positive("temperature", temperature)  # which torch.compile cannot trace
        temperature_N = like.new_full((n,), temperature, dtype=torch.float32)
    if mask is not None:
        expect_mask(mask, (n,), like, "[N]", "the student")
        mask = mask.contiguous()
    return temperature_N, mask


def mean_of_rows(total: torch.Tensor, n: int, mask: torch.Tensor | None) -> torch.Tensor:
    """The total loss over the number of chosen rows; 0 where there are none."""
    return total / (max(n, 1) if mask is None else mask.sum().clamp(min=1))


def kl_of_rows(
    loss: torch.Tensor, temperature: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """KL of every row [N], a constant, from T² KL; a temperature of a row left out may be anything."""
    kl = loss.detach() / temperature**2
    return kl if mask is None else torch.where(mask, kl, 0)


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

    The softened cross-entropy of Hinton, Vinyals and Dean (2015, arXiv 1503.02531) less the teacher's entropy. One read
    of both sides for the loss, another and one write for the gradient; beyond the logits only a few numbers a row
    are kept.

    Args:
        student_logits: [N, V] float32, bfloat16 or float16, any distance from row to row. The gradient, to which
            differentiation is limited, has this dtype.
        teacher_logits: [N, V], any of these dtypes; a constant, even if it requires a gradient. −∞ counts 0.
        temperature: a number above 0, or one per row [N]; a constant. Tensors are checked where they are, without a
            synchronisation: on CUDA a bad one is a device-side assertion, on devices other than that and the CPU NaN.
        mask: [N] bool, true on chosen rows; what other rows hold does not matter. None: all rows.
        return_kl: also return every row's KL, at the price of N numbers: for curves by language, or a temperature that
            adapts.

    Returns:
        A scalar in float32; 0 where no row is chosen. With `return_kl` a pair: that scalar, and
        KL( softmax(teacher / T_n) ‖ softmax(student / T_n) ) [N] in float32: nats without T_n², a constant, 0 on rows
        left out.

    Raises:
        ValueError: a wrong shape, dtype, device or temperature; the message names the argument.
    """
    _check(student_logits, teacher_logits)
    temperature_N, mask = per_row(temperature, mask, student_logits)
    loss_N: torch.Tensor = _forward(student_logits, teacher_logits.detach(), temperature_N, mask)[0]
    loss = mean_of_rows(loss_N.sum(), student_logits.shape[0], mask)
    return (loss, kl_of_rows(loss_N, temperature_N, mask)) if return_kl else loss
