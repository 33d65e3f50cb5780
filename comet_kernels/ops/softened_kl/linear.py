"""`linear_softened_kl`: the softened KL divergence straight from hidden states, a piece of the logits at a time.

The gradient of the loss with respect to the student's logits depends on nothing that follows, so each piece of rows is
finished while its logits are there, as Liger Kernel and others do for other losses. With G = ∂(Σ loss)/∂(logits),
written over those logits,

    ∂/∂hidden = G · weight,    ∂/∂weight = Gᵀ · hidden,    ∂/∂bias = Σ_n G_n

The op yields the sum over the rows and these gradients of the sum; backward multiplies them by the incoming gradient.
"""

import functools
import os
import warnings

import torch
from torch.autograd.function import once_differentiable

from comet_kernels.checks import expect, expect_floating, expect_same_device, expect_shape
from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl import rows
from comet_kernels.ops.softened_kl.op import mean_of_rows, per_row

# Logits of a piece, both sides together; COMET_LOGITS_BYTES in the environment overrides it.
LOGITS_BYTES = 256 << 20

# Every piece reads both weights, so that more pieces than this would cost more time than the memory is worth.
MOST_PIECES = 32

# Rows of logits start on addresses that a GPU loads 16 bytes from, whatever V is.
COLUMN_MULTIPLE = 64

# A 16-bit product on its way into the float32 weight gradient exists in parts that stay in the cache of a GPU.
PRODUCT_BYTES = 16 << 20


def rows_per_piece(n: int, row_bytes: int) -> int:
    """How many rows' logits to hold at once: what the budget allows, but never so few that there are over 32 pieces."""
    given = os.environ.get("COMET_LOGITS_BYTES", str(LOGITS_BYTES))
    is_number = given.isdecimal() and int(given) > 0
    expect(is_number, "COMET_LOGITS_BYTES", repr(given), "a number of bytes above 0")
    budget = int(given)
    allowed, fewest = budget // row_bytes, -(-n // MOST_PIECES)
    if allowed < fewest:
        _warn_about_budget(budget, fewest * row_bytes)
    # Multiples of 64 rows fill the tiles of matrix units.
    return max(allowed // 64 * 64 if allowed >= 64 else allowed, fewest, 1)


@functools.cache
def _warn_about_budget(budget: int, needed: int) -> None:
    warnings.warn(
        f"linear_softened_kl: logits take {needed >> 20} MiB instead of {budget >> 20} MiB, "
        f"since more than {MOST_PIECES} pieces would read the weights too often; "
        "pass fewer tokens, or raise COMET_LOGITS_BYTES to silence this",
        stacklevel=2,
    )


class _Side:
    """Teacher or student: hidden states and head in the dtype of their product, and room for a piece of logits."""

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        product_dtype: torch.dtype | None,
    ):
        dtype = product_dtype or hidden.dtype
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.columns = weight.shape[0]
        self.stride = -(-self.columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE

    @property
    def row_bytes(self) -> int:
        return self.stride * self.weight.itemsize

    def make_room(self, size: int) -> None:
        self.room = self.weight.new_empty(size, self.stride)

    def logits(self, piece: slice) -> torch.Tensor:
        hidden = self.hidden[piece]
        out = self.room[: hidden.shape[0], : self.columns]
        if self.bias is None:
            return torch.mm(hidden, self.weight.t(), out=out)
        return torch.addmm(self.bias, hidden, self.weight.t(), out=out)


def _accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += leftᵀ right, in float32 whatever the dtype of the factors."""
    if left.dtype == torch.float32:
        total.addmm_(left.t(), right)
        return
    # float32 results from 16-bit factors are cuBLAS's; elsewhere a piece's product is rounded once.
    wide = left.is_cuda and torch.version.hip is None
    step = max(1, PRODUCT_BYTES // (4 * right.shape[1]))
    for start in range(0, total.shape[0], step):
        part = left[:, start : start + step].t()
        product = torch.mm(part, right, out_dtype=torch.float32) if wide else torch.mm(part, right)
        total[start : start + step].add_(product)


def _in_pieces(
    student: _Side,
    teacher: _Side,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    needs: tuple[bool, bool, bool],
) -> torch.Tensor:
    """The loss of every row; adds to the gradients that are needed."""
    n = student.hidden.shape[0]
    loss = student.hidden.new_empty(n, dtype=torch.float32)
    one = torch.ones_like(loss)
    step = min(rows_per_piece(n, student.row_bytes + teacher.row_bytes), max(n, 1))
    student.make_room(step)
    teacher.make_room(step)
    hidden_gradient, weight_gradient, bias_gradient = gradients
    for start in range(0, n, step):
        piece = slice(start, min(start + step, n))
        chosen = None if mask is None else mask[piece]
        logits = student.logits(piece)
        rows_of = (logits, teacher.logits(piece), temperature[piece], chosen)
        loss[piece], statistics = rows.forward(*rows_of)
        if not any(needs):
            continue
        rows.backward(*rows_of, one[piece], statistics, logits)
        if needs[0]:
            torch.mm(logits, student.weight, out=hidden_gradient[piece])
        if needs[1]:
            _accumulate(weight_gradient, logits, student.hidden[piece])
        if needs[2]:
            bias_gradient += logits.sum(0, dtype=torch.float32)
    return loss


def _empty_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    product_dtype: torch.dtype | None,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for the gradients; of no elements where not needed. Only the hidden states' has the product's dtype."""
    dtype = product_dtype or hidden.dtype
    return (
        hidden.new_empty(hidden.shape if needs[0] else (0,), dtype=dtype),
        weight.new_empty(weight.shape if needs[1] else (0,), dtype=torch.float32),
        weight.new_empty(weight.shape[:1] if needs[2] else (0,), dtype=torch.float32),
    )


def total_and_gradients(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    product_dtype: torch.dtype | None,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of the rows' losses, and its gradients with respect to the student's hidden states, weight and bias.

    Products run in `product_dtype`, by default the hidden states'. A gradient that is not needed is an empty tensor.
    """
    temperature = rows.checked_temperature(temperature, mask)
    gradients = _empty_gradients(student_hidden, student_weight, product_dtype, needs)
    gradients[1].zero_()
    gradients[2].zero_()
    of_pieces = gradients
    chosen = None
    if mask is not None and mask.device.type == "cpu":
        # Reading the mask costs the CPU nothing: rows left out are not computed at all.
        chosen = mask.nonzero()[:, 0]
        student_hidden, teacher_hidden = student_hidden[chosen], teacher_hidden[chosen]
        temperature, mask = temperature[chosen], None
        if needs[0]:
            of_pieces = (gradients[0].new_empty(student_hidden.shape), *gradients[1:])
    elif mask is not None and needs[1]:
        # Their logits' gradient is 0, and 0 · NaN would be NaN in the weight's.
        student_hidden = student_hidden.masked_fill(~mask[:, None], 0)
    with launch.without_autocast(student_hidden.device):
        student = _Side(student_hidden, student_weight, student_bias, product_dtype)
        teacher = _Side(teacher_hidden, teacher_weight, teacher_bias, product_dtype)
        loss = _in_pieces(student, teacher, temperature, mask, of_pieces, needs)
    if chosen is not None and needs[0]:
        gradients[0].zero_().index_copy_(0, chosen, of_pieces[0])
    return loss.sum(), *gradients


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
    product_dtype: torch.dtype | None,
    hidden_needs: bool,
    weight_needs: bool,
    bias_needs: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return total_and_gradients(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        temperature,
        mask,
        product_dtype,
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
    product_dtype: torch.dtype | None,
    hidden_needs: bool,
    weight_needs: bool,
    bias_needs: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    needs = (hidden_needs, weight_needs, bias_needs)
    total = student_hidden.new_empty((), dtype=torch.float32)
    return total, *_empty_gradients(student_hidden, student_weight, product_dtype, needs)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
    ctx.needs = inputs[-3:]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    # Or backward would be handed a gradient of zeros for each of them, one as large as the weight.
    ctx.set_materialize_grads(False)


@once_differentiable
def _differentiate(ctx, gradient, *_):  # type: ignore[no-untyped-def]
    # The incoming gradient carries 1 / rows and a scaler's factor: multiplied in float32, 16 bits may not hold it.
    found = (
        (saved.float() * gradient).to(dtype) if needed else None
        for saved, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs, strict=True)
    )
    return *found, *(None,) * 9


_forward.register_autograd(_differentiate, setup_context=_remember)


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
    """`softened_kl` of the logits `hidden @ weight.T + bias` of both sides, of which only a piece exists at a time.

    Logits take at most 256 MiB, both sides together, or what COMET_LOGITS_BYTES in the environment says, unless that
    made more than 32 pieces (a warning says so). The gradients that are needed are computed along with the loss, so
    that no logits are computed twice; backward may run again, but they cannot be differentiated.

    In float16 the logits' gradient is rounded to that type before the products: with a large vocabulary and a student
    close to its teacher many of its entries are below what float16 holds. Prefer bfloat16 or float32.

    Inside autocast the products run in autocast's dtype, for which a head of another dtype is converted once per call.

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

    Returns:
        A scalar in float32; 0 where no row is chosen.

    Raises:
        ValueError: a wrong shape, dtype, device or temperature; the message names the argument.
    """
    device_type = student_hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    _check_side("student", student_hidden, student_weight, student_bias, autocast)
    _check_side("teacher", teacher_hidden, teacher_weight, teacher_bias, autocast)
    n, v = student_hidden.shape[0], student_weight.shape[0]
    expect(v > 0, "student_weight", "V = 0", "at least one row")
    shape = (v, teacher_weight.shape[1])
    expect_shape("teacher_weight", teacher_weight, shape, "[V of student_weight, Ht]")
    shape = (n, teacher_hidden.shape[1])
    expect_shape("teacher_hidden", teacher_hidden, shape, "[N of student_hidden, Ht]")
    expect_same_device("teacher_hidden", teacher_hidden, student_hidden, "student_hidden")
    temperature_N, mask = per_row(temperature, mask, student_hidden)
    needs = (
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (student_hidden, student_weight, student_bias)
    )
    total: torch.Tensor = _forward(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden.detach(),
        teacher_weight.detach(),
        None if teacher_bias is None else teacher_bias.detach(),
        temperature_N,
        mask,
        torch.get_autocast_dtype(device_type) if autocast else None,
        *needs,
    )[0]
    return mean_of_rows(total, n, mask)
