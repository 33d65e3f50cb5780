"""Loss and gradient of rows of logits, in Triton: one read for the loss, another and one write for the gradient.

With c = 1/T and the maxima t* and s* of a row (Hinton, Vinyals and Dean, 2015, for the loss):

    KL = Σ_j p_j ((t_j − t*) − (s_j − s*)) · c + log( Σ e^{(s − s*) c} / Σ e^{(t − t*) c} ),   p = softmax(t c)
    loss = T² · KL,    ∂loss/∂s_j = T · (softmax(s c)_j − p_j)

All sums are kept relative to the running maxima of one sweep over the columns, and rescaled when those grow. Measuring
both sides from their maxima keeps every term small, and one logarithm of a quotient replaces a difference of two
large ones, so that little cancels where student and teacher nearly agree.

A row's statistics are kept as two numbers a side, maximum and log-sum: their sum, the log-sum-exp, would round away
the digits that the gradient of large logits needs.
"""
# mypy: disable-error-code="no-untyped-def"

import math

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))

# By (architecture, shape class); the class is the wider dtype of the two sides.
FORWARD: launch.Table = {
    ("default", "half"): {"BLOCK_V": 4096, "num_warps": 8, "num_stages": 1},
    ("default", "float"): {"BLOCK_V": 4096, "num_warps": 8, "num_stages": 1},
}
BACKWARD: launch.Table = {
    ("default", "half"): {"BLOCK_V": 2048, "num_warps": 4, "num_stages": 1},
    ("default", "float"): {"BLOCK_V": 2048, "num_warps": 4, "num_stages": 1},
}


@triton.jit
def _largest(b_logits, so_far):
    """The running maximum after a block, and where to measure from: −∞ − (−∞) would be NaN, so 0 for −∞."""
    largest = tl.maximum(so_far, tl.max(b_logits, 0))
    return largest, tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def _fold(b_student, b_teacher, scale, s_max, t_max, s_sum, t_sum, weighted):
    """A row's running statistics with one more block of columns. scale: log2 e / T."""
    s_new, s_from = _largest(b_student, s_max)
    t_new, t_from = _largest(b_teacher, t_max)
    b_s = b_student - s_from
    b_t = b_teacher - t_from
    b_mass = tl.exp2(b_t * scale)
    # Where the teacher has no mass the difference may be ∞ or NaN; the term is 0 there.
    b_weighted = tl.where(b_mass > 0, b_mass * (b_t - b_s), 0.0)

    s_shift = tl.where(s_max == -float("inf"), 0.0, s_max - s_from)
    t_shift = tl.where(t_max == -float("inf"), 0.0, t_max - t_from)
    shrink = tl.exp2(t_shift * scale)
    # Mass that vanishes beside the rest weighs nothing, even where the student says −∞.
    moved = tl.where(shrink > 0, shrink * (weighted + t_sum * (t_shift - s_shift)), 0.0)
    weighted = moved + tl.sum(b_weighted, 0)
    s_sum = s_sum * tl.exp2(s_shift * scale) + tl.sum(tl.exp2(b_s * scale), 0)
    t_sum = t_sum * shrink + tl.sum(b_mass, 0)
    return s_new, t_new, s_sum, t_sum, weighted


@triton.jit
def forward_kernel(
    student,  # [N, V], columns contiguous
    teacher,  # [N, V], columns contiguous
    temperature,  # float32 [N]
    mask,  # uint8 [N]
    loss,  # float32 [N], out: T² KL, 0 on rows left out
    statistics,  # float32 [4, N], out: student's maximum and log-sum, teacher's maximum and log-sum
    rows,
    columns,
    stride_sn,
    stride_tn,
    HAS_MASK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One row: all columns in one sweep."""
    row = tl.program_id(0).to(tl.int64)
    chosen = row < rows
    if HAS_MASK:
        chosen = tl.load(mask + row) != 0
    degrees = tl.load(temperature + row)
    scale = LOG2_E / degrees
    p_s = student + row * stride_sn
    p_t = teacher + row * stride_tn
    end = tl.where(chosen, columns, 0)
    whole = end // BLOCK_V * BLOCK_V

    s_max = tl.full([], -float("inf"), tl.float32)
    t_max = tl.full([], -float("inf"), tl.float32)
    s_sum = tl.full([], 0.0, tl.float32)
    t_sum = tl.full([], 0.0, tl.float32)
    weighted = tl.full([], 0.0, tl.float32)
    for start in range(0, whole, BLOCK_V):
        o_v = start + tl.arange(0, BLOCK_V)
        b_s = tl.load(p_s + o_v).to(tl.float32)
        b_t = tl.load(p_t + o_v).to(tl.float32)
        s_max, t_max, s_sum, t_sum, weighted = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, weighted
        )
    if whole < end:
        o_v = whole + tl.arange(0, BLOCK_V)
        b_s = tl.load(p_s + o_v, mask=o_v < end, other=-float("inf")).to(tl.float32)
        b_t = tl.load(p_t + o_v, mask=o_v < end, other=-float("inf")).to(tl.float32)
        s_max, t_max, s_sum, t_sum, weighted = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, weighted
        )

    kl = weighted / t_sum / degrees + tl.log2(s_sum / t_sum) * LN_2
    tl.store(loss + row, tl.where(chosen, degrees * degrees * kl, 0.0))
    tl.store(statistics + row, tl.where(chosen, s_max, 0.0))
    tl.store(statistics + rows + row, tl.where(chosen, tl.log2(s_sum) * LN_2, 0.0))
    tl.store(statistics + 2 * rows + row, tl.where(chosen, t_max, 0.0))
    tl.store(statistics + 3 * rows + row, tl.where(chosen, tl.log2(t_sum) * LN_2, 0.0))


@triton.jit
def backward_kernel(
    student,  # [N, V], columns contiguous
    teacher,  # [N, V], columns contiguous
    temperature,  # float32 [N]
    mask,  # uint8 [N]
    scale,  # float32 [N]: the gradient of each row's loss
    statistics,  # float32 [4, N]
    gradient,  # [N, V], columns contiguous, out; may be `student`
    rows,
    columns,
    stride_sn,
    stride_tn,
    stride_gn,
    HAS_MASK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One (row, block of columns): scale · T · (softmax(s/T) − softmax(t/T)); reads its block before it writes it."""
    blocks = tl.cdiv(columns, BLOCK_V)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    o_v = (tl.program_id(0) % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    m_v = o_v < columns
    chosen = row < rows
    if HAS_MASK:
        chosen = tl.load(mask + row) != 0
    degrees = tl.load(temperature + row)
    factor = tl.load(scale + row) * degrees
    inverse = LOG2_E / degrees
    s_max = tl.load(statistics + row)
    s_log = tl.load(statistics + rows + row) * LOG2_E
    t_max = tl.load(statistics + 2 * rows + row)
    t_log = tl.load(statistics + 3 * rows + row) * LOG2_E

    m_read = o_v < tl.where(chosen, columns, 0)
    b_s = tl.load(student + row * stride_sn + o_v, mask=m_read, other=0.0).to(tl.float32)
    b_t = tl.load(teacher + row * stride_tn + o_v, mask=m_read, other=0.0).to(tl.float32)
    b_student = tl.exp2((b_s - s_max) * inverse - s_log)
    b_teacher = tl.exp2((b_t - t_max) * inverse - t_log)
    b_g = tl.where(chosen, factor * (b_student - b_teacher), 0.0)
    p_g = gradient + row * stride_gn + o_v
    tl.store(p_g, b_g.to(gradient.dtype.element_ty), mask=m_v)


def shape_class(student: torch.Tensor, teacher: torch.Tensor) -> str:
    """The tables' second key."""
    return "float" if max(student.itemsize, teacher.itemsize) == 4 else "half"


def forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [N] and statistics [4, N] of rows of logits; columns must be contiguous."""
    rows, columns = student.shape
    loss = student.new_empty(rows, dtype=torch.float32)
    statistics = student.new_empty(4, rows, dtype=torch.float32)
    if rows:
        launch.launch(
            forward_kernel,
            lambda _: (rows,),
            (
                student,
                teacher,
                temperature,
                temperature if mask is None else mask.view(torch.uint8),
                loss,
                statistics,
                rows,
                columns,
                student.stride(0),
                teacher.stride(0),
            ),
            {"HAS_MASK": mask is not None},
            FORWARD,
            shape_class(student, teacher),
            student.device,
        )
    return loss, statistics


def backward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor,
    statistics: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    """Write the gradient of Σ scale · loss with respect to the student; `gradient` may be `student`."""
    rows, columns = student.shape
    if rows:
        launch.launch(
            backward_kernel,
            lambda o: (rows * triton.cdiv(columns, o["BLOCK_V"]),),
            (
                student,
                teacher,
                temperature,
                temperature if mask is None else mask.view(torch.uint8),
                scale,
                statistics,
                gradient,
                rows,
                columns,
                student.stride(0),
                teacher.stride(0),
                gradient.stride(0),
            ),
            {"HAS_MASK": mask is not None},
            BACKWARD,
            shape_class(student, teacher),
            student.device,
            repeatable=gradient.data_ptr() != student.data_ptr(),
        )
