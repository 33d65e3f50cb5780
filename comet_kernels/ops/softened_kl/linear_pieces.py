"""The softened KL divergence and its gradients straight from hidden states, a piece of the logits at a time.

The gradient of the loss with respect to the student's logits depends on nothing that follows, so each piece of rows is
finished while its logits are there, as Liger Kernel and others do for other losses. With G = ∂(Σ loss)/∂(logits),
written over those logits,

    ∂/∂hidden = G · weight,    ∂/∂weight = Gᵀ · hidden,    ∂/∂bias = Σ_n G_n

With a large vocabulary and a student close to its teacher most of G is below 6e-8, the least that float16 holds. In
float16 the kernel therefore writes 2^k · G, which stays just below 2^15, and the products, which float32 receives, are
divided by 2^k.
"""

import functools
import os
import platform
import warnings

import torch

from comet_kernels.checks import expect
from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl import rows

# Logits of a piece, both sides together; COMET_LOGITS_BYTES in the environment overrides it.
LOGITS_BYTES = 256 << 20

# Every piece reads both weights, so that more pieces than this would cost more time than the memory is worth.
MOST_PIECES = 32

# Rows of logits start on addresses that a GPU loads 16 bytes from, whatever V is.
COLUMN_MULTIPLE = 64

# A 16-bit product on its way into the float32 weight gradient exists in parts that stay in the cache of a GPU.
PRODUCT_BYTES = 16 << 20


# Total, loss of every row [N], gradients with respect to hidden states, weight and bias; all float32.
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


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


def _products_in_float32(device: torch.device) -> bool:
    """Whether the matrix library hands out the float32 sums of 16-bit products, as cuBLAS does."""
    return device.type == "cuda" and torch.version.hip is None


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; emulated, products took three times as long as in float32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def dtype_of_products(
    hidden: torch.Tensor, weight: torch.Tensor, autocast: torch.dtype | None
) -> torch.dtype:
    """Autocast's dtype or that of the hidden states; float32 instead where 16 bits would overflow or be slower."""
    dtype = autocast or hidden.dtype
    if dtype == torch.float16 and not _products_in_float32(hidden.device):
        return torch.float32
    slow = hidden.device.type == "cpu" and not cpu_multiplies_bfloat16()
    if dtype == torch.bfloat16 and weight.dtype == torch.float32 and slow:
        return torch.float32
    return dtype


class Side:
    """Teacher or student: hidden states and head in the dtype of their product, and room for a piece of logits."""

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        autocast: torch.dtype | None,
    ):
        dtype = dtype_of_products(hidden, weight, autocast)
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype).contiguous()
        self.columns = weight.shape[0]
        self.stride = -(-self.columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of logits."""
        return self.stride * self.weight.itemsize

    def make_room(self, size: int) -> None:
        """Allocate for `size` rows of logits."""
        self.room = self.weight.new_empty(size, self.stride)
        # oneDNN's AMX products multiply the padding by 0, and 0 · NaN would be NaN.
        self.room[:, self.columns :] = 0

    def logits(self, piece: slice) -> torch.Tensor:
        """[rows, V], without the bias."""
        hidden = self.hidden[piece]
        out = self.room[: hidden.shape[0], : self.columns]
        return torch.mm(hidden, self.weight.t(), out=out)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left · right; of 16-bit factors in float32 where the library can, else rounded once."""
    if left.dtype != torch.float32 and _products_in_float32(left.device):
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


def accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += leftᵀ right, in float32 whatever the dtype of the factors."""
    if left.dtype == torch.float32:
        total.addmm_(left.t(), right)
        return
    step = max(1, PRODUCT_BYTES // (4 * right.shape[1]))
    for start in range(0, total.shape[0], step):
        total[start : start + step].add_(product(left[:, start : start + step].t(), right))


def enlargement(
    dtype: torch.dtype, temperature: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """What the logits' gradient, at most T in size, is multiplied by to lie well within its dtype: a power of two."""
    one = temperature.new_ones(())
    if dtype != torch.float16 or not len(temperature):
        return one
    chosen = temperature if mask is None else temperature.masked_fill(~mask, 0)
    return torch.exp2(torch.floor(14 - torch.log2(chosen.amax())).clamp(max=100))


def _in_pieces(
    student: Side,
    teacher: Side,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    needs: tuple[bool, bool, bool],
) -> torch.Tensor:
    """The loss of every row; adds to the gradients that are needed."""
    n = student.hidden.shape[0]
    loss = student.hidden.new_empty(n, dtype=torch.float32)
    enlarged = enlargement(student.weight.dtype, temperature, mask)
    scale = enlarged.repeat(n)
    step = min(rows_per_piece(n, student.row_bytes + teacher.row_bytes), max(n, 1))
    student.make_room(step)
    teacher.make_room(step)
    biases = (student.bias, teacher.bias)
    hidden_gradient, weight_gradient, bias_gradient = gradients
    for start in range(0, n, step):
        piece = slice(start, min(start + step, n))
        chosen = None if mask is None else mask[piece]
        logits = student.logits(piece)
        rows_of = (logits, teacher.logits(piece), temperature[piece], chosen)
        loss[piece], statistics = rows.forward(*rows_of, biases)
        if not any(needs):
            continue
        rows.backward(*rows_of, scale[piece], statistics, logits, biases)
        if needs[0]:
            hidden_gradient[piece] = product(logits, student.weight)
        if needs[1]:
            accumulate(weight_gradient, logits, student.hidden[piece])
        if needs[2]:
            bias_gradient += logits.sum(0, dtype=torch.float32)
    if student.weight.dtype == torch.float16:
        for gradient in gradients:
            gradient /= enlarged
    return loss


def empty_gradients(
    hidden: torch.Tensor, weight: torch.Tensor, needs: tuple[bool, bool, bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for the gradients in float32; of no elements where not needed."""
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    hidden_gradient, weight_gradient, bias_gradient = (
        hidden.new_empty(shape if needed else (0,), dtype=torch.float32)
        for shape, needed in zip(shapes, needs, strict=True)
    )
    return hidden_gradient, weight_gradient, bias_gradient


def total_and_gradients(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    autocast: torch.dtype | None,
    needs: tuple[bool, bool, bool],
) -> Found:
    """The sum of the rows' losses, each row's, and the sum's gradients by the student's hidden states, weight and bias.

    Products run in `autocast`'s dtype, by default the hidden states'. A gradient that is not needed is an empty tensor.
    """
    temperature = rows.checked_temperature(temperature, mask)
    n = student_hidden.shape[0]
    gradients = empty_gradients(student_hidden, student_weight, needs)
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
        student = Side(student_hidden, student_weight, student_bias, autocast)
        teacher = Side(teacher_hidden, teacher_weight, teacher_bias, autocast)
        loss = _in_pieces(student, teacher, temperature, mask, of_pieces, needs)
    total = loss.sum()
    if chosen is not None:
        loss = loss.new_zeros(n).index_copy_(0, chosen, loss)
        if needs[0]:
            gradients[0].zero_().index_copy_(0, chosen, of_pieces[0])
    return total, loss, *gradients
